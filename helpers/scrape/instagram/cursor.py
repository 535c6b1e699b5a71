"""How far the walk on Instagram has come: one JSON file in the run, replaced as a whole."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from helpers.core.errors import RunError
from helpers.core.files import read_json, write_text
from helpers.core.records import Post, Rejection, latest, read_rows
from helpers.core.run import Run
from helpers.scrape.items import LATER


@dataclass
class Cursor:
    """The walk's memory. `profile`, `frozen` and `pending` are what `instaloader.get_json_structure` gives."""

    account: str = ""
    user_id: str = ""  # stays when an account is renamed
    names: list[str] = field(
        default_factory=list
    )  # all that the account has had, as far as we know
    timeline_id: str = ""  # by which an anonymous visitor asks for its pages
    profile: dict[str, Any] | None = None
    since: str = ""
    until: str = ""
    coauthored: bool = False
    # shortcode: its day, and how many pictures and videos it has (0: the settings leave it out)
    finished: dict[str, tuple[str, int]] = field(default_factory=dict)
    settled: int = 0  # so many of `finished` came before the last walk that reached its end
    frozen: dict[str, Any] | None = None  # the place in the timeline
    pending: dict[str, Any] | None = None  # the post in hand
    stopped: str = ""  # why the last walk ended early

    @classmethod
    def read(cls, path: Path) -> Self:
        """The cursor of a run, a new one if there is none. Raises RunError if it cannot be read."""
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

    def limit(self, since: str, until: str, coauthored: bool) -> None:
        """Walk another span of time, or others' posts too: what the last walk left out may be taken now."""
        if (self.since, self.until, self.coauthored) != (since, until, coauthored):
            self.since, self.until, self.coauthored = since, until, coauthored
            self.finished = {code: entry for code, entry in self.finished.items() if entry[1]}
            self.frozen, self.settled = None, 0

    def settle(self) -> None:
        """The walk has reached its end: all that is older than its first post is done."""
        self.frozen, self.settled = None, len(self.finished)

    @property
    def done_before(self) -> set[str]:
        """Shortcodes of the walks that reached their end."""
        return set(list(self.finished)[: self.settled])

    def unfinished(self, run: Run) -> list[str]:
        """Finished posts of which a picture is neither there nor refused for good."""
        there = {
            post.file_name.rpartition(".")[0]
            for post in latest(read_rows(run.posts, Post)).values()
            if run.image(post.file_name).is_file()
        }
        rows = [row for row in read_rows(run.rejected, Rejection) if row.stage == "scrape"]
        there |= {name for name, row in latest(rows).items() if not row.reason.endswith(LATER)}
        return [
            code
            for code, (_, count) in self.finished.items()
            if any(f"{code}_{index}" not in there for index in range(1, count + 1))
        ]
