"""Which picture is which: a name belongs to a picture's content, not to its place in a listing.

A picture is known again unread while its source gives it the same `source_id`, and else by the hash of its
content. What has new content is a new picture with a name of its own, wherever it lies.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable

from helpers.core.records import Post, latest, read_rows
from helpers.core.run import Run
from helpers.scrape.items import Found

# SHORTCODE_INDEX as Instagram tools name files: eleven characters that no plain word has
INSTAGRAM_NAME = re.compile(
    r"(?=[\w-]*[a-z])(?=\w[\w-]*[A-Z0-9])([A-Z][\w-]{10})_(\d{1,2})", re.ASCII
)
OWN_NAMES = ("instagram", "demo")  # sources whose shortcodes and indices stay with their pictures


class Known:
    """The pictures of a run, and which of them a walk through its source has met.

    listed  what the walk will meet, where that is known: such a picture is not taken for another of its content
    """

    def __init__(self, run: Run, source: str, listed: Iterable[Found] = ()) -> None:
        self.source = source
        self.posts = latest(read_rows(run.posts, Post))
        self.met: set[str] = set()  # file names
        self._stems = {post.stem.lower(): name for name, post in self.posts.items()}
        self._by_id = {post.source_id: name for name, post in self.posts.items() if post.source_id}
        self._by_hash: defaultdict[str, list[str]] = defaultdict(list)
        self._by_place: defaultdict[str, list[str]] = defaultdict(list)
        for name, post in self.posts.items():
            self._by_hash[post.sha256].append(name)
            self._by_place[post.source_name].append(name)
        self._awaited = {self._by_id.get(item.source_id) for item in listed}

    def find_unread(self, item: Found) -> Post | None:
        """The picture that an item is for certain, before it is read."""
        name = self._by_id.get(item.source_id)
        if name is None and self.source in OWN_NAMES:
            name = self._stems.get(item.stem.lower())
            if name and item.source_id and self.posts[name].source_id:
                return None  # a post's picture was taken out, and the next ones moved up
        return self.posts[name] if name and name not in self.met else None

    def find_by_content(self, item: Found, sha256: str) -> Post | None:
        """The picture of this content, the one of the same place first."""
        posts = [
            self.posts[name]
            for name in self._by_hash[sha256]
            if name not in self.met and name not in self._awaited
        ]
        if self.source == "instagram":  # a picture that was posted again is another post's
            posts = [post for post in posts if post.shortcode == item.shortcode]
        return min(posts, key=lambda post: post.source_name != item.name, default=None)

    def free_name(self, item: Found, sha256: str) -> tuple[str, int]:
        """A shortcode and an index that no picture of the run has."""
        shortcode, index = item.shortcode, item.index
        while f"{shortcode}_{index}".lower() in self._stems:
            if INSTAGRAM_NAME.fullmatch(item.stem):
                index += 1  # of the same post
            else:
                shortcode = f"{item.shortcode}-{sha256[:8]}"
                sha256 = hashlib.sha256(sha256.encode()).hexdigest()
        return shortcode, index

    def keep(self, post: Post) -> None:
        """Have a picture that was met, new or known."""
        if (old := self.posts.get(post.file_name)) is None:
            self._stems[post.stem.lower()] = post.file_name
        elif old.source_id != post.source_id:
            self._by_id.pop(old.source_id, None)
        self.posts[post.file_name] = post
        self.met.add(post.file_name)

    def spare(self, source_name: str) -> None:
        """Count as met what lay where something unreadable lies now: it was not replaced by a picture."""
        self.met.update(self._by_place[source_name])

    def missing(self) -> list[Post]:
        """The pictures that were not met."""
        return [post for name, post in self.posts.items() if name not in self.met]
