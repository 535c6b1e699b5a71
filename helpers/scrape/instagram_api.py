"""The image source "api": a professional Instagram account's own posts, by Instagram's API with Instagram Login.

All posts are listed before an image is loaded; a listing that is stopped goes on at its page on the same day. An image
is known by its media id. Its address holds no token and expires after some days; then its post is asked for again.
Source: https://developers.facebook.com/docs/instagram-platform/instagram-api-with-instagram-login
"""

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime
from functools import cached_property, partial
from typing import Any

import requests

from helpers.config import ScrapeConfig
from helpers.core.errors import RunError
from helpers.core.run import Run
from helpers.scrape.api_token import read_token
from helpers.scrape.graph_api import AGAIN, BAD_OBJECT, NOT_UNDERSTOOD, ApiRefusal, GraphApi
from helpers.scrape.instagram.cursor import Cursor
from helpers.scrape.instagram.download import Downloader, UrlExpired
from helpers.scrape.instagram.session import TimeBudget
from helpers.scrape.items import RETRY_NOTE, Listing, PermanentRefusal, SourceItem, SourceStopped

MEDIA = "id,media_type,media_url,thumbnail_url"
BASIC_FIELDS = f"{MEDIA},permalink,timestamp,username,children{{{MEDIA}}}"
FIELDS = f"{BASIC_FIELDS},shortcode,caption,alt_text,like_count"
PAGES = (100, 25, 6)  # posts; Instagram fails on a page that is too much for it
MAX_LISTED = 10_000  # the newest posts, which is all that the API has
TRIES = 3  # per image
CODE = re.compile(r"[A-Za-z0-9_-]{5,64}")
PERMALINK = re.compile(r"https://www\.instagram\.com/(?:[\w.]+/)?(?:p|reels?|tv)/([\w-]{5,64})/?")
MEDIA_ID = re.compile(r"\d{1,30}(_\d{1,30})?", re.ASCII)

Json = dict[str, Any]


def list_items(config: ScrapeConfig, run: Run) -> Listing:
    """Return an item for each image and video of the account's posts, newest post first.

    Raises RunError without a usable token, if Instagram refuses, or if the run holds another account's posts.
    """
    account = OwnAccount(config, run)
    try:
        return account.list_posts()
    except SourceStopped as stop:
        raise RunError(str(stop)) from None


