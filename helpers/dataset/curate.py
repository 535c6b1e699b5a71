"""Which images go into the dataset, joined to their captions by file name."""

import pandas as pd

from helpers.config import DatasetConfig
from helpers.errors import RunError
from helpers.records import Caption, Post, Rejection, latest, read_rows, reject
from helpers.run import Run


def table(run: Run) -> pd.DataFrame:
    """A row per image: all of its post, its `caption` (empty if it has none) and `captioner`.

    Raises RunError if 01 or 02 has not run, or a caption's image is not there.
    """
    posts = latest(read_rows(run.require(run.posts, "scrape"), Post))
    captions = latest(read_rows(run.require(run.captions, "caption"), Caption))
    for name in captions:
        if name not in posts or not run.image(name).is_file():
            raise RunError(
                f"{run.captions} captions {name}, which is not in {run.images}: "
                "run 01_scrape again, or take that line out"
            )
    usable = [row for row in captions.values() if row.is_usable]
    words = pd.DataFrame(
        {
            "file_name": [row.file_name for row in usable],
            "caption": [row.caption for row in usable],
            "captioner": [row.captioner for row in usable],
        },
        dtype=str,
    )
    joined = pd.DataFrame(posts.values()).merge(
        words, on="file_name", how="left", validate="one_to_one"
    )
    return joined.fillna({"caption": "", "captioner": ""}).sort_values(
        "file_name", ignore_index=True
    )


def judge(config: DatasetConfig, images: pd.DataFrame) -> pd.Series:
    """The reason for which each image is left out, empty for those that stay."""
    side_px = images[["width_px", "height_px"]].min(axis="columns")
    reason = pd.Series("", index=images.index, dtype=object)
    reason[side_px < config.min_side_px] = (
        "its shorter side of "
        + side_px.astype(str)
        + f" px is below min_side_px {config.min_side_px}"
    )
    reason[images["caption"] == ""] = "has no caption"
    usable = images[reason == ""]
    first = usable.groupby("sha256")["file_name"].transform("first")
    again = usable.index[usable["file_name"] != first]
    reason[again] = "is the same file as " + first[again]
    return reason


def curate(config: DatasetConfig, run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Images kept, and images left out with a column `reason`; the latter also go to rejected.jsonl.

    Raises RunError if fewer than four are kept.
    """
    images = table(run)
    images["reason"] = judge(config, images)
    kept, left_out = images[images["reason"] == ""], images[images["reason"] != ""]
    for row in left_out.itertuples():
        reject(run.rejected, Rejection(row.file_name, "dataset", row.reason))
    if len(kept) < 4:
        why = "; ".join(
            f"{count} {reason}" for reason, count in left_out["reason"].value_counts().items()
        )
        raise RunError(
            f"{len(kept)} of {len(images)} images are left, and training needs 4: add images or mend these ({why})"
        )
    return kept.drop(columns="reason"), left_out
