"""The gate to a run: every image of a source is decoded in full before it is let in."""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from helpers.config import ScrapeConfig
from helpers.errors import RunError
from helpers.records import Post, Rejection, append_row, latest, read_rows, reject
from helpers.run import Run
from helpers.scrape import demo, folder
from helpers.scrape.found import Found
from helpers.store import sha256, write_bytes, write_text

SOURCES: dict[str, Callable[[ScrapeConfig], list[Found]]] = {
    "demo": demo.find,
    "folder": folder.find,
}
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
ORIENTATION, SIDEWAYS = (
    0x0112,
    (5, 6, 7, 8),
)  # the EXIF tag, and its values that swap width and height


@dataclass(frozen=True)
class Taken:
    """What became of one image: its post, or the reason why it was left out."""

    name: str
    post: Post | None
    reason: str = ""


def find(config: ScrapeConfig, run: Run) -> list[Found]:
    """All that the source has, before any of it is taken.

    Raises RunError where the source has nothing, or the run holds another source's images.
    """
    _refuse_another_source(config, run)
    found = SOURCES[config.source](config)
    if config.max_posts:
        wanted = list(dict.fromkeys(item.shortcode for item in found))[: config.max_posts]
        found = [item for item in found if item.shortcode in wanted]
    return found


def _refuse_another_source(config: ScrapeConfig, run: Run) -> None:
    if not run.posts.exists():
        return
    before = run.read_config("scrape")
    for name in ("source", "folder"):
        if before[name] != getattr(config, name):
            raise RunError(
                f"{run.folder} holds images of {name}={before[name]!r}, not {getattr(config, name)!r}: "
                "give this source a run name of its own"
            )


def take(config: ScrapeConfig, run: Run, found: list[Found]) -> Iterator[Taken]:
    """Let images in one by one; those that are there already are passed over without being read again.

    An image that is refused gets a line in rejected.jsonl, and the next one follows.
    """
    run.write_config("scrape", config)
    known = latest(read_rows(run.posts, Post))
    with run.timed("scrape"):
        for item in found:
            taken = _known(run, known, item) or _take_one(config, run, item)
            if taken.post:
                _keep_sidecar(run, taken.post, item.caption)
            yield taken


def _known(run: Run, known: dict[str, Post], item: Found) -> Taken | None:
    post = known.get(item.known_name(known))
    return Taken(item.name, post) if post and run.image(post.file_name).is_file() else None


def _take_one(config: ScrapeConfig, run: Run, item: Found) -> Taken:
    content = item.load()
    try:
        suffix, width_px, height_px = inspect(content, config.max_image_mpx)
    except ValueError as error:
        reject(run.rejected, Rejection(item.name, "scrape", str(error)))
        return Taken(item.name, None, str(error))
    post = Post(
        file_name=f"{item.stem}.{suffix}",
        shortcode=item.shortcode,
        index=item.index,
        account=config.account or item.account,
        taken_at=item.taken_at,
        url=item.url,
        width_px=width_px,
        height_px=height_px,
        sha256=hashlib.sha256(content).hexdigest(),
        permission=config.permission,
    )
    write_bytes(run.image(post.file_name), content)
    append_row(run.posts, post)
    return Taken(item.name, post)


def _keep_sidecar(run: Run, post: Post, caption: str | None) -> None:
    if caption is None:
        return
    path = run.sidecar(post.file_name)
    if not path.is_file() or path.read_text(encoding="utf-8") != caption:
        write_text(path, caption)


def inspect(content: bytes, max_mpx: int) -> tuple[str, int, int]:
    """An image file's suffix, and its width and height as one sees it.

    Decodes it in full: `verify()` passes many a file that fails later.
    Raises ValueError saying why it is no JPEG, PNG or WEBP that can be used.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            image = Image.open(io.BytesIO(content), formats=tuple(SUFFIXES))
        if image.width * image.height > max_mpx * 1e6:
            raise ValueError(f"{image.width} x {image.height} px is more than {max_mpx} megapixels")
        image.load()
    except UnidentifiedImageError:
        raise ValueError("is no JPEG, PNG or WEBP image") from None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"does not decode: {error}") from None
    width_px, height_px = image.size
    if image.getexif().get(ORIENTATION) in SIDEWAYS:
        width_px, height_px = height_px, width_px
    return SUFFIXES[image.format], width_px, height_px


def verify_images(run: Run) -> str:
    """Check every image against its line in posts.jsonl, and say what is there.

    Raises RunError if there is none at all, or naming the first that is missing or changed.
    """
    left_out = [row for row in read_rows(run.rejected, Rejection) if row.stage == "scrape"]
    if left_out and not run.posts.exists():
        raise RunError(
            f"none of {len(left_out)} files is an image; {_reasons(left_out)}: see {run.rejected}"
        )
    posts = latest(read_rows(run.require(run.posts, "scrape"), Post)).values()
    for post in posts:
        path = run.image(post.file_name)
        if not path.is_file():
            raise RunError(f"{path} is missing though {run.posts} lists it: run 01_scrape again")
        if sha256(path) != post.sha256:
            raise RunError(
                f"{path} changed since it was taken: put the original back, or delete it and run 01 again"
            )
    shortcodes = {post.shortcode for post in posts}
    line = (
        f"{len(posts)} images of {len(shortcodes)} posts in {run.images}, {len(left_out)} left out"
    )
    return f"{line}: {_reasons(left_out)}" if left_out else line


def _reasons(left_out: list[Rejection], most: int = 3) -> str:
    listed = "; ".join(f"{row.file_name} {row.reason}" for row in left_out[:most])
    return listed + ("; ..." if len(left_out) > most else "")