class OwnAccount:
    """The account that the token is of: it lists the account's posts, and loads their images."""

    def __init__(self, config: ScrapeConfig, run: Run) -> None:
        self.config, self.run = config, run
        self.cursor = Cursor.read(run.cursor)
        self.token = read_token()
        self.api = GraphApi(self.token.value)
        self.downloader = Downloader(config, requests.Session)
        self.fields = FIELDS
        self.asked_again: dict[str, Json] = {}  # the post whose addresses had expired

    @cached_property
    def budget(self) -> TimeBudget:
        return TimeBudget(self.config.max_minutes)  # from the first image on

    def list_posts(self) -> Listing:
        counted = self._identify()
        posts = self._all_posts()
        name = self.cursor.account
        if not posts:
            raise SourceStopped(
                f"@{name} has {counted or 'no'} posts, and the API shows none: allow the token "
                f"instagram_business_basic if there are any, then {AGAIN}"
            )
        notes = [f"@{name} by Instagram's API; {self.token.words}"]
        if len(posts) >= MAX_LISTED:
            notes.append(f"the API has the newest {MAX_LISTED} posts: source='export' has all")
        elif len(posts) < counted:
            notes.append(
                f"Instagram counts {counted} posts and the API lists {len(posts)}: it may leave out promoted and "
                "shared ones, which source='export' has"
            )
        self.cursor.frozen, self.cursor.stopped = None, ""
        self.cursor.write(self.run.cursor)
        items = [
            item
            for number, post in enumerate(posts, 1)
            for item in self._post_items(post, number, len(posts))
        ]
        is_whole = all(_media_id(post) and not _lacks_slides(post) for post in posts)
        is_complete = len(posts) < MAX_LISTED and is_whole
        return Listing(items, notes, is_complete)

    def _identify(self) -> int:
        """Check that the token is of the account that the settings and the run are of; return its number of posts."""
        me = self.api.ask("me", fields="user_id,username,account_type,media_count")
        if isinstance(listed := me.get("data"), list) and listed and isinstance(listed[0], dict):
            me = listed[0]
        name, user_id = str(me.get("username") or ""), str(me.get("user_id") or me.get("id") or "")
        if not name or not user_id:
            raise SourceStopped(NOT_UNDERSTOOD)
        if me.get("account_type") == "PERSONAL":
            raise SourceStopped(
                f"@{name} is a personal account, which the API does not show: switch to a professional one in "
                "Instagram's settings (free), or take your export (source='export')"
            )
        if self.config.username not in ("", name.lower()):
            raise SourceStopped(
                f"INSTAGRAM_ACCESS_TOKEN is of @{name}, and account is {self.config.account!r}: the API shows one's "
                "own account alone; leave account empty, or take that account's token"
            )
        if self.cursor.user_id not in ("", user_id):
            raise SourceStopped(
                f"{self.run.folder} holds posts of @{self.cursor.account}, not of @{name}: "
                "give this account a run name of its own"
            )
        self.cursor.account, self.cursor.user_id = name, user_id
        self.cursor.write(self.run.cursor)
        count = me.get("media_count")
        return count if type(count) is int else 0

    def _all_posts(self) -> list[Json]:
        """Return all posts, newest first. If that is stopped, the pages so far are saved in the cursor for today."""
        today = date.today().isoformat()
        place = self.cursor.frozen or {}
        if place.get("day") != today:
            place = {"day": today, "after": "", "posts": []}
        try:
            self._walk_pages(place)
        except ApiRefusal as refusal:
            if refusal.code not in BAD_OBJECT or not place["after"]:
                self.cursor.frozen = place
                self.cursor.write(self.run.cursor)
                raise
            self.cursor.frozen = None  # its cursor has expired
            place = {"day": today, "after": "", "posts": []}
            self._walk_pages(place)
        posts = enumerate(place["posts"])
        return [*{_media_id(post) or number: post for number, post in posts}.values()]

    def _walk_pages(self, place: Json) -> None:
        """Add the posts from `place` to the end to `place`, page by page."""
        passed = {place["after"]}
        while True:
            posts, after = self._next_page(place["after"])
            place["posts"] += posts
            if not after:
                return
            if after in passed:
                raise SourceStopped(NOT_UNDERSTOOD)  # it would go in circles
            passed.add(after)
            place["after"] = after

    def _next_page(self, after: str, sizes: tuple[int, ...] = PAGES) -> tuple[list[Json], str]:
        """Return the posts behind the cursor `after`, and the cursor of the next page, or "" at the end.

        A page at which Instagram fails is asked for again with the next of `sizes`.
        """
        position = {"after": after} if after else {}
        try:
            answer = self.api.ask("me/media", fields=self.fields, limit=sizes[0], **position)
        except ApiRefusal as refusal:
            if refusal.is_transient and len(sizes) > 1:
                return self._next_page(after, sizes[1:])
            if refusal.code in BAD_OBJECT and not after and self.fields == FIELDS:
                self.fields = BASIC_FIELDS  # it does not know one of the others
                return self._next_page(after)
            raise
        posts, paging = answer.get("data"), answer.get("paging")
        if not isinstance(posts, list):
            raise SourceStopped(NOT_UNDERSTOOD)
        if not isinstance(paging, dict) or not paging.get("next"):
            after = ""
        elif not isinstance(after := (paging.get("cursors") or {}).get("after"), str):
            raise SourceStopped(NOT_UNDERSTOOD)
        return _objects(posts), after

    def _post_items(self, post: Json, number: int, total: int) -> Iterator[SourceItem]:
        code = _shortcode(post) or f"post-{number}"
        url = "" if code == _media_id(post) else f"https://www.instagram.com/p/{code}/"
        likes = post.get("like_count")
        for index, slide in enumerate(_slides(post), 1):
            yield SourceItem(
                name=f"{code}_{index}",
                shortcode=code,
                index=index,
                load=partial(self._load, post, slide),
                account=str(post.get("username") or self.cursor.account),
                taken_at=_time(post.get("timestamp")),
                url=url,
                post_caption=str(post.get("caption") or ""),
                alt_text=str(slide.get("alt_text") or ""),
                likes=likes if type(likes) is int else None,
                tries=TRIES,
                progress=f"post {number} of {total}",
                source_id=_media_id(slide),
            )

    def _load(self, post: Json, slide: Json) -> bytes:
        """Return the bytes of an image, asking for its post once more if the image's address has expired."""
        if not (_media_id(post) and _media_id(slide)):
            raise PermanentRefusal(f"has no id in Instagram's answer{RETRY_NOTE}")
        with self.cursor.recording_stop(self.run.cursor):
            self.budget.check()
            if again := self.asked_again.get(post["id"]):
                slide = _same_slide(again, slide)
            address = self._address(post, slide)
            try:
                return self.downloader.download(address)
            except UrlExpired:
                if again:
                    raise
            again = self._ask_again(post)
            self.asked_again = {post["id"]: again}
            return self.downloader.download(self._address(post, _same_slide(again, slide)))

    def _address(self, post: Json, slide: Json) -> str:
        """Return the address of an image, or of the cover of a video if the settings want it.

        Raises PermanentRefusal if there is none, or the post is another account's.
        """
        owner = str(post.get("username") or self.cursor.account)
        if owner.lower() != self.cursor.account.lower():
            raise PermanentRefusal(f"is a post of @{owner}, and not the account's own")
        if _lacks_slides(post):
            raise PermanentRefusal(f"is a carousel whose images the API does not list{RETRY_NOTE}")
        is_video = slide.get("media_type") == "VIDEO"
        if is_video and not self.config.video_covers:
            raise PermanentRefusal("is a video")
        address = slide.get("thumbnail_url" if is_video else "media_url")
        if not isinstance(address, str) or not address:
            raise PermanentRefusal(
                "has no address, as Instagram withholds what it flags for copyright: take the original from a folder"
            )
        return address

    def _ask_again(self, post: Json) -> Json:
        try:
            again = self.api.ask(post["id"], fields=self.fields)
        except ApiRefusal as refusal:
            if refusal.code in BAD_OBJECT:
                raise PermanentRefusal("is no longer on Instagram") from None
            if refusal.is_transient:
                raise ValueError("has an address that expired, and gets no new one now") from None
            raise
        if not _media_id(again):
            raise ValueError("has an address that expired, and gets no new one now")
        return again


