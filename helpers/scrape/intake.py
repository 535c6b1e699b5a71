"""From a source into the run: each image that passes the gate, and a line on where it came from."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from helpers.colab import keep_soon
from helpers.config import ScrapeConfig
from helpers.errors import RunError
from helpers.records import Post, Rejection, append_row, latest, read_rows, reject
from helpers.run import Run
from helpers.scrape import demo, export, folder, hub, instagram
from helpers.scrape.cursor import Cursor
from helpers.scrape.found import Final, Found, Source, Stopped
from helpers.scrape.gate import Shape, load
from helpers.store import sha256, write_bytes, write_text

LISTED: dict[str, Callable[[ScrapeConfig], list[Found]]] = {
    "demo": demo.find,
    "folder": folder.find,
    "export": export.find,
    "hub": hub.find,
}
KEEP_EVERY_S = 300.0  # copied to Drive, where it is mounted: a machine may be lost in between


@dataclass(frozen=True)
class Taken:
    """What became of one image: its post, or the reason why it was left out."""

    name: str
    post: Post | None
    reason: str = ""
    progress: str = ""  # of the source


def find(config: ScrapeConfig, run: Run) -> Source:
    """What the source has, before any of it is taken.

    Raises RunError where the source has nothing, or the run holds another source's images.
    """
    _refuse_another_source(config, run)
    if config.source == "instagram":
        return instagram.find(config, run)
    items = [item for item in LISTED[config.source](config) if config.covers(item.taken_at)]
    codes = list(dict.fromkeys(item.shortcode for item in items))
    if config.max_posts:
        codes = codes[: config.max_posts]
        wanted = set(codes)
        items = [item for item in items if item.shortcode in wanted]
    return Source(f"{len(items)} files in {len(codes)} posts", items, len(items))


def _refuse_another_source(config: ScrapeConfig, run: Run) -> None:
    if not run.posts.exists():
        return
    before = run.read_config("scrape")
    names = (
        ("source", "dataset_id")
        if config.source == "export"
        else ("source", "folder", "dataset_id")
    )
    for name in names:
        if before.get(name, "") != getattr(config, name):
            raise RunError(
                f"{run.folder} holds images of {name}={before.get(name)!r}, not {getattr(config, name)!r}: "
                "give this source a run name of its own"
            )


def take(config: ScrapeConfig, run: Run, source: Source) -> Iterator[Taken]:
    """Let images in one by one; those that are there already are passed over without being read again.

    An image that is refused gets a line in rejected.jsonl, and the next one follows. Where the source ends
    early, `source.stopped` says why.
    """
    run.write_config("scrape", config)
    known = latest(read_rows(run.posts, Post))
    kept_at = time.monotonic()
    with run.timed("scrape"):
        try:
            for item in source.items:
                taken = _known(run, known, item) or _take_one(config, run, known, item)
                if taken.post:
                    _keep_sidecar(run, taken.post, item.caption)
                yield taken
                if time.monotonic() - kept_at > KEEP_EVERY_S:
                    keep_soon(run)
                    kept_at = time.monotonic()
        except Stopped as stop:
            source.stopped = str(stop)


def _known(run: Run, known: dict[str, Post], item: Found) -> Taken | None:
    post = known.get(item.known_name(known))
    if post and run.image(post.file_name).is_file():
        return Taken(item.name, post, progress=item.progress)
    return None


def _take_one(config: ScrapeConfig, run: Run, known: dict[str, Post], item: Found) -> Taken:
    try:
        if item.shortcode in run.read_taken_down():
            raise Final("was taken down")
        content, shape = load(item, config.max_image_mpx)
    except (ValueError, OSError) as error:
        reject(run.rejected, Rejection(item.name, "scrape", str(error)))
        return Taken(item.name, None, str(error), item.progress)
    post = _post(config, item, content, shape)
    write_bytes(run.image(post.file_name), content)
    if known.get(post.file_name) != post:
        append_row(run.posts, post)
        known[post.file_name] = post
    return Taken(item.name, post, progress=item.progress)


def _post(config: ScrapeConfig, item: Found, content: bytes, shape: Shape) -> Post:
    return Post(
        file_name=f"{item.stem}.{shape.suffix}",
        shortcode=item.shortcode,
        index=item.index,
        account=item.account or config.account,
        taken_at=item.taken_at,
        url=item.url,
        width_px=shape.width_px,
        height_px=shape.height_px,
        sha256=hashlib.sha256(content).hexdigest(),
        permission=config.permission,
        size_bytes=len(content),
        post_caption=item.post_caption,
        alt_text=item.alt_text,
        likes=item.likes,
    )


def _keep_sidecar(run: Run, post: Post, caption: str | None) -> None:
    if caption is None:
        return
    path = run.sidecar(post.file_name)
    if not path.is_file() or path.read_text(encoding="utf-8") != caption:
        write_text(path, caption)


def verify_images(run: Run) -> str:
    """Check every image against its line in posts.jsonl, and say what is there, and why it is not more.

    Raises RunError if there is none at all, or naming the first that is missing or changed.
    """
    posts = list(latest(read_rows(run.posts, Post)).values())
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
    return f"{line}. Stopped early: {stopped}" if stopped else line


def left_out(run: Run) -> list[Rejection]:
    """What 01 refused and has not taken since, with the last reason of each."""
    taken = {row.file_name.rpartition(".")[0] for row in read_rows(run.posts, Post)}
    rows = [row for row in read_rows(run.rejected, Rejection) if row.stage == "scrape"]
    return [row for name, row in latest(rows).items() if name not in taken]


def _nothing(run: Run, refused: list[Rejection], stopped: str) -> str:
    if stopped:
        return f"no image came in: {stopped}"
    if refused:
        return f"none of {len(refused)} files is an image; {_reasons(refused)}: see {run.rejected}"
    return f"{run.posts} is missing: run 01_scrape with run={run.name!r} first"


def _reasons(refused: list[Rejection], most: int = 3) -> str:
    listed = "; ".join(f"{row.file_name} {row.reason}" for row in refused[:most])
    return listed + (f"; and {len(refused) - most} more" if len(refused) > most else "")
