"""The captioner "sidecar": it reads each image's caption from the .txt file of the same name."""

from collections.abc import Iterator

from helpers.config import CaptionConfig
from helpers.core.errors import RunError
from helpers.core.records import Caption, Post, append_row
from helpers.core.run import Run
from helpers.core.text import read_text


def caption_images(_config: CaptionConfig, run: Run, posts: list[Post]) -> Iterator[Caption]:
    """Caption each image from its .txt file, and yield each row after appending it to captions.jsonl."""
    for post in posts:
        row = caption_image(run, post)
        append_row(run.captions, row)
        yield row


def caption_image(run: Run, post: Post) -> Caption:
    """Return a row with the caption in the image's .txt file, or a failed row if that file is missing or invalid."""
    path = run.sidecar(post.file_name)
    if not path.is_file():
        return Caption(post.file_name, "", "failed: no caption came with it", "sidecar")
    try:
        text = read_text(path)
    except RunError:
        return Caption(post.file_name, "", f"failed: {path.name} is no UTF-8 text", "sidecar")
    status = "ok" if text else f"failed: {path.name} is empty"
    return Caption(post.file_name, text, status, "sidecar")
