"""Images and captions, joined by file name: never by position, and nothing is dropped on the way."""

import re

import pandas as pd

from helpers.errors import RunError
from helpers.records import Caption, Post, latest, read_rows
from helpers.run import Run

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


def up_to_date(run: Run, images: pd.DataFrame) -> pd.DataFrame:
    """Rows of `table` with their permission as 01 has it now.

    Raises RunError for one that is another run's, or has another image by now.
    """
    posts = latest(read_rows(run.posts, Post))
    for row in images.itertuples():
        if row.file_name not in posts or posts[row.file_name].sha256 != row.sha256:
            raise RunError(
                f"{row.file_name} has changed since the images were chosen: "
                "run the cell 'What is left out, and why' and those after it again"
            )
    return images.assign(permission=[posts[name].permission for name in images["file_name"]])


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
