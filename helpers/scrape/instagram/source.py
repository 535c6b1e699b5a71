"""Source: Instagram by instaloader, an account or single posts, post by post and resumable.

The cursor is written when a post has come, before its pictures are fetched, and when a page of the timeline has
come: a kill repeats the one request that was under way. A session that takes up a walk begins with what
instaloader's `get_posts` begins with, the profile's page, and the start page for its tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from instaloader import Post, Profile, load_structure

from helpers.config import ScrapeConfig
from helpers.core.run import Run
from helpers.scrape.instagram.account import open_timeline, profile_of
from helpers.scrape.instagram.cursor import Cursor
from helpers.scrape.instagram.download import Expired, fetch
from helpers.scrape.instagram.media import Media, read
from helpers.scrape.instagram.refusals import VERSION
from helpers.scrape.instagram.session import Session
from helpers.scrape.instagram.timeline import Timeline
from helpers.scrape.items import LATER, Final, Found, Source, Stopped

TRIES = 3  # for a picture
DOWNLOADS_IN_A_ROW = 12  # that fail: then it is not the pictures


def find(config: ScrapeConfig, run: Run) -> Source:
    """What Instagram has of an account, or the posts asked for.

    Raises RunError where the run holds another account's posts, or the cookies cannot be used.
    """
    walk = Walk(config, run)
    return Source(walk.introduce(), walk)


def owners(config: ScrapeConfig, run: Run) -> set[str]:
    """The names of the account that is walked, present and former; none where single posts alone are asked for."""
    if not config.username:
        return set()
    return _names(config, Cursor.read(run.cursor))


def _names(config: ScrapeConfig, cursor: Cursor) -> set[str]:
    return {name.lower() for name in (config.username, cursor.account, *cursor.names) if name}


class Walk:
    """Posts in the order of the timeline, from where the last walk ended. Once refused, it asks no more."""

    def __init__(self, config: ScrapeConfig, run: Run) -> None:
        self.config, self.run = config, run
        self.cursor = Cursor.read(run.cursor)
        self.cursor.limit(config.since, config.until, config.coauthored)
        self.cursor.stopped = ""
        self.session = Session(config, self._keep_page)
        self.timeline: Timeline | None = None
        self.fresh: dict[str, Media] = {}  # the post asked for again as its pictures had moved
        self.lost = 0  # downloads in a row
        self.refusal: Stopped | None = None

    def introduce(self) -> str:
        """A line on what is to be walked, or why it cannot be."""
        who = "logged in" if self.session.is_logged_in else "anonymous"
        how = f"{who}, instaloader {VERSION}"
        if self.config.posts:
            return f"{len(self.config.shortcodes)} posts asked for, {how}"
        try:
            with self._telling():
                name = self._profile().username
        except Stopped as stop:
            return str(stop)
        return f"@{name}: {self._total() or 'some'} posts, {how}"

    def __iter__(self) -> Iterator[Found]:
        """The pictures. Raises Stopped where they end early."""
        if self.refusal:
            raise self.refusal
        self.session.budget.start()
        with self._telling():
            yield from self._walk()
            self.cursor.write(self.run.cursor)

    def _walk(self) -> Iterator[Found]:
        lacking = self.cursor.unfinished(self.run)
        yield from self._taken_up()
        if self.config.posts:
            wanted = self.config.shortcodes[: self.config.max_posts or None]
            yield from self._named([code for code in wanted if code not in self.cursor.finished])
        elif not self._is_full():
            yield from self._account()
        for code in lacking:
            self.session.lost = 0  # what was lost before may well be lost for ever
            yield from self._named([code])
        if not self._count():
            span = " in that span of time" if self.config.since or self.config.until else ""
            raise Stopped(f"there are no posts{span}: check account, posts, since and until")

    def _taken_up(self) -> Iterator[Found]:
        """The rest of the post that was in hand when the last walk ended; it costs no request."""
        if pending := self.cursor.pending:
            context = self.session.context
            media = self.session.ask_post(lambda: read(load_structure(context, pending)))
            if isinstance(media, Media):  # else another instaloader kept it, and it is asked for
                yield from self._offer(media, is_asked_for=True)

    def _named(self, codes: list[str]) -> Iterator[Found]:
        for code in codes:
            yield from self._offer(self._ask_for(code), code, is_asked_for=True)

    def _ask_for(self, code: str) -> Media | str:
        self.session.budget.check()
        context = self.session.context
        return self.session.ask_post(lambda: read(Post.from_shortcode(context, code)))

    def _account(self) -> Iterator[Found]:
        """The account's posts. A walk that was taken up ends with those published meanwhile."""
        if self.timeline is None:
            opened = open_timeline(self._profile(), self.session, self.cursor)
            self.timeline = Timeline(opened, self.cursor)
        for _ in range(2 if self.cursor.frozen else 1):
            yield from self._stretch(self.timeline)
            if self._is_full():
                return
            self.cursor.settle()

    def _stretch(self, timeline: Timeline) -> Iterator[Found]:
        """Posts until the end, or until those that are done or too old."""
        self.session.ask(lambda: timeline.enter(self.session.context))
        while not self._is_full():
            self.session.budget.check()
            index = timeline.index
            media = self.session.ask_post(timeline.next, lambda at=index: timeline.index > at)
            if media is None or (timeline.is_beyond_pinned and self._ends(media)):
                break
            if isinstance(media, Media) and media.code in self.cursor.finished:
                timeline.skip()
            else:
                yield from self._offer(media, timeline.code_in_hand)
        timeline.leave()

    def _ends(self, media: Media | str) -> bool:
        if isinstance(media, str):
            return False
        is_older = "" < media.taken_at[:10] < self.config.since
        return media.code in self.cursor.done_before or is_older

    def _is_anothers(self, media: Media) -> bool:
        """Whether somebody else published a post that stands in the timeline of the account."""
        if not self.config.username or media.account_id == self.cursor.user_id:
            return False
        return media.account.lower() not in ("", *_names(self.config, self.cursor))

    def _offer(
        self, media: Media | str, code: str = "", is_asked_for: bool = False
    ) -> Iterator[Found]:
        """A post's pictures; it is finished when more is asked for. Words say why it cannot be had."""
        if isinstance(media, str):
            yield self._refused(code[:64], 1, media + LATER)
            self._finish(code[:64], "", 1)
        elif not media.is_well_named:
            yield self._refused(media.code[:64], 0, "has a shortcode that is none")
            self._finish(media.code[:64], "", 0)
        elif not self.config.covers(media.taken_at):
            self._finish(media.code, media.taken_at, 0)
        elif self._is_anothers(media) and not (self.config.coauthored or is_asked_for):
            yield self._refused(
                media.code, 1, f"is a post of @{media.account}: coauthored=True takes it"
            )
            self._finish(media.code, media.taken_at, 0)
        else:
            self.cursor.pending = media.structure
            self._keep_place()
            for index in range(1, len(media.slides) + 1):
                yield self._found(media, index)
            self._finish(media.code, media.taken_at, len(media.slides))
            return
        self._keep_place()

    def _found(self, media: Media, index: int) -> Found:
        slide = media.slides[index - 1]
        if slide.is_video and not self.config.video_covers:
            return self._refused(media.code, index, "is a video")
        return Found(
            name=f"{media.code}_{index}",
            shortcode=media.code,
            index=index,
            load=partial(self._load, media, index),
            account=media.account,
            taken_at=media.taken_at,
            url=f"https://www.instagram.com/p/{media.code}/",
            post_caption=media.caption,
            alt_text=slide.alt_text,
            likes=media.likes,
            tries=TRIES,
            progress=self._progress(),
            source_id=f"{media.code} {slide.number}" if slide.number else "",
        )

    def _refused(self, code: str, index: int, why: str) -> Found:
        load = partial(_refuse, why)
        return Found(f"{code}_{index}", code, index, load, progress=self._progress())

    def _finish(self, code: str, taken_at: str, count: int) -> None:
        self.cursor.pending = None
        self.cursor.finished[code] = (taken_at[:10], count)

    def _load(self, media: Media, index: int) -> bytes:
        """A picture's bytes; where its address is no longer good, the post is asked for once more."""
        with self._telling():
            try:
                content = self._fetch(self.fresh.get(media.code, media), index)
            except Expired:
                if media.code in self.fresh:
                    raise
                self.fresh = {media.code: self._refreshed(media.code)}
                content = self._fetch(self.fresh[media.code], index)
            self.lost = 0
            return content

    def _refreshed(self, code: str) -> Media:
        media = self._ask_for(code)
        if isinstance(media, str):
            raise ValueError(media)
        return media

    def _fetch(self, media: Media, index: int) -> bytes:
        if index > len(media.slides):
            raise Final("is no longer part of its post")
        if self.lost >= DOWNLOADS_IN_A_ROW:
            raise Stopped(
                f"the last {DOWNLOADS_IN_A_ROW} downloads failed: check the network, then run 01_scrape again"
            )
        url, most_bytes = media.slides[index - 1].url, self.config.max_image_mb * 10**6
        open_session = self.session.context.get_anonymous_session
        try:
            return fetch(url, open_session, most_bytes, self.config.max_image_s)
        except Final:
            raise
        except ValueError:
            self.lost += 1
            raise

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Keep in the cursor why the walk stops."""
        try:
            yield
        except Stopped as stop:
            self.refusal, self.cursor.stopped = stop, str(stop)
            self.cursor.write(self.run.cursor)
            raise

    def _profile(self) -> Profile:
        return profile_of(self.config.username, self.session, self.cursor, self.run)

    def _keep_page(self) -> None:
        """Called before each question: a page that has just come is kept."""
        if self.timeline and self.timeline.posts and self.timeline.has_turned:
            self._keep_place()

    def _keep_place(self) -> None:
        if self.timeline and self.timeline.posts:
            self.cursor.frozen = self.timeline.place
        self.cursor.write(self.run.cursor)

    def _is_full(self) -> bool:
        return 0 < self.config.max_posts <= self._count()

    def _count(self) -> int:
        """Posts of the span of time that are done, without those that the settings leave out."""
        return sum(self.config.covers(day) for day, n in self.cursor.finished.values() if n)

    def _total(self) -> int | None:
        node = (self.cursor.profile or {}).get("node", {})
        return node.get("media_count") or node.get("all_media_count")

    def _progress(self) -> str:
        wanted = len(self.config.shortcodes) or self._total()
        most = min(filter(None, (self.config.max_posts, wanted)), default=None)
        number = min(self._count() + 1, most or self._count() + 1)
        return f"post {number}{f' of {most}' if most else ''}, {self.session.budget}"


def _refuse(why: str) -> bytes:
    raise Final(why)
