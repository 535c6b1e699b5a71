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
FROM_CAPTION = ("caption", "captioner", "model")  # fields of an image's caption


def table(run: Run) -> pd.DataFrame:
    """Return a table of all images, with Post's fields and the caption. Raises RunError if 01 or 02 has not run."""
    posts = latest(read_rows(run.require(run.posts, "scrape"), Post))
    captions = latest(read_rows(run.require(run.captions, "caption"), Caption))
    usable = [row for row in captions.values() if row.is_usable]
    words = pd.DataFrame(usable, columns=["file_name", *FROM_CAPTION], dtype=str)
    words["caption"] = words["caption"].map(clean_caption)
    images = pd.DataFrame(posts.values())
    joined = images.merge(words, on="file_name", how="left", validate="one_to_one")
    joined = joined.fillna(dict.fromkeys(FROM_CAPTION, ""))
    return joined.sort_values("file_name", ignore_index=True)


def candidates(config: DatasetConfig, run: Run) -> pd.DataFrame:
    """Return the table of all images, with the selection settings and the base model's name in `attrs`."""
    run.check_settings(config)
    images = table(run)
    images.attrs["chosen_with"] = _selection_settings(config)
    images.attrs["base_model"] = base_model_of(run)  # for its token limit
    return images


def _selection_settings(config: DatasetConfig) -> dict[str, Any]:
    others = ("run", "suffix", "push_to", "private")  # do not affect selection and split
    return {name: value for name, value in asdict(config).items() if name not in others}


def refresh(config: DatasetConfig, run: Run, kept: pd.DataFrame) -> pd.DataFrame:
    """Return the chosen images with permissions and captions read again from the run, without the suffix.

    Raises RunError, which names the cell to run again, if images belong to another run, have changed, lost their
    captions, were selected with other settings, or have no column `split`.
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
        name = now.index[is_other][0]
        raise RunError(f"{name} has changed since the images were chosen: {again}")
    captions = [strip_suffix(caption, config.suffix) for caption in now["caption"]]
    columns = {name: now[name].to_numpy() for name in ("captioner", "model", "permission")}
    return kept.assign(caption=captions, **columns)


def clean_caption(caption: str) -> str:
    """Return a caption on one line, without control characters or a leading sign of a spreadsheet's formula."""
    visible = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", " ", caption)
    return " ".join(visible.split()).lstrip(FORMULA + " ")


def without_image(run: Run) -> list[str]:
    """Return the names of images that captions.jsonl has and posts.jsonl has not."""
    posts = latest(read_rows(run.posts, Post))
    return [name for name in latest(read_rows(run.captions, Caption)) if name not in posts]
