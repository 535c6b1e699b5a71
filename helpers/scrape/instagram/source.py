"""The image source "instagram": an account or single posts, downloaded with instaloader and resumable.

The cursor is saved for each post, before its images are downloaded, and for each page of the timeline, so after a
kill only the interrupted request is repeated. A resumed session starts with the same requests as instaloader's
`get_posts`: the profile page, and the start page for its tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from instaloader import Post, Profile, load_structure

from helpers.config import ScrapeConfig
from helpers.core.run import Run
from helpers.scrape.instagram.account import load_profile, open_timeline
from helpers.scrape.instagram.cursor import Cursor
from helpers.scrape.instagram.download import UrlExpired, fetch
from helpers.scrape.instagram.media import SHORTCODE, Media, read_post
from helpers.scrape.instagram.refusals import VERSION
from helpers.scrape.instagram.session import Session
from helpers.scrape.instagram.timeline import PINNED, Timeline
from helpers.scrape.items import RETRY_NOTE, PermanentRefusal, Source, SourceItem, SourceStopped

TRIES = 3  # per image
MAX_FAILED_DOWNLOADS = 12  # in a row: then the cause is not the images


def list_items(config: ScrapeConfig, run: Run) -> Source:
    """Return the images of an account or of single posts as a Source, which lists them during the download.

    Raises RunError if the run holds another account's posts, or the cookies are unusable.
    """
    walk = Walk(config, run)
    return Source(walk.describe(), walk)


def account_names(config: ScrapeConfig, cursor: Cursor) -> set[str]:
    """Return the account's current and former names in lower case, or an empty set for single posts."""
    names = (config.username, cursor.account, *cursor.names) if config.username else ()
    return {name.lower() for name in names if name}


