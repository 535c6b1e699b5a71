"""Save a source's valid images in the run, and record each image's origin in posts.jsonl."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from importlib import import_module
from typing import Any

from helpers.config import ScrapeConfig
from helpers.config.choices import SOURCES
from helpers.core import records
from helpers.core.decode import TO_SRGB
from helpers.core.errors import RunError
from helpers.core.files import sha256, write_bytes, write_text
from helpers.core.permission import permission_for
from helpers.core.records import Post, Rejection, append_rows, present, read_rows, rewrite
from helpers.core.run import Run
from helpers.mirror.sync import sync_soon
from helpers.scrape.caption_files import some
from helpers.scrape.identity import KnownImages
from helpers.scrape.instagram.cursor import Cursor
from helpers.scrape.instagram.source import account_names
from helpers.scrape.items import Listing, PermanentRefusal, Source, SourceItem, SourceStopped
from helpers.scrape.validate import load_image

SYNC_EVERY_S = 300.0  # to Drive, where it is mounted: a Colab machine may be lost at any time


@dataclass(frozen=True)
class IngestResult:
    """The result of ingesting one image: its post, or the reason for its rejection."""

    name: str
    post: Post | None
    reason: str = ""
    progress: str = ""  # how far the source is

    def __str__(self) -> str:
        if self.post is None:
            return f"{self.name} {self.reason}"
        size = f"{self.post.width_px} x {self.post.height_px} px"
        return f"{self.name}, {size}, saved as {self.post.file_name}"


def list_items(config: ScrapeConfig, run: Run) -> Source:
    """Open the source that the settings name, and list the source's images without reading them.

    Raises RunError if the source is empty, or the run holds another source's images.
    """
    run.check_settings(config)
    _refuse_another_source(config, run, ("source",))
    listing = import_module(SOURCES[config.source].module).list_items(config, run)
    if isinstance(listing, Source):  # Instagram is listed while it is downloaded
        return replace(listing, config=config)
    names = ("dataset_id",) if config.source == "export" else ("folder", "dataset_id")
    _refuse_another_source(config, run, names, listing)
    if config.source == "folder" and (config.since or config.until):
        listing.notes.append("a folder's files have no dates: since and until do nothing")
    items = [item for item in listing.items if config.covers(item.taken_at)]
    codes = dict.fromkeys(item.shortcode for item in items)
    codes = set(list(codes)[: config.max_posts or None])
    items = [item for item in items if item.shortcode in codes]
    words = "\n".join([f"{len(items)} files in {len(codes)} posts", *listing.notes])
    return Source(words, items, len(items), config=config, listing=listing)


def _refuse_another_source(
    config: ScrapeConfig, run: Run, names: tuple[str, ...], listing: Listing | None = None
) -> None:
    if not run.posts.exists():
        return
    before = run.read_config("scrape")
    for name in names:
        differs = before.get(name, "") != getattr(config, name)
        if differs and not (name == "folder" and listing and _has_moved_to(listing, run)):
            raise RunError(
                f"{run.folder} holds images of {name}={before.get(name)!r}, not {getattr(config, name)!r}: "
                "give this source a run name of its own"
            )


def _has_moved_to(listing: Listing, run: Run) -> bool:
    sizes = {item.size_bytes for item in listing.items}
    posts = present(run.posts)
    return 2 * sum(post.size_bytes in sizes for post in posts) > len(posts) > 0


def ingest(config: ScrapeConfig, run: Run, source: Source) -> Iterator[IngestResult]:
    """Ingest a source's images, and yield one result per image. Unchanged images are not read again.

    A rejected image gets a row in rejected.jsonl. If the source ends early, `source.stopped` says why; at the
    end `source.news` says what is new, changed and gone. Raises RunError if the source was listed with other settings.
    """
    run.check_settings(config)
    if source.config != config:
        raise RunError(
            "the source was listed with other settings: run the cell that lists the source again"
        )
    run.write_config("scrape", config)
    ingestion = Ingestion(config, run, source)
    source.corrected = ingestion.update_permission() or source.corrected
    synced_at = time.monotonic()
    with run.timed("scrape"):
        try:
            for item in source.items:
                yield ingestion.ingest_item(item)
                if time.monotonic() - synced_at > SYNC_EVERY_S:
                    sync_soon(run)
                    synced_at = time.monotonic()
        except SourceStopped as stop:
            source.stopped = str(stop)
        else:
            source.news = ingestion.finish()


class Ingestion:
    """One pass over a source, which ingests new images and then marks those that the source has no longer."""

    def __init__(self, config: ScrapeConfig, run: Run, source: Source) -> None:
        self.config, self.run, self.source = config, run, source
        listed = source.listing.items if source.listing else []
        self.known = KnownImages(run, config.source, listed)
        self.taken_down = set(run.read_taken_down())
        self.rejected = set(read_rows(run.rejected, Rejection))
        self.refused: set[Rejection] = set()  # in this pass
        is_walk = config.source == "instagram"
        owners = account_names(config, Cursor.read(run.cursor)) if is_walk else ()
        self.permission = partial(permission_for, config.permission, owners)

    def update_permission(self) -> str:
        """Set every image's permission to the present setting. Returns a summary, or "" if nothing changed."""
        today = date.today().isoformat()
        corrected = {
            name: replace(post, permission=now, permission_changed=today)
            for name, post in self.known.posts.items()
            if post.permission != (now := self.permission(post.account))
        }
        append_rows(self.run.posts, list(corrected.values()))
        self.known.posts |= corrected
        if not corrected:
            return ""
        return f"the permission of {len(corrected)} images is {self.config.permission!r} from {today} on"

    def ingest_item(self, item: SourceItem) -> IngestResult:
        """Ingest one image, and return the result. The image is not read if it is already known."""
        post = self.known.match_unread(item)
        if not post or not self.run.image(post.file_name).is_file():
            try:
                post = self._read(item, post)
            except (ValueError, OSError) as error:
                return self._reject(item, str(error))
        self._save(post, item)
        return IngestResult(item.name, self.known.posts[post.file_name], progress=item.progress)

    def _read(self, item: SourceItem, known: Post | None) -> Post:
        if item.shortcode in self.taken_down:
            raise PermanentRefusal("was taken down")
        content, shape = load_image(item, self.config.max_image_mpx)
        digest = hashlib.sha256(content).hexdigest()
        if digest in self.taken_down:
            raise PermanentRefusal("was taken down")
        post = known or self.known.match_content(item, digest)
        if post and post.sha256 == digest and self.run.image(post.file_name).is_file():
            return post
        measured = {"sha256": digest, "size_bytes": len(content)}
        measured |= {"width_px": shape.width_px, "height_px": shape.height_px}
        if post and post.file_name.endswith(f".{shape.suffix}"):
            post = replace(post, **measured)
        else:
            post = self._new_post(item, shape.suffix, measured)
            self.source.new[post.file_name] = item
            for note in shape.notes:
                self.source.notes.setdefault(note, []).append(item.name)
        write_bytes(self.run.image(post.file_name), content)
        return post

    def _new_post(self, item: SourceItem, suffix: str, measured: dict[str, Any]) -> Post:
        shortcode, index = self.known.unused_name(item, measured["sha256"])
        account = item.account or self.config.account
        return Post(
            file_name=f"{shortcode}_{index}.{suffix}",
            shortcode=shortcode,
            index=index,
            account=account,
            taken_at=item.taken_at,
            url=item.url,
            permission=self.permission(account),
            post_caption=item.post_caption,
            alt_text=item.alt_text,
            likes=item.likes,
            **measured,
        )

    def _save(self, post: Post, item: SourceItem) -> None:
        post = replace(post, source_name=item.name, source_id=item.source_id, gone="")
        if self.known.posts.get(post.file_name) != post:
            append_rows(self.run.posts, [post])
        self.known.add(post)
        if item.caption is not None:
            path = self.run.sidecar(post.file_name)
            if not path.is_file() or path.read_text(encoding="utf-8") != item.caption:
                write_text(path, item.caption)

    def _reject(self, item: SourceItem, reason: str) -> IngestResult:
        row = Rejection(item.name, "scrape", reason)
        if row not in self.rejected:
            append_rows(self.run.rejected, [row])
        self.rejected.add(row)
        self.refused.add(row)
        self.known.mark_seen_at(item.name)
        return IngestResult(item.name, None, reason, item.progress)

    def finish(self) -> str:
        """Mark the images that are gone from the source, and return a summary of the pass."""
        source = self.source
        if source.listing:
            included = {id(item) for item in source.items}
            excluded = [item for item in source.listing.items if id(item) not in included]
            self._drop_old_rejections({item.name for item in excluded})
            if source.listing.is_complete:
                self._mark_gone(excluded)
        unseen = self.known.unseen()
        places = {post.source_name for post in unseen} | {post.stem for post in unseen}
        changed = [i.name for i in source.new.values() if i.name in places or i.stem in places]
        before = sum(not post.gone for post in self.known.posts.values()) - len(source.new)
        parts = [f"{len(source.new) - len(changed)} new", f"{before} as before"]
        if changed:
            parts.append(f"{len(changed)} changed ({some(changed)})")
        if source.gone:
            names = some(post.source_name or name for name, post in source.gone.items())
            parts.append(
                f"{len(source.gone)} no longer in the source ({names}): 03 leaves them out until they return"
            )
        notes = [
            f"{note}: {some(names)}" for note, names in source.notes.items() if note != TO_SRGB
        ]
        return "; ".join(filter(None, [", ".join(parts), *notes, source.corrected]))

    def _drop_old_rejections(self, excluded: set[str]) -> None:
        kept = {(row.file_name, row.reason) for row in self.refused}

        def keep(row: dict[str, str]) -> bool:
            name = row["file_name"]
            return row.get("stage") != "scrape" or name in excluded or (name, row["reason"]) in kept

        rewrite(self.run.rejected, keep)

    def _mark_gone(self, excluded: list[SourceItem]) -> None:
        posts = [self.known.match_unread(item) for item in excluded]
        if None in posts:  # a file that was not read may be any of the images
            return
        self.known.seen.update(post.file_name for post in posts)
        unseen = [post for post in self.known.unseen() if not post.gone]
        gone = {p.file_name: replace(p, gone=date.today().isoformat()) for p in unseen}
        append_rows(self.run.posts, list(gone.values()))
        self.known.posts |= gone
        self.source.gone |= gone


