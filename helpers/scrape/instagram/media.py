"""Convert a post that instaloader fetched into a Media object, which lists the post's images and videos."""

import re
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from instaloader import Post, get_json_structure

SHORTCODE = re.compile(r"[A-Za-z0-9_-]{5,64}")
IMAGE, VIDEO, CAROUSEL = 1, 2, 8  # a media_type


@dataclass(frozen=True)
class Slide:
    """One image or video of an Instagram post."""

    url: str  # of the widest rendition; for a video, of its cover image
    is_video: bool
    alt_text: str
    media_id: str = ""  # Instagram's media id, stable when earlier slides are deleted


@dataclass(frozen=True)
class Media:
    """An Instagram post: owner, date, caption, likes and slides.

    `instaloader.load_structure` rebuilds the post from `structure` without a request.
    """

    code: str
    account: str  # the owner; a coauthored post may be in another account's timeline
    account_id: str
    taken_at: str  # ISO 8601, UTC; empty if unknown
    caption: str
    likes: int | None
    slides: tuple[Slide, ...]
    structure: dict[str, Any]


def read_post(post: Post) -> Media:
    """Convert an instaloader Post into a Media object, without a request. Raises KeyError or the like if unreadable."""
    structure = get_json_structure(post)
    node = structure["node"]
    owner = node.get("owner") or {}
    return Media(
        code=str(post.shortcode),
        account=str(owner.get("username") or ""),
        account_id=str(owner.get("id") or ""),
        taken_at=post.date_local.astimezone(UTC).isoformat() if post.date_local.timestamp() else "",
        caption=post.caption or "",
        likes=post.likes,
        slides=tuple(_slides(post, node.get("iphone_struct") or node)),
        structure=structure,
    )


def _slides(post: Post, media: dict[str, Any]) -> list[Slide]:
    parts = media.get("carousel_media") or [media]
    if "image_versions2" in parts[0]:
        return [_slide(part) for part in parts]
    if post.typename == "GraphSidecar":  # a format that instaloader knows and this module does not
        return [Slide(part.display_url, part.is_video, "") for part in post.get_sidecar_nodes()]
    return [Slide(post.url, post.is_video, "")]


def _slide(part: dict[str, Any]) -> Slide:
    candidates = (part.get("image_versions2") or {}).get("candidates") or [{}]
    widest = max(candidates, key=lambda candidate: candidate.get("width") or 0)
    url, is_video = str(widest.get("url") or ""), part.get("media_type") == VIDEO
    alt_text, media_id = part.get("accessibility_caption"), part.get("pk") or part.get("id")
    return Slide(url, is_video, str(alt_text or ""), str(media_id or ""))


def is_complete_post(node: Any) -> bool:
    """Return True if a timeline entry already contains the post's images, as entries do when logged in."""
    return isinstance(node, dict) and any(map(node.get, ("carousel_media", "image_versions2")))


def fill_missing_fields(node: dict[str, Any]) -> dict[str, Any]:
    """Return a timeline post with defaults for the fields that instaloader requires and Instagram left out."""
    kind = VIDEO if node.get("video_versions") else IMAGE
    kind = CAROUSEL if node.get("carousel_media") else kind
    unneeded = {"pk": 0, "media_type": kind, "taken_at": 0, "has_liked": False, "like_count": None}
    user = {"is_private": False, "full_name": "", "profile_pic_url": ""} | (node.get("user") or {})
    filled = {**unneeded, **node, "user": user}
    if not {"pk", "username"} <= user.keys():
        del filled["user"]
    return filled
