"""Match a source's images to those already in the run, by source_id or by SHA-256.

An image is recognised without reading it while its source gives it the same `source_id`, otherwise by the SHA-256
of its content. New content is a new image with a new file name, whatever its position in the source.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable

from helpers.core.records import Post, latest, read_rows
from helpers.core.run import Run
from helpers.scrape.items import SourceItem

# SHORTCODE_INDEX, as Instagram tools name files: eleven characters, unlike any plain word
INSTAGRAM_NAME = re.compile(
    r"(?=[\w-]*[a-z])(?=\w[\w-]*[A-Z0-9])([A-Z][\w-]{10})_(\d{1,2})", re.ASCII
)
OWN_NAMES = ("instagram", "demo")  # sources whose shortcodes and indices are stable


class KnownImages:
    """The images already in the run, each marked once the present pass over the source has seen it.

    listed  the items still to come, if known: their images are not matched to other items of equal content
    """

    def __init__(self, run: Run, source: str, listed: Iterable[SourceItem] = ()) -> None:
        self.source = source
        self.posts = latest(read_rows(run.posts, Post))
        self.seen: set[str] = set()  # file names
        self._stems = {post.stem.lower(): name for name, post in self.posts.items()}
        self._by_id = {post.source_id: name for name, post in self.posts.items() if post.source_id}
        self._by_hash: defaultdict[str, list[str]] = defaultdict(list)
        self._by_place: defaultdict[str, list[str]] = defaultdict(list)
        for name, post in self.posts.items():
            self._by_hash[post.sha256].append(name)
            self._by_place[post.source_name].append(name)
        self._expected = {self._by_id.get(item.source_id) for item in listed}

    def match_unread(self, item: SourceItem) -> Post | None:
        """Return the run's unseen post with the item's source_id or stable name, or None."""
        name = self._by_id.get(item.source_id)
        if name is None and self.source in OWN_NAMES:
            name = self._stems.get(item.stem.lower())
            if name and item.source_id and self.posts[name].source_id:
                return None  # an image was removed from the carousel, and the next ones moved up
        return self.posts[name] if name and name not in self.seen else None

    def match_content(self, item: SourceItem, sha256: str) -> Post | None:
        """Return an unseen post of the run with this SHA-256, or None. A post with the item's name comes first."""
        known = self._by_hash[sha256]
        names = [name for name in known if name not in self.seen and name not in self._expected]
        posts = [self.posts[name] for name in names]
        if self.source == "instagram":  # an image posted again belongs to the other post
            posts = [post for post in posts if post.shortcode == item.shortcode]
        return min(posts, key=lambda post: post.source_name != item.name, default=None)

    def unused_name(self, item: SourceItem, sha256: str) -> tuple[str, int]:
        """Return the item's (shortcode, index), changed if an image of the run already has that name."""
        shortcode, index = item.shortcode, item.index
        while f"{shortcode}_{index}".lower() in self._stems:
            if INSTAGRAM_NAME.fullmatch(item.stem):
                index += 1  # of the same post
            else:
                shortcode = f"{item.shortcode}-{sha256[:8]}"
                sha256 = hashlib.sha256(sha256.encode()).hexdigest()
        return shortcode, index

    def add(self, post: Post) -> None:
        """Add or replace the post of an image, and mark the image as seen."""
        if (old := self.posts.get(post.file_name)) is None:
            self._stems[post.stem.lower()] = post.file_name
        elif old.source_id != post.source_id:
            self._by_id.pop(old.source_id, None)
        self.posts[post.file_name] = post
        self.seen.add(post.file_name)

    def mark_seen_at(self, source_name: str) -> None:
        """Mark the posts of an unreadable source file as seen, so that the file does not count as deleted."""
        self.seen.update(self._by_place[source_name])

    def unseen(self) -> list[Post]:
        """Return the run's posts that the present pass over the source has not seen."""
        return [post for name, post in self.posts.items() if name not in self.seen]
