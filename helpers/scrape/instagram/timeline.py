"""An account's posts from the newest on, as an iterator that can be kept and taken up again.

instaloader's `NodeIterator.freeze` and `thaw` do it; what is already done is taken out of a page before it is
thawed, as an anonymous visitor pays a request for each post that the iterator gives.
"""

import copy
from collections.abc import Collection
from datetime import datetime
from typing import Any

from instaloader import (
    FrozenNodeIterator,
    InstaloaderContext,
    InvalidArgumentException,
    NodeIterator,
    Post,
    get_json_structure,
    load_structure,
)

from helpers.scrape.instagram.cursor import Cursor
from helpers.scrape.instagram.media import Media, has_pictures, read, with_what_may_be_missing

PINNED = 3  # so many posts at the top may be older than those after them


class Timeline:
    """The posts of an account, newest first but for pinned ones."""

    def __init__(self, opened: NodeIterator[Post], cursor: Cursor) -> None:
        self.opened, self.cursor = opened, cursor  # `opened` stays unused: thaw() wants that
        self.posts: NodeIterator[Post] | None = None

    def enter(self, context: InstaloaderContext) -> None:
        """Stand where the last walk stood; at the top if that was of another login, another version, or long ago."""
        self.context = context
        try:
            frozen = load_structure(context, copy.deepcopy(self.cursor.frozen or {}))
            if datetime.now().timestamp() < (frozen.best_before or 0):
                return self._thaw(frozen)
        except (InvalidArgumentException, TypeError, KeyError, AttributeError):
            pass  # as of another instaloader
        return self._thaw(self.opened.freeze())

    def skip(self) -> None:
        """Pass over what is done on this page."""
        self._thaw(self.posts.freeze())

    def leave(self) -> None:
        self.posts = None

    def _thaw(self, frozen: FrozenNodeIterator) -> None:
        posts = copy.copy(self.opened)
        posts.thaw(_without(frozen, self.cursor.finished, self.cursor.done_before))
        self.posts = posts

    def next(self) -> Media | None:
        """The next post, or None at the end. Raises what instaloader raises."""
        at = self.index
        try:
            post = next(self.posts, None)
        except (KeyError, TypeError):
            if self.index == at or not has_pictures(self._node_in_hand):
                raise
            node = with_what_may_be_missing(self._node_in_hand)
            post = Post.from_iphone_struct(self.context, node)
        return read(post) if post else None

    @property
    def index(self) -> int:
        """How many posts have come, counted from the top."""
        return self.posts.total_index

    @property
    def is_beyond_pinned(self) -> bool:
        return self.index > PINNED

    @property
    def code_in_hand(self) -> str:
        """The shortcode of the post that came last, be it that it could not be read."""
        return _code({"node": self._node_in_hand})

    @property
    def _node_in_hand(self) -> Any:
        return self.posts.freeze().remaining_data["edges"][0]["node"]

    @property
    def place(self) -> dict[str, Any]:
        """Where it stands, as JSON; the post that came last is the first there."""
        return get_json_structure(self.posts.freeze())

    @property
    def has_turned(self) -> bool:
        """Whether a page has come since the place was kept."""
        kept = (self.cursor.frozen or {}).get("node", {}).get("remaining_data") or {}
        return self.posts.freeze().remaining_data.get("page_info") != kept.get("page_info")


def _without(
    frozen: FrozenNodeIterator, done: Collection[str], done_before: Collection[str]
) -> FrozenNodeIterator:
    """A place without the posts of its page that are `done`.

    A post done by a walk that reached its end, unless it may be pinned, says that all after it is done too:
    then no further page is asked for. Without `first_node`, thawing costs no request for it.
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
    passed = end - len(kept)
    return frozen._replace(
        remaining_data=page, first_node=None, total_index=frozen.total_index + passed
    )


def _code(edge: dict[str, Any]) -> str:
    node = edge["node"]
    return str(node.get("code")) if isinstance(node, dict) else "unknown"
