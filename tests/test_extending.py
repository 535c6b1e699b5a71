"""A new source and a new captioner take one file and one line each, as CONTRIBUTING says."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import lines, typed

ROOT = Path(__file__).parent.parent
SOURCE = '''"""Source: squares of one colour."""

import io

from PIL import Image

from helpers.config import ScrapeConfig
from helpers.core.run import Run
from helpers.scrape.items import Found, Listing


def find(config: ScrapeConfig, _run: Run) -> Listing:
    """Three squares."""
    return Listing([Found(colour, colour, 1, lambda c=colour: square(c)) for colour in COLOURS])


def square(colour: str) -> bytes:
    """A PNG of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


COLOURS = ("red", "green", "blue")
'''
CAPTIONER = '''"""Captioner: the colour of the first pixel."""

from collections.abc import Iterator

from PIL import Image

from helpers.config import CaptionConfig
from helpers.core.records import Caption, Post, append_row
from helpers.core.run import Run


def caption_images(_config: CaptionConfig, run: Run, posts: list[Post]) -> Iterator[Caption]:
    """One caption an image."""
    for post in posts:
        with Image.open(run.image(post.file_name)) as image:
            words = f"a square of {image.convert('RGB').getpixel((0, 0))}"
        row = Caption(post.file_name, words, "ok", "pixel")
        append_row(run.captions, row)
        yield row
'''


def put_line(path, before, line):
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, f"{before}{line}\n"))


def test_a_new_source_and_a_new_captioner_are_a_file_and_a_line_each(tmp_path):
    for name in ("helpers", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "helpers/scrape/squares.py").write_text(SOURCE)
    (tmp_path / "helpers/caption/pixel.py").write_text(CAPTIONER)
    choices = tmp_path / "helpers/config/choices.py"
    put_line(choices, "SOURCES = {\n", '    "squares": Source("helpers.scrape.squares"),')
    put_line(choices, "CAPTIONERS = {\n", '    "pixel": Captioner("helpers.caption.pixel"),')
    given = typed({"source": "squares", "captioner": "pixel"})
    command = [sys.executable, "-m", "helpers.batch", "mine", "--only", "01,02", *given]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    captions = {row["caption"] for row in lines(tmp_path / "runs/mine/captions.jsonl")}
    assert captions == {
        "a square of (255, 0, 0)",
        "a square of (0, 128, 0)",
        "a square of (0, 0, 255)",
    }
