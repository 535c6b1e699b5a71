"""The saved progress of an Instagram download: one JSON file in the run, replaced atomically."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from helpers.core.errors import RunError
from helpers.core.files import read_json, write_text
from helpers.core.records import Post, Rejection, latest, read_rows
from helpers.core.run import Run
from helpers.scrape.items import RETRY_NOTE


@dataclass
class Cursor:
    """The saved progress of an Instagram download: account, filters, finished posts and position in the timeline.

    `profile`, `frozen` and `pending` are results of `instaloader.get_json_structure`.
    """

    account: str = ""
    user_id: str = ""  # stays when an account is renamed
    names: list[str] = field(default_factory=list)  # the account's former names, as far as known
    timeline_id: str = ""  # the id in anonymous requests for its pages
    profile: dict[str, Any] | None = None
    since: str = ""
    until: str = ""
    coauthored: bool = False
    # shortcode: its day, and the number of its images and videos (0 if the settings leave it out)
    finished: dict[str, tuple[str, int]] = field(default_factory=dict)
    settled: int = 0  # how many of `finished` precede the last complete walk
    frozen: dict[str, Any] | None = None  # the position in the timeline
    pending: dict[str, Any] | None = None  # the post being downloaded
    stopped: str = ""  # why the last walk ended early

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the cursor saved in a file, or a new one if the file does not exist. Raises RunError if invalid."""
        if not path.is_file():
            return cls()
        try:
            values = read_json(path)
            return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
        except (ValueError, TypeError):
            raise RunError(
                f"{path} cannot be read: delete it, and run 01_scrape again to walk from the newest post"
            ) from None

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(vars(self)) + "\n")

    def set_filters(self, since: str, until: str, coauthored: bool) -> None:
        """Set the date range and the coauthored filter. After a change, posts that were excluded are visited again."""
        if (self.since, self.until, self.coauthored) != (since, until, coauthored):
            self.since, self.until, self.coauthored = since, until, coauthored
            self.finished = {code: entry for code, entry in self.finished.items() if entry[1]}
            self.frozen, self.settled = None, 0

    def mark_complete(self) -> None:
        """Record that the timeline was walked to its end. A later walk stops at the posts finished so far."""
        self.frozen, self.settled = None, len(self.finished)

    @property
    def done_before(self) -> set[str]:
        """The shortcodes of posts that were finished by the end of the last complete walk."""
        return set(list(self.finished)[: self.settled])

    def unfinished(self, run: Run) -> list[str]:
        """Return the shortcodes of finished posts with missing images. Permanently rejected images do not count."""
        posts = latest(read_rows(run.posts, Post)).values()
        there = {post.stem for post in posts if run.image(post.file_name).is_file()}
        rows = [row for row in read_rows(run.rejected, Rejection) if row.stage == "scrape"]
        there |= {name for name, row in latest(rows).items() if not row.reason.endswith(RETRY_NOTE)}
        return [
            code
            for code, (_, count) in self.finished.items()
            if any(f"{code}_{index}" not in there for index in range(1, count + 1))
        ]