class Walk:
    """Iterator over the images of an account or of single posts, which resumes at the cursor.

    After a refusal it sends no request.
    """

    def __init__(self, config: ScrapeConfig, run: Run) -> None:
        self.config, self.run = config, run
        self.cursor = Cursor.read(run.cursor)
        self.cursor.set_filters(config.since, config.until, config.coauthored)
        self.cursor.stopped = ""
        self.session = Session(config, self._save_new_page)
        self.timeline: Timeline | None = None
        self.refetched: dict[str, Media] = {}  # the post fetched anew, as its URLs had expired
        self.failures = 0  # failed downloads in a row
        self.refusal: SourceStopped | None = None

    def describe(self) -> str:
        """Return a line that says which posts will be downloaded, or why Instagram refuses."""
        who = "logged in" if self.session.context.is_logged_in else "anonymous"
        how = f"{who}, instaloader {VERSION}"
        if self.config.posts:
            return f"{len(self.config.shortcodes)} posts requested, {how}"
        try:
            with self._recording_stop():
                name = self._profile().username
        except SourceStopped as stop:
            return str(stop)
        return f"@{name}: {self._post_total() or 'some'} posts, {how}"

    def __iter__(self) -> Iterator[SourceItem]:
        """Yield each image as a SourceItem, not yet downloaded. Raises SourceStopped if the walk ends early."""
        if self.refusal:
            raise self.refusal
        self.session.budget.start()
        with self._recording_stop():
            yield from self._walk()
            self.cursor.write(self.run.cursor)

    def _walk(self) -> Iterator[SourceItem]:
        incomplete = self.cursor.unfinished(self.run)
        yield from self._resume_pending()
        if self.config.posts:
            for code in self.config.shortcodes[: self.config.max_posts or None]:
                if code not in self.cursor.finished:
                    yield from self._requested_post(code)
        elif not self._reached_max_posts():
            yield from self._account_posts()
        for code in incomplete:
            self.session.failures = 0  # posts that failed before may fail again
            yield from self._requested_post(code)
        if not self._post_count():
            span = " in that span of time" if self.config.since or self.config.until else ""
            raise SourceStopped(f"there are no posts{span}: check account, posts, since and until")

    def _resume_pending(self) -> Iterator[SourceItem]:
        """Yield the images of the post at which the last run was interrupted. The post is not requested again."""
        if pending := self.cursor.pending:
            context = self.session.context
            media = self.session.request_post(lambda: read_post(load_structure(context, pending)))
            if isinstance(media, Media):  # else saved by another instaloader, and requested again
                yield from self._items_of(media, is_requested=True)

    def _requested_post(self, code: str) -> Iterator[SourceItem]:
        yield from self._items_of(self._fetch_post(code), code, is_requested=True)

    def _fetch_post(self, code: str) -> Media | str:
        self.session.budget.check()
        context = self.session.context
        return self.session.request_post(lambda: read_post(Post.from_shortcode(context, code)))

    def _account_posts(self) -> Iterator[SourceItem]:
        """Yield the images of the account's posts from the saved position on, then of newer posts."""
        if self.timeline is None:
            opened = open_timeline(self._profile(), self.session, self.cursor)
            self.timeline = Timeline(opened, self.cursor)
        for _ in range(2 if self.cursor.frozen else 1):
            yield from self._walk_timeline(self.timeline)
            if self._reached_max_posts():
                return
            self.cursor.mark_complete()

    def _walk_timeline(self, timeline: Timeline) -> Iterator[SourceItem]:
        """Yield the images of the timeline's posts until `max_posts`, `since`, or a post of the last complete walk."""
        self.session.request(lambda: timeline.resume(self.session.context))
        while not self._reached_max_posts():
            self.session.budget.check()
            index = timeline.index
            media = self.session.request_post(timeline.next, lambda at=index: timeline.index > at)
            if media is None:
                break
            if isinstance(media, Media) and timeline.index > PINNED:
                is_older = "" < media.taken_at[:10] < self.config.since
                if is_older or media.code in self.cursor.done_before:
                    break
            if isinstance(media, Media) and media.code in self.cursor.finished:
                timeline.drop_done()
            else:
                yield from self._items_of(media, timeline.current_code)
        timeline.posts = None

    def _is_by_another_account(self, media: Media) -> bool:
        """Return True if a post in the account's timeline was published by another account."""
        if not self.config.username or media.account_id == self.cursor.user_id:
            return False
        return media.account.lower() not in ("", *account_names(self.config, self.cursor))

    def _items_of(
        self, media: Media | str, code: str = "", is_requested: bool = False
    ) -> Iterator[SourceItem]:
        """Yield the images of a post, or one item with the reason for its rejection.

        The post is then marked as finished. `media` is a string with the reason if the post could not be fetched.
        """
        if isinstance(media, str):
            yield self._refused_item(code[:64], 1, media + RETRY_NOTE)
            self._mark_finished(code[:64], "", 1)
        elif not SHORTCODE.fullmatch(media.code):
            yield self._refused_item(media.code[:64], 0, "has an invalid shortcode")
            self._mark_finished(media.code[:64], "", 0)
        elif not self.config.covers(media.taken_at):
            self._mark_finished(media.code, media.taken_at, 0)
        elif self._is_by_another_account(media) and not (self.config.coauthored or is_requested):
            why = f"is a post of @{media.account}: coauthored=True takes it"
            yield self._refused_item(media.code, 1, why)
            self._mark_finished(media.code, media.taken_at, 0)
        else:
            self.cursor.pending = media.structure
            self._save_position()
            for index in range(1, len(media.slides) + 1):
                yield self._image_item(media, index)
            self._mark_finished(media.code, media.taken_at, len(media.slides))
            return
        self._save_position()

    def _image_item(self, media: Media, index: int) -> SourceItem:
        slide = media.slides[index - 1]
        if slide.is_video and not self.config.video_covers:
            return self._refused_item(media.code, index, "is a video")
        return SourceItem(
            name=f"{media.code}_{index}",
            shortcode=media.code,
            index=index,
            load=partial(self._load_image, media, index),
            account=media.account,
            taken_at=media.taken_at,
            url=f"https://www.instagram.com/p/{media.code}/",
            post_caption=media.caption,
            alt_text=slide.alt_text,
            likes=media.likes,
            tries=TRIES,
            progress=self._progress(),
            source_id=f"{media.code} {slide.media_id}" if slide.media_id else "",
        )

    def _refused_item(self, code: str, index: int, why: str) -> SourceItem:
        load = partial(_refuse, why)
        return SourceItem(f"{code}_{index}", code, index, load, progress=self._progress())

    def _mark_finished(self, code: str, taken_at: str, count: int) -> None:
        self.cursor.pending = None
        self.cursor.finished[code] = (taken_at[:10], count)

    def _load_image(self, media: Media, index: int) -> bytes:
        """Return the bytes of image `index` of a post. If its URL has expired, the post is requested once more."""
        with self._recording_stop():
            try:
                content = self._fetch(self.refetched.get(media.code, media), index)
            except UrlExpired:
                if media.code in self.refetched:
                    raise
                refetched = self._fetch_post(media.code)
                if isinstance(refetched, str):
                    raise ValueError(refetched) from None
                self.refetched = {media.code: refetched}
                content = self._fetch(refetched, index)
            self.failures = 0
            return content

    def _fetch(self, media: Media, index: int) -> bytes:
        if index > len(media.slides):
            raise PermanentRefusal("is no longer part of its post")
        if self.failures >= MAX_FAILED_DOWNLOADS:
            raise SourceStopped(
                f"the last {MAX_FAILED_DOWNLOADS} downloads failed: check the network, then run 01_scrape again"
            )
        url, max_bytes = media.slides[index - 1].url, self.config.max_image_mb * 10**6
        open_session = self.session.context.get_anonymous_session
        try:
            return fetch(url, open_session, max_bytes, self.config.max_image_s)
        except PermanentRefusal:
            raise
        except ValueError:
            self.failures += 1
            raise

    @contextmanager
    def _recording_stop(self) -> Iterator[None]:
        """Save the reason of a SourceStopped in the cursor, and raise the exception again."""
        try:
            yield
        except SourceStopped as stop:
            self.refusal, self.cursor.stopped = stop, str(stop)
            self.cursor.write(self.run.cursor)
            raise

    def _profile(self) -> Profile:
        return load_profile(self.config.username, self.session, self.cursor, self.run)

    def _save_new_page(self) -> None:
        """Save the cursor if a page of the timeline was fetched since the last save. Called before each request."""
        if self.timeline and self.timeline.posts and self.timeline.has_new_page:
            self._save_position()

    def _save_position(self) -> None:
        if self.timeline and self.timeline.posts:
            self.cursor.frozen = self.timeline.position
        self.cursor.write(self.run.cursor)

    def _reached_max_posts(self) -> bool:
        return 0 < self.config.max_posts <= self._post_count()

    def _post_count(self) -> int:
        """Return how many finished posts count towards `max_posts`: those within the settings' dates."""
        return sum(self.config.covers(day) for day, n in self.cursor.finished.values() if n)

    def _post_total(self) -> int | None:
        node = (self.cursor.profile or {}).get("node", {})
        return node.get("media_count") or node.get("all_media_count")

    def _progress(self) -> str:
        wanted = len(self.config.shortcodes) or self._post_total()
        total = min(filter(None, (self.config.max_posts, wanted)), default=None)
        number = min(self._post_count() + 1, total or self._post_count() + 1)
        return f"post {number}{f' of {total}' if total else ''}, {self.session.budget}"


def _refuse(why: str) -> bytes:
    raise PermanentRefusal(why)
