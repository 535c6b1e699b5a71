"""From a source into the run: each image that passes the gate, and a line on where it came from."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from importlib import import_module

from helpers.config import ScrapeConfig
from helpers.config.choices import SOURCES
from helpers.core import records
from helpers.core.decode import TO_SRGB
from helpers.core.errors import RunError
from helpers.core.files import sha256, write_bytes, write_text
from helpers.core.permission import permission_for
from helpers.core.records import (
    Post,
    Rejection,
    append_row,
    append_rows,
    latest,
    present,
    read_rows,
    rewrite,
)
from helpers.core.run import Run
from helpers.mirror.sync import sync_soon
from helpers.scrape.identity import Known
from helpers.scrape.instagram.cursor import Cursor
from helpers.scrape.instagram.source import owners as owners_of
from helpers.scrape.items import Final, Found, Listing, Source, Stopped
from helpers.scrape.validate import Shape, load

KEEP_EVERY_S = 300.0  # copied to Drive, where it is mounted: a machine may be lost in between


@dataclass(frozen=True)
class Taken:
    """What became of one image: its post, or the reason why it was left out."""

    name: str
    post: Post | None
    reason: str = ""
    progress: str = ""  # of the source

    def __str__(self) -> str:
        if self.post is None:
            return f"{self.name} {self.reason}"
        size = f"{self.post.width_px} x {self.post.height_px} px"
        return f"{self.name}, {size}, is {self.post.file_name} in this run"


def find(config: ScrapeConfig, run: Run) -> Source:
    """What the source has, before any of it is taken.

    Raises RunError where the source has nothing, or the run holds another source's images.
    """
    run.check_settings(config)
    _refuse_another_source(config, run, ("source",))
    listing = import_module(SOURCES[config.source].module).find(config, run)
    if isinstance(listing, Source):  # walked as it goes, not listed before
        return replace(listing, config=config)
    names = ("dataset_id",) if config.source == "export" else ("folder", "dataset_id")
    _refuse_another_source(config, run, names, listing)
    items = [item for item in listing.items if config.covers(item.taken_at)]
    codes = list(dict.fromkeys(item.shortcode for item in items))
    if config.max_posts:
        codes = codes[: config.max_posts]
        wanted = set(codes)
        items = [item for item in items if item.shortcode in wanted]
    words = "\n".join([f"{len(items)} files in {len(codes)} posts", *listing.notes])
    return Source(words, items, len(items), config=config, listing=listing)


def _refuse_another_source(
    config: ScrapeConfig, run: Run, names: tuple[str, ...], listing: Listing | None = None
) -> None:
    """Refuse to mix sources in a run, told by the settings `names`; a moved folder is known by its files' sizes."""
    if not run.posts.exists():
        return
    before = run.read_config("scrape")
    for name in names:
        if before.get(name, "") != getattr(config, name) and not (
            name == "folder" and listing and _has_moved_to(listing, run)
        ):
            raise RunError(
                f"{run.folder} holds images of {name}={before.get(name)!r}, not {getattr(config, name)!r}: "
                "give this source a run name of its own"
            )


def _has_moved_to(listing: Listing, run: Run) -> bool:
    sizes = {item.size_bytes for item in listing.items}
    posts = present(run.posts)
    return 2 * sum(post.size_bytes in sizes for post in posts) > len(posts) > 0


def take(config: ScrapeConfig, run: Run, source: Source) -> Iterator[Taken]:
    """Let images in one by one; those that are there already are passed over without being read again.

    An image that is refused gets a line in rejected.jsonl, and the next one follows. Where the source ends
    early, `source.stopped` says why; at its end `source.news` says what is new, changed and gone.
    Raises RunError if the source was listed by other settings.
    """
    run.check_settings(config)
    if source.config != config:
        raise RunError(
            "what is offered was listed by other settings: run the cell that lists the source again"
        )
    run.write_config("scrape", config)
    intake = Intake(config, run, source)
    source.corrected = intake.correct_permission() or source.corrected
    kept_at = time.monotonic()
    with run.timed("scrape"):
        try:
            for item in source.items:
                yield intake.take(item)
                if time.monotonic() - kept_at > KEEP_EVERY_S:
                    sync_soon(run)
                    kept_at = time.monotonic()
        except Stopped as stop:
            source.stopped = str(stop)
        else:
            source.news = intake.finish()