def _media_id(post: Json) -> str:
    """Return the id of a post or slide, or "" if Instagram gives none."""
    media_id = str(post.get("id"))
    return media_id if MEDIA_ID.fullmatch(media_id) else ""


def _objects(values: list[Any]) -> list[Json]:
    """Return a list with {} in place of what is no object, since a slide's number is its position."""
    return [value if isinstance(value, dict) else {} for value in values]


def _slides(post: Json) -> list[Json]:
    """Return the images and videos of a post; a post that is no carousel is its own only one."""
    children = post.get("children")
    listed = children.get("data") if isinstance(children, dict) else None
    slides = _objects(listed) if isinstance(listed, list) else []
    return slides if any(map(_media_id, slides)) else [post]


def _lacks_slides(post: Json) -> bool:
    return post.get("media_type") == "CAROUSEL_ALBUM" and _slides(post) == [post]


def _same_slide(post: Json, slide: Json) -> Json:
    for part in _slides(post):
        if _media_id(part) == _media_id(slide):
            return part
    raise PermanentRefusal("is no longer part of its post")


def _shortcode(post: Json) -> str:
    """Return the post's shortcode, if need be from its permalink, else its media id, or "" without any of them."""
    code, link = str(post.get("shortcode") or ""), PERMALINK.match(str(post.get("permalink")))
    return code if CODE.fullmatch(code) else link[1] if link else _media_id(post)


def _time(value: Any) -> str:
    try:
        return datetime.fromisoformat(value).astimezone(UTC).isoformat()
    except (TypeError, ValueError, OverflowError):
        return ""
