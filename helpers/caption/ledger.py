"""captions.jsonl: appended an image at a time, the last line of a file name counts."""

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from types import ModuleType

from helpers.caption import sidecar
from helpers.caption.check import problems_of
from helpers.caption.stale import find_stale, model_name, standing_words
from helpers.config import CaptionConfig
from helpers.config.choices import CAPTIONERS
from helpers.core.errors import RunError
from helpers.core.records import (
    Caption,
    Post,
    append_row,
    caption_costs,
    latest,
    present,
    read_rows,
)
from helpers.core.run import Run
from helpers.mirror.sync import sync_soon

MIRROR_EVERY = 100  # captions; a lost Colab machine costs no more than these


def captioner_of(config: CaptionConfig) -> ModuleType:
    """The module that captions images, loaded when it is chosen; it appends each row before it yields it."""
    return import_module(CAPTIONERS[config.captioner].module)


def pending(config: CaptionConfig, run: Run) -> list[Post]:
    """The images that want a caption: those without a usable one, and those whose .txt says something new.

    With `recaption` also those whose caption other settings made. A refusal stands until another captioner or
    model is chosen. Raises RunError if 01 has not run.
    """
    run.check_settings(config)
    posts = present(run.require(run.posts, "scrape"))
    captions = latest(read_rows(run.captions, Caption))
    stale = find_stale(config, run) if config.recaption else {}
    return [
        post
        for post in posts
        if post.file_name in stale or _is_wanting(config, run, post, captions.get(post.file_name))
    ]


def _is_wanting(config: CaptionConfig, run: Run, post: Post, caption: Caption | None) -> bool:
    if caption is None:
        return True
    if caption.status == "refused":
        return (caption.captioner, caption.model) != (config.captioner, model_name(config))
    if not caption.is_usable:
        return True
    is_from_text = caption.status == "ok" and config.captioner == caption.captioner == "sidecar"
    return is_from_text and sidecar.caption_image(run, post).caption != caption.caption


def _still_pending(config: CaptionConfig, run: Run, posts: list[Post]) -> list[Post]:
    """Those of the images that want a caption now, whatever was kept since they were listed.

    Raises RunError if they are another run's, or were replaced since.
    """
    wanted = {post.file_name for post in pending(config, run)}
    known = latest(read_rows(run.posts, Post))
    for post in posts:
        if post.file_name not in known or known[post.file_name].sha256 != post.sha256:
            raise RunError(
                f"{post.file_name} is not the image that {run.posts} lists by that name: "
                "run the cell that lists what wants a caption again"
            )
    return [post for post in posts if post.file_name in wanted]


def caption_images(config: CaptionConfig, run: Run, posts: list[Post]) -> Iterator[Caption]:
    """Caption those of the images that want it, each kept as soon as it is answered.

    What was kept since they were listed is left alone, so a rerun captions only what is missing. An image whose
    caption is made again keeps the old one until there is a new one. Raises RunError
    for images of another run.
    """
    posts = _still_pending(config, run, posts)
    run.write_config("caption", config)
    before = latest(read_rows(run.captions, Caption))
    with run.timed("caption"):
        for number, row in enumerate(captioner_of(config).caption_images(config, run, posts), 1):
            _keep_standing(run, before.get(row.file_name), row)
            yield row
            if number % MIRROR_EVERY == 0:
                sync_soon(run)


def _keep_standing(run: Run, before: Caption | None, row: Caption) -> None:
    """Keep the words that an image had where its new row has none; batches see to their own rows."""
    words = None if row.request else standing_words(before, row)
    is_from_text = row.captioner == "sidecar" and before and before.captioner == "sidecar"
    if words and not is_from_text:  # a .txt that is gone or empty is meant so
        append_row(run.captions, words)


def price(config: CaptionConfig, run: Run, posts: list[Post]) -> str:
    """What captioning these images would cost, in a few lines, before anything is spent."""
    posts = _still_pending(config, run, posts)
    if posts and (ask := getattr(captioner_of(config), "price", None)):
        return ask(config, run, posts)
    return f"{len(posts)} images by {config.captioner}: $0"


def dry_run(config: CaptionConfig, run: Run, posts: list[Post], most: int = 3) -> list[Caption]:
    """The captions of the first images, to be looked at before the others are paid for; asked for where missing."""
    run.check_settings(config)
    first = posts[:most]
    for _ in caption_images(replace(config, mode="now"), run, first):
        pass
    rows = latest(read_rows(run.captions, Caption))
    return [rows[post.file_name] for post in first if post.file_name in rows]


def ask_again(config: CaptionConfig, run: Run, post: Post) -> Caption:
    """Caption one image anew, whatever its row says; the new row counts from now on, unless it has no words."""
    run.check_settings(config)
    before = latest(read_rows(run.captions, Caption)).get(post.file_name)
    *_, row = captioner_of(config).caption_images(replace(config, mode="now"), run, [post])
    if not row.is_usable:
        _keep_standing(run, before, row)
    return row


def edit(run: Run, row: Caption, words: str) -> Caption:
    """Keep a person's words, or their yes to the words there are, as a row of its own beside the captioner's."""
    words = " ".join(words.split())
    if not words:
        raise RunError(f"the caption of {row.file_name} is empty: write what the image shows")
    by = row.captioner if words == row.caption else "person"
    edited = Caption(row.file_name, words, "edited", by, row.model if by != "person" else "")
    append_row(run.captions, edited)
    return edited


def problems(config: CaptionConfig, run: Run) -> dict[str, list[Caption]]:
    """Captions that a person should look at, by what is the matter with them."""
    run.check_settings(config)
    return problems_of(config, run, latest(read_rows(run.captions, Caption)).values())


def verify_captions(run: Run) -> str:
    """Check that each image has a row, and say how many have a caption and what they cost.

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
        raise RunError(_nothing(run, len(posts)))
    usable = {row.file_name for row in captioned}
    missing = sum(not post.gone and name not in usable for name, post in posts.items())
    cost, _ = caption_costs(run.captions)
    paid = f", for ${cost:.4f}" if cost else ""
    return f"{len(captioned)} captions in {run.captions}, {missing} images without one{paid}"


def _nothing(run: Run, count: int) -> str:
    if run.read_config("caption")["captioner"] != "sidecar":
        return (
            f"none of the {count} images has a caption: read the status of each in {run.captions}"
        )
    folder = run.read_config("scrape")["folder"] or "your images"
    return (
        f"none of the {count} images has a caption: put a .txt beside each image in {folder}, "
        "named alike, and run 01_scrape and 02_caption again; or set captioner to 'claude', or to 'blip', which costs "
        "nothing and wants a GPU"
    )
