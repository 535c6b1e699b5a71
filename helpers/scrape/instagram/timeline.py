"""Iterate over an account's posts, newest first, with a position that can be saved and resumed.

It uses instaloader's `NodeIterator.freeze` and `thaw`. Posts that are done are removed from a page before it is
thawed, since without a login each post that the iterator yields costs a request.
"""

import copy
from collections.abc import Collection
from datetime import datetime
from typing import Any

import instaloader
from instaloader import FrozenNodeIterator, NodeIterator, Post

from helpers.scrape.instagram.cursor import Cursor
from helpers.scrape.instagram.media import Media, fill_missing_fields, is_complete_post, read_post

PINNED = 3  # the first posts, which may be older than the following


class Timeline:
    """A resumable iterator over an account's posts, newest first after the pinned posts."""

    def __init__(self, opened: NodeIterator[Post], cursor: Cursor) -> None:
        self.opened, self.cursor = opened, cursor  # `opened` stays unused, as thaw() requires
        self.posts: NodeIterator[Post] | None = None

    def resume(self, context: instaloader.InstaloaderContext) -> None:
        """Continue at the cursor's position, or at the first post if that position is invalid or expired."""
        self.context = context
        try:
            frozen = instaloader.load_structure(context, copy.deepcopy(self.cursor.frozen or {}))
            if datetime.now().timestamp() < (frozen.best_before or 0):
                return self._thaw(frozen)
        except (instaloader.InvalidArgumentException, TypeError, KeyError, AttributeError):
            pass  # saved by another instaloader version
        self._thaw(self.opened.freeze())

    def drop_done(self) -> None:
        """Remove finished posts from the present page, as each would cost a request."""
        self._thaw(self.posts.freeze())

    def _thaw(self, frozen: FrozenNodeIterator) -> None:
        posts = copy.copy(self.opened)
        posts.thaw(_remove_done(frozen, self.cursor.finished, self.cursor.done_before))
        self.posts = posts

    def next(self) -> Media | None:
        """Return the next post of the timeline, or None at the end. Raises instaloader's exceptions."""
        at = self.index
        try:
            post = next(self.posts, None)
        except (KeyError, TypeError):
            if self.index == at or not is_complete_post(self._current_node):
                raise
            node = fill_missing_fields(self._current_node)
            post = Post.from_iphone_struct(self.context, node)
        return read_post(post) if post else None

    @property
    def index(self) -> int:
        """The number of posts passed since the start of the timeline."""
        return self.posts.total_index

    @property
    def current_code(self) -> str:
        """The shortcode of the post that `next` returned last or failed to read."""
        return _code({"node": self._current_node})

    @property
    def _current_node(self) -> Any:
        return self.posts.freeze().remaining_data["edges"][0]["node"]

    @property
    def position(self) -> dict[str, Any]:
        """The state of the iterator as a JSON dict. `resume` continues there, beginning with the post returned last."""
        return instaloader.get_json_structure(self.posts.freeze())

    @property
    def has_new_page(self) -> bool:
        """True if a page of posts was fetched since the cursor's position was saved."""
        kept = (self.cursor.frozen or {}).get("node", {}).get("remaining_data") or {}
        return self.posts.freeze().remaining_data.get("page_info") != kept.get("page_info")


def _remove_done(
    frozen: FrozenNodeIterator, done: Collection[str], done_before: Collection[str]
) -> FrozenNodeIterator:
    """Return the frozen iterator without the posts of its page that are in `done`.

    From the first post in `done_before` on, unless it may be pinned, all posts are removed, and no further page is
    fetched. Without `first_node`, thawing costs no request for it.
    """
    page = frozen.remaining_data
    codes = [_code(edge) for edge in page["edges"]]
    pinned = PINNED if frozen.total_index else min(PINNED, len(codes) - 1)
    places = range(frozen.total_index, frozen.total_index + len(codes))
    ends = [c in done_before and p >= pinned for p, c in zip(places, codes, strict=True)]
    end = ends.index(True) if True in ends else len(codes)
    kept = [
        edge for edge, code in zip(page["edges"][:end], codes, strict=False) if code not in done
    ]
    page = {**page, "edges": kept}
    if end < len(codes):
        page["page_info"] = {**page["page_info"], "has_next_page": False}
    removed = end - len(kept)
    return frozen._replace(
        remaining_data=page, first_node=None, total_index=frozen.total_index + removed
    )


def _code(edge: dict[str, Any]) -> str:
    node = edge["node"]
    return str(node.get("code")) if isinstance(node, dict) else "unknown"