def verify_images(run: Run) -> str:
    """Check all image files by SHA-256, and return a line with the numbers of images and rejections and the permission.

    Raises RunError if there is no image, or for the first image that is missing or changed.
    """
    posts = present(run.posts)
    gone = len({post.file_name for post in read_rows(run.posts, Post)}) - len(posts)
    refused, stopped = left_out(run), Cursor.read(run.cursor).stopped
    if not posts:
        raise RunError(_explain_no_images(run, refused, stopped))
    for post in posts:
        path = run.image(post.file_name)
        if not path.is_file():
            raise RunError(f"{path} is missing though {run.posts} lists it: run 01_scrape again")
        if sha256(path) != post.sha256:
            raise RunError(
                f"{path} changed since 01_scrape saved it: put the original back, or delete it and run 01 again"
            )
    line = f"{len(posts)} images of {len({post.shortcode for post in posts})} posts in {run.images}"
    line += f", {len(refused)} left out" + (f": {_list_reasons(refused)}" if refused else "")
    line += f"; {gone} more are no longer in the source" if gone else ""
    permissions = sorted({post.permission for post in posts})
    line += f"; permission: {', '.join(permissions)}"
    return f"{line}. Stopped early: {stopped}" if stopped else line


def left_out(run: Run) -> list[Rejection]:
    """Return the last rejection of each image that notebook 01 rejected and did not ingest later."""
    return [row for row in records.left_out(run.posts, run.rejected) if row.stage == "scrape"]


def _explain_no_images(run: Run, refused: list[Rejection], stopped: str) -> str:
    if stopped:
        return f"no image was found: {stopped}"
    if refused:
        return f"none of {len(refused)} files is an image; {_list_reasons(refused)}: see {run.rejected}"
    return f"{run.posts} is missing: run 01_scrape with run={run.name!r} first"


def _list_reasons(refused: list[Rejection], count: int = 3) -> str:
    listed = "; ".join(f"{row.file_name} {row.reason}" for row in refused[:count])
    return listed + (f"; and {len(refused) - count} more" if len(refused) > count else "")