class Intake:
    """One walk through a source."""

    def __init__(self, config: ScrapeConfig, run: Run, source: Source) -> None:
        self.config, self.run, self.source = config, run, source
        listed = source.listing.items if source.listing else []
        self.known = Known(run, config.source, listed)
        self.taken_down = set(run.read_taken_down())
        self.rejected = set(read_rows(run.rejected, Rejection))
        self.refused: set[Rejection] = set()  # by this walk
        owners = owners_of(config, run) if config.source == "instagram" else ()
        self.permission = partial(permission_for, config.permission, owners)

    def correct_permission(self) -> str:
        """Have every image under the permission that is said now, from this day on; say what has changed."""
        today = date.today().isoformat()
        corrected = [
            replace(post, permission=now, permission_changed=today)
            for post in self.known.posts.values()
            if post.permission != (now := self.permission(post.account))
        ]
        append_rows(self.run.posts, corrected)
        self.known.posts |= {post.file_name: post for post in corrected}
        if not corrected:
            return ""
        return f"the permission of {len(corrected)} images is {self.config.permission!r} from {today} on"

    def take(self, item: Found) -> Taken:
        """The image that an item is, read only where that is not known."""
        post = self.known.find_unread(item)
        if not post or not self.run.image(post.file_name).is_file():
            try:
                post = self._read(item, post)
            except (ValueError, OSError) as error:
                return self._refuse(item, str(error))
        self._keep(post, item)
        return Taken(item.name, self.known.posts[post.file_name], progress=item.progress)

    def _read(self, item: Found, known: Post | None) -> Post:
        """Read an image and write it if the run has it not. Raises ValueError or OSError why it cannot be had."""
        if item.shortcode in self.taken_down:
            raise Final("was taken down")
        content, shape = load(item, self.config.max_image_mpx)
        digest = hashlib.sha256(content).hexdigest()
        if digest in self.taken_down:
            raise Final("was taken down")
        post = known or self.known.find_by_content(item, digest)
        if post and post.sha256 == digest and self.run.image(post.file_name).is_file():
            return post
        if post is None or not post.file_name.endswith(f".{shape.suffix}"):
            post = self._post(item, digest, shape)
            self.source.new[post.file_name] = item
            for note in shape.notes:
                self.source.notes.setdefault(note, []).append(item.name)
        write_bytes(self.run.image(post.file_name), content)
        return replace(
            post,
            width_px=shape.width_px,
            height_px=shape.height_px,
            sha256=digest,
            size_bytes=len(content),
        )

    def _post(self, item: Found, digest: str, shape: Shape) -> Post:
        shortcode, index = self.known.free_name(item, digest)
        account = item.account or self.config.account
        return Post(
            file_name=f"{shortcode}_{index}.{shape.suffix}",
            shortcode=shortcode,
            index=index,
            account=account,
            taken_at=item.taken_at,
            url=item.url,
            width_px=shape.width_px,
            height_px=shape.height_px,
            sha256=digest,
            permission=self.permission(account),
            post_caption=item.post_caption,
            alt_text=item.alt_text,
            likes=item.likes,
        )

    def _keep(self, post: Post, item: Found) -> None:
        """Keep where an image lies now, and its caption. The image is on the disk already."""
        post = replace(post, source_name=item.name, source_id=item.source_id, gone="")
        if self.known.posts.get(post.file_name) != post:
            append_row(self.run.posts, post)
        self.known.keep(post)
        if item.caption is not None:
            path = self.run.sidecar(post.file_name)
            if not path.is_file() or path.read_text(encoding="utf-8") != item.caption:
                write_text(path, item.caption)

    def _refuse(self, item: Found, reason: str) -> Taken:
        row = Rejection(item.name, "scrape", reason)
        if row not in self.rejected:
            append_row(self.run.rejected, row)
        self.rejected.add(row)
        self.refused.add(row)
        self.known.spare(item.name)
        return Taken(item.name, None, reason, item.progress)

    def finish(self) -> str:
        """Mark what the source has no more, now that all of it was seen; say what is new, changed and gone."""
        source = self.source
        if source.listing:
            passed_over = self._passed_over(source.listing)
            self._forget_refusals({item.name for item in passed_over})
            source.gone |= self._mark_gone(source.listing, passed_over)
        missing = self.known.missing()
        places = {post.source_name for post in missing} | {post.stem for post in missing}
        changed = [i.name for i in source.new.values() if i.name in places or i.stem in places]
        before = sum(not post.gone for post in self.known.posts.values()) - len(source.new)
        words = [f"{len(source.new) - len(changed)} new", f"{before} as before"]
        if changed:
            words.append(f"{len(changed)} changed ({_some(changed)})")
        if source.gone:
            names = _some([post.source_name or post.file_name for post in source.gone.values()])
            words.append(
                f"{len(source.gone)} no longer in the source ({names}): 03 leaves them out until they are back"
            )
        notes = [
            f"{note}: {_some(names)}" for note, names in source.notes.items() if note != TO_SRGB
        ]
        return "; ".join(filter(None, [", ".join(words), *notes, source.corrected]))

    def _passed_over(self, listing: Listing) -> list[Found]:
        """What the settings leave out of what the source has."""
        walked = {id(item) for item in self.source.items}
        return [item for item in listing.items if id(item) not in walked]

    def _forget_refusals(self, passed_over: set[str]) -> None:
        """Drop the refusals of files that are mended or gone."""
        rows = {(row.file_name, row.reason) for row in self.refused}
        rewrite(
            self.run.rejected,
            lambda row: (
                row.get("stage") != "scrape"
                or row["file_name"] in passed_over
                or (row["file_name"], row["reason"]) in rows
            ),
        )

    def _mark_gone(self, listing: Listing, passed_over: list[Found]) -> dict[str, Post]:
        """Mark what was not met, unless it may be among what was passed over or could not be listed."""
        posts = [self.known.find_unread(item) for item in passed_over]
        if not listing.is_whole or None in posts:
            return {}
        self.known.met.update(post.file_name for post in posts)
        today = date.today().isoformat()
        gone = [replace(post, gone=today) for post in self.known.missing() if not post.gone]
        append_rows(self.run.posts, gone)
        marked = {post.file_name: post for post in gone}
        self.known.posts |= marked
        return marked


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def verify_images(run: Run) -> str:
    """Check every image against its line in posts.jsonl, and say what is there, and why it is not more.

    Raises RunError if there is none at all, or naming the first that is missing or changed.
    """
    posts = present(run.posts)
    gone = len(latest(read_rows(run.posts, Post))) - len(posts)
    refused, stopped = left_out(run), Cursor.read(run.cursor).stopped
    if not posts:
        raise RunError(_nothing(run, refused, stopped))
    for post in posts:
        path = run.image(post.file_name)
        if not path.is_file():
            raise RunError(f"{path} is missing though {run.posts} lists it: run 01_scrape again")
        if sha256(path) != post.sha256:
            raise RunError(
                f"{path} changed since it was taken: put the original back, or delete it and run 01 again"
            )
    line = f"{len(posts)} images of {len({post.shortcode for post in posts})} posts in {run.images}"
    line += f", {len(refused)} left out" + (f": {_reasons(refused)}" if refused else "")
    line += f"; {gone} more are no longer in the source" if gone else ""
    return f"{line}. Stopped early: {stopped}" if stopped else line


def left_out(run: Run) -> list[Rejection]:
    """What 01 refused and has not taken since, with the last reason of each."""
    return [row for row in records.left_out(run.posts, run.rejected) if row.stage == "scrape"]


def _nothing(run: Run, refused: list[Rejection], stopped: str) -> str:
    if stopped:
        return f"no image came in: {stopped}"
    if refused:
        return f"none of {len(refused)} files is an image; {_reasons(refused)}: see {run.rejected}"
    return f"{run.posts} is missing: run 01_scrape with run={run.name!r} first"


def _reasons(refused: list[Rejection], most: int = 3) -> str:
    listed = "; ".join(f"{row.file_name} {row.reason}" for row in refused[:most])
    return listed + (f"; and {len(refused) - most} more" if len(refused) > most else "")
