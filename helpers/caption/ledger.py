"""captions.jsonl: appended an image at a time, the last line of a file name counts."""

from collections.abc import Callable, Iterator

from helpers.caption import sidecar
from helpers.config import CaptionConfig
from helpers.errors import RunError
from helpers.records import Caption, Post, append_row, latest, read_rows
from helpers.run import Run

CAPTIONERS: dict[str, Callable[[Run, Post], Caption]] = {"sidecar": sidecar.caption_image}


def pending(config: CaptionConfig, run: Run) -> list[Post]:
    """The images that want a caption: those without a usable one, and those whose .txt says something new.

    Raises RunError if 01 has not run.
    """
    posts = latest(read_rows(run.require(run.posts, "scrape"), Post)).values()
    captions = latest(read_rows(run.captions, Caption))
    return [post for post in posts if _is_stale(config, run, post, captions.get(post.file_name))]


def _is_stale(config: CaptionConfig, run: Run, post: Post, caption: Caption | None) -> bool:
    if caption is None or not caption.is_usable:
        return True
    return (
        caption.status == "ok"
        and CAPTIONERS[config.captioner](run, post).caption != caption.caption
    )


def caption_images(config: CaptionConfig, run: Run, posts: list[Post]) -> Iterator[Caption]:
    """Caption images one by one, each kept before the next is begun. A rerun captions only what is missing."""
    run.write_config("caption", config)
    with run.timed("caption"):
        for post in posts:
            row = CAPTIONERS[config.captioner](run, post)
            append_row(run.captions, row)
            yield row


def problems(config: CaptionConfig, run: Run) -> dict[str, list[Caption]]:
    """Captions that a person should look at, by what is the matter with them."""
    rows = list(latest(read_rows(run.captions, Caption)).values())
    words = {word.strip().lower() for word in config.banned_words.split(",") if word.strip()}
    usable = [row for row in rows if row.is_usable]
    seen: dict[str, int] = {}
    for row in usable:
        seen[row.caption] = seen.get(row.caption, 0) + 1
    return {
        "no caption": [row for row in rows if not row.is_usable],
        "banned word": [row for row in usable if words & set(row.caption.lower().split())],
        "same words as another": [row for row in usable if seen[row.caption] > 1],
    }


def verify_captions(run: Run) -> str:
    """Check that each image has a row, and say how many have a caption.

    Raises RunError if a row's image is not there, or no image at all has a caption.
    """
    posts = latest(read_rows(run.require(run.posts, "scrape"), Post))
    rows = latest(read_rows(run.require(run.captions, "caption"), Caption))
    for name in rows:
        if name not in posts:
            raise RunError(
                f"{run.captions} captions {name}, which {run.posts} does not list: take that line out"
            )
    captioned = [row for row in rows.values() if row.is_usable]
    if not captioned:
        folder = run.read_config("scrape")["folder"] or "your images"
        raise RunError(
            f"none of the {len(posts)} images has a caption: put a .txt beside each image in {folder}, "
            "named alike, and run 01_scrape and 02_caption again"
        )
    missing = len(posts) - len(captioned)
    return f"{len(captioned)} captions in {run.captions}, {missing} images without one"
