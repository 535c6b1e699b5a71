"""Caption the images of a run. captions.jsonl has a row for each answer, and an image's last row counts."""

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from types import ModuleType

from helpers.caption import sidecar
from helpers.caption.check import find_problems
from helpers.caption.stale import find_stale, model_name, restore_caption
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

MIRROR_EVERY = 100  # captions, the most that a lost Colab machine costs


def load_captioner(config: CaptionConfig) -> ModuleType:
    """Import and return the module of the captioner in the settings."""
    return import_module(CAPTIONERS[config.captioner].module)


def pending(config: CaptionConfig, run: Run) -> list[Post]:
    """Return the posts whose image has no usable caption, or whose .txt has changed since it was read.

    With `recaption`, also those with stale captions. A refused image is not retried until another captioner or model
    is chosen. Raises RunError if 01 has not run.
    """
    run.check_settings(config)
    posts = present(run.require(run.posts, "scrape"))
    captions = latest(read_rows(run.captions, Caption))
    stale = find_stale(config, run) if config.recaption else {}
    return [
        post
        for post in posts
        if post.file_name in stale
        or _needs_caption(config, run, post, captions.get(post.file_name))
    ]


def _needs_caption(config: CaptionConfig, run: Run, post: Post, caption: Caption | None) -> bool:
    if caption is None:
        return True
    if caption.status == "refused":
        return (caption.captioner, caption.model) != (config.captioner, model_name(config))
    if not caption.is_usable:
        return True
    is_from_text = caption.status == "ok" and config.captioner == caption.captioner == "sidecar"
    return is_from_text and sidecar.caption_image(run, post).caption != caption.caption


def _still_pending(config: CaptionConfig, run: Run, posts: list[Post]) -> list[Post]:
    """Return the posts that still need a caption. Raises RunError if an image is not this run's, or was replaced."""
    wanted = {post.file_name for post in pending(config, run)}
    known = latest(read_rows(run.posts, Post))
    for post in posts:
        if post.file_name not in known or known[post.file_name].sha256 != post.sha256:
            raise RunError(
                f"{post.file_name} is not the image that {run.posts} lists by that name: "
                "run the cell that lists the images without a caption again"
            )
    return [post for post in posts if post.file_name in wanted]


def caption_images(config: CaptionConfig, run: Run, posts: list[Post]) -> Iterator[Caption]:
    """Caption the images of `posts` that still need a caption, and yield each row after saving it.

    A stale caption stays until there is a new one. Raises RunError for images of another run.
    """
    posts = _still_pending(config, run, posts)
    run.write_config("caption", config)
    before = latest(read_rows(run.captions, Caption))
    with run.timed("caption"):
        for number, row in enumerate(load_captioner(config).caption_images(config, run, posts), 1):
            if not row.request:  # a batch restores captions itself
                restore_caption(run, before.get(row.file_name), row)
            yield row
            if number % MIRROR_EVERY == 0:
                sync_soon(run)


def price(config: CaptionConfig, run: Run, posts: list[Post]) -> str:
    """Return an estimate of what captioning `posts` costs, in a few lines."""
    posts = _still_pending(config, run, posts)
    if posts and (ask := getattr(load_captioner(config), "price", None)):
        return ask(config, run, posts)
    return f"{len(posts)} images by {config.captioner}: $0"


def dry_run(config: CaptionConfig, run: Run, posts: list[Post]) -> list[Caption]:
    """Caption the first three of `posts` and return their rows, for review before paying for the others."""
    run.check_settings(config)
    first = posts[:3]
    list(caption_images(replace(config, mode="now"), run, first))
    rows = latest(read_rows(run.captions, Caption))
    return [rows[post.file_name] for post in first if post.file_name in rows]


def ask_again(config: CaptionConfig, run: Run, post: Post) -> Caption:
    """Caption one image again and return the new row. If there is no new caption, the previous one is restored."""
    run.check_settings(config)
    before = latest(read_rows(run.captions, Caption)).get(post.file_name)
    *_, row = load_captioner(config).caption_images(replace(config, mode="now"), run, [post])
    if not row.is_usable and not row.request:
        restore_caption(run, before, row)
    return row


def edit(run: Run, row: Caption, words: str) -> Caption:
    """Append and return a row with a caption that a person wrote or accepted. Raises RunError if it is empty."""
    words = " ".join(words.split())
    if not words:
        raise RunError(f"the caption of {row.file_name} is empty: write what the image shows")
    by = row.captioner if words == row.caption else "person"
    edited = Caption(row.file_name, words, "edited", by, row.model if by != "person" else "")
    append_row(run.captions, edited)
    return edited


def problems(config: CaptionConfig, run: Run) -> dict[str, list[Caption]]:
    """Return the run's captions with each problem, as {problem: captions}."""
    run.check_settings(config)
    return find_problems(config, run, latest(read_rows(run.captions, Caption)).values())


def verify_captions(run: Run) -> str:
    """Check captions.jsonl, and return a line with the cost and the number of images with and without a caption.

    Raises RunError if a row's image is unknown, or no image has a caption.
    """
    posts = latest(read_rows(run.require(run.posts, "scrape"), Post))
    rows = latest(read_rows(run.require(run.captions, "caption"), Caption))
    for name in rows:
        if name not in posts:
            raise RunError(
                f"{run.captions} captions {name}, which {run.posts} does not list: delete that line"
            )
    captioned = [row for row in rows.values() if row.is_usable]
    if not captioned:
        raise RunError(_explain_no_captions(run, len(posts)))
    usable = {row.file_name for row in captioned}
    missing = sum(not post.gone and name not in usable for name, post in posts.items())
    cost, _ = caption_costs(run.captions)
    paid = f", for ${cost:.4f}" if cost else ""
    return f"{len(captioned)} captions in {run.captions}, {missing} images without one{paid}"


def _explain_no_captions(run: Run, count: int) -> str:
    none = f"none of the {count} images has a caption"
    if run.read_config("caption")["captioner"] != "sidecar":
        return f"{none}: read the status of each in {run.captions}"
    folder = run.read_config("scrape")["folder"] or "your images"
    return (
        f"{none}: put a .txt of the same name next to each image in {folder}, and run 01_scrape and 02_caption again; "
        "or set captioner to 'claude', or to 'blip', which is free and needs a GPU"
    )
