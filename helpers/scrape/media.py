"""What a post of Instagram's holds, read off the data that instaloader fetched."""

import re
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from instaloader import Post, get_json_structure

SHORTCODE = re.compile(r"[A-Za-z0-9_-]{5,64}")
VIDEO = 2  # the media_type


@dataclass(frozen=True)
class Slide:
    """One picture or video of a post."""

    url: str  # of the widest rendition; a video's is its cover picture
    is_video: bool
    alt_text: str


@dataclass(frozen=True)
class Media:
    """A post. `structure` is what `instaloader.load_structure` makes the post of again, without a request."""

    code: str
    account: str
    taken_at: str  # ISO 8601, UTC
    caption: str
    likes: int | None
    slides: tuple[Slide, ...]
    structure: dict[str, Any]

    @property
    def is_well_named(self) -> bool:
        return bool(SHORTCODE.fullmatch(self.code))


def read(post: Post) -> Media:
    """A fetched post. Asks for nothing. Raises what a post of another shape leads to, such as KeyError."""
    structure = get_json_structure(post)
    node = structure["node"]
    return Media(
        code=str(post.shortcode),
        account=str((node.get("owner") or {}).get("username") or ""),
        taken_at=post.date_local.astimezone(UTC).isoformat(),
        caption=post.caption or "",
        likes=post.likes,
        slides=tuple(_slides(post, node.get("iphone_struct") or node)),
        structure=structure,
    )


def _slides(post: Post, media: dict[str, Any]) -> list[Slide]:
    parts = media.get("carousel_media") or [media]
    if "image_versions2" in parts[0]:
        return [_slide(part) for part in parts]
    if post.typename == "GraphSidecar":  # a shape that instaloader knows and this module does not
        return [Slide(part.display_url, part.is_video, "") for part in post.get_sidecar_nodes()]
    return [Slide(post.url, post.is_video, "")]


def _slide(part: dict[str, Any]) -> Slide:
    candidates = (part.get("image_versions2") or {}).get("candidates") or [{}]
    widest = max(candidates, key=lambda candidate: candidate.get("width") or 0)
    url, words = widest.get("url"), part.get("accessibility_caption")
    return Slide(str(url or ""), part.get("media_type") == VIDEO, str(words or ""))
