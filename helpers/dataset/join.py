"""Images and captions, joined by file name: never by position, and nothing is dropped on the way."""

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

FORMULA = "=+-@＝＋－＠"  # with which a spreadsheet takes a cell for a formula


def table(run: Run) -> pd.DataFrame:
    """A row per image: all of its post, its `caption` (empty if it has none), `captioner` and `model`.

    Raises RunError if 01 or 02 has not run.
    """
    posts = latest(read_rows(run.require(run.posts, "scrape"), Post))
    captions = latest(read_rows(run.require(run.captions, "caption"), Caption))
    usable = [row for row in captions.values() if row.is_usable]
    words = pd.DataFrame(
        {
            "file_name": [row.file_name for row in usable],
            "caption": [plain(row.caption) for row in usable],
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
    """The table, with notes: the settings by which images are chosen, for `up_to_date`; what the base model reads."""
    run.check_settings(config)
    images = table(run)
    images.attrs["chosen_with"] = _choosing(config)
    images.attrs["base_model"] = base_model_of(run)  # whose tokens are counted
    return images


def _choosing(config: DatasetConfig) -> dict[str, Any]:
    """The settings that say which images are kept, and on which side."""
    others = ("run", "suffix", "push_to", "private")
    return {name: value for name, value in asdict(config).items() if name not in others}


def up_to_date(config: DatasetConfig, run: Run, kept: pd.DataFrame) -> pd.DataFrame:
    """The images kept, with the permission that 01 has now and the captions that 02 has now, without the suffix.

    Raises RunError, naming the cell to run again, if the images are another run's, have changed or lost their
    captions since, were chosen by other settings, or have no column `split`.
    """
    run.check_settings(config)
    again = "run the cell 'What is left out, and why' and those after it again"
    settings = _choosing(config)
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


def plain(caption: str) -> str:
    """A caption on one line of visible text that no spreadsheet takes for a formula.

    Signs that would begin a formula are taken from its beginning, where they say nothing of a picture.
    """
    visible = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", " ", caption)
    return " ".join(visible.split()).lstrip(FORMULA + " ")


def without_image(run: Run) -> list[str]:
    """The file names that captions.jsonl has and posts.jsonl has not."""
    posts = latest(read_rows(run.posts, Post))
    return [name for name in latest(read_rows(run.captions, Caption)) if name not in posts]
