"""Join images with their captions by file name; an image without a caption gets an empty caption."""

import re
from dataclasses import asdict
from typing import Any

import pandas as pd

from helpers.config import DatasetConfig
from helpers.core.errors import RunError
from helpers.core.records import Caption, Post, latest, read_rows
from helpers.core.run import Run
from helpers.core.suffix import strip_suffix
from helpers.models.tokens import base_model_of

FORMULA = "=+-@＝＋－＠"  # at the start of a cell, these make a formula in a spreadsheet


def table(run: Run) -> pd.DataFrame:
    """Return a table of all images: the fields of Post, `caption` (empty if missing), `captioner` and `model`.

    Raises RunError if 01 or 02 has not run.
    """
    posts = latest(read_rows(run.require(run.posts, "scrape"), Post))
    captions = latest(read_rows(run.require(run.captions, "caption"), Caption))
    usable = [row for row in captions.values() if row.is_usable]
    words = pd.DataFrame(
        {
            "file_name": [row.file_name for row in usable],
            "caption": [clean_caption(row.caption) for row in usable],
            "captioner": [row.captioner for row in usable],
            "model": [row.model for row in usable],
        },
        dtype=str,
    )
    joined = pd.DataFrame(posts.values()).merge(
        words, on="file_name", how="left", validate="one_to_one"
    )
    joined = joined.fillna({"caption": "", "captioner": "", "model": ""})
    return joined.sort_values("file_name", ignore_index=True)


def candidates(config: DatasetConfig, run: Run) -> pd.DataFrame:
    """Return `table(run)` with the selection settings and the base model's name in `attrs`."""
    run.check_settings(config)
    images = table(run)
    images.attrs["chosen_with"] = _selection_settings(config)
    images.attrs["base_model"] = base_model_of(run)  # for its token limit
    return images


def _selection_settings(config: DatasetConfig) -> dict[str, Any]:
    """Return the settings that decide which images are selected and how they are split."""
    others = ("run", "suffix", "push_to", "private")
    return {name: value for name, value in asdict(config).items() if name not in others}


def refresh(config: DatasetConfig, run: Run, kept: pd.DataFrame) -> pd.DataFrame:
    """Return `kept` with permissions and captions read again from the run, and the suffix removed from captions.

    Raises RunError, naming the cell to run again, if the images belong to another run, changed or lost their captions
    since, were selected with other settings, or have no column `split`.
    """
    run.check_settings(config)
    again = "run the cell 'What is left out, and why' and those after it again"
    settings = _selection_settings(config)
    before = kept.attrs.get("chosen_with", settings)
    if changed := [name for name, value in settings.items() if before.get(name, value) != value]:
        raise RunError(f"{', '.join(changed)} changed since the images were chosen: {again}")
    if "split" not in kept:
        raise RunError("the images have no column split: run the cell 'One post, one side' first")
    now = table(run).set_index("file_name").reindex(kept["file_name"])
    is_other = (now["sha256"].to_numpy() != kept["sha256"].to_numpy()) | (now["caption"] == "")
    if is_other.any():
        raise RunError(
            f"{now.index[is_other][0]} has changed since the images were chosen: {again}"
        )
    captions = [strip_suffix(caption, config.suffix) for caption in now["caption"]]
    columns = {name: now[name].to_numpy() for name in ("captioner", "model", "permission")}
    return kept.assign(caption=captions, **columns)


def clean_caption(caption: str) -> str:
    """Return a caption as one line, without control characters or a leading spreadsheet-formula sign."""
    visible = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", " ", caption)
    return " ".join(visible.split()).lstrip(FORMULA + " ")


def without_image(run: Run) -> list[str]:
    """Return the image names that are in captions.jsonl but not in posts.jsonl."""
    posts = latest(read_rows(run.posts, Post))
    return [name for name in latest(read_rows(run.captions, Caption)) if name not in posts]
