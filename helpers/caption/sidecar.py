"""Captioner: what the .txt beside an image says."""

from helpers.records import Caption, Post
from helpers.run import Run


def caption_image(run: Run, post: Post) -> Caption:
    """The text of the image's .txt, or a row that says there is none."""
    path = run.sidecar(post.file_name)
    if not path.is_file():
        return Caption(post.file_name, "", f"failed: no .txt beside {post.file_name}", "sidecar")
    text = " ".join(path.read_text(encoding="utf-8").split())
    status = "ok" if text else f"failed: {path.name} is empty"
    return Caption(post.file_name, text, status, "sidecar")
