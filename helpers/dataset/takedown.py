"""Remove a post from a run, everywhere: `python -m helpers.dataset.takedown RUN SHORTCODE`.

No other module deletes a user's files. After a kill, a rerun completes the removal: taken_down.txt is written first.
"""

import argparse
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from helpers.core.errors import RunError
from helpers.core.files import read_json, replacing_folder, write_json, write_text
from helpers.core.process import run_command
from helpers.core.records import Post, read_rows, rewrite
from helpers.core.run import IMAGE_SUFFIXES, Run
from helpers.dataset.dataset_card import write_card
from helpers.dataset.dataset_files import copy_without, read_records
from helpers.dataset.history import list_editions, record_edition
from helpers.host import here
from helpers.host.interface import FOLDER
from helpers.mirror.sync import purge_remote, restore

_SUFFIXES = "|".join((*IMAGE_SUFFIXES, "txt"))
SHORTCODE = re.compile(r"[A-Za-z0-9_-]{1,90}")


@dataclass(frozen=True)
class Removal:
    """The result of a take-down: the removed images, and the models that may have been trained on them."""

    shortcode: str
    files: tuple[str, ...]  # names of the images
    seen: tuple[str, ...]  # a sentence for each checkpoint and model that may have used the post
    beyond: tuple[str, ...]  # where its images may still be shown

    def __str__(self) -> str:
        gone = f"{self.shortcode} is taken down: {', '.join(self.files) or 'its images were gone already'}"
        seen = self.seen or ("no checkpoint or model was trained on it",)
        return "\n".join((gone, *seen, *self.beyond))


def remove(run: Run, post: str) -> Removal:
    """Delete a post from a run, locally and on Drive. Raises RunError if the run has no such post.

    post  its shortcode, or the name of an image of it, in the run or at the source
    """
    if here.is_there():
        restore(run)  # files that are on Drive only
    shortcode = _find_shortcode(run, post)
    if not SHORTCODE.fullmatch(shortcode):
        raise RunError(
            f"{post!r} is no post of {run.folder}: give the part of a post's URL after /p/, or an image's name"
        )
    listed = run.read_taken_down()
    files = _find_files(run, shortcode)
    if not files and shortcode not in listed:
        raise RunError(f"{run.folder} has no post {shortcode}: look it up in {run.posts}")
    # with its hashes, so that it is not ingested under another name
    posts = read_rows(run.posts, Post)
    hashes = {post.sha256 for post in posts if post.shortcode == shortcode}
    hashes -= {post.sha256 for post in posts if post.shortcode != shortcode}
    blocked = [shortcode, *hashes]
    if new := [word for word in blocked if word not in listed]:
        write_text(run.taken_down, "".join(f"{word}\n" for word in (*listed, *new)))
    seen = _find_trained_on(run, shortcode)
    _purge(run, shortcode, files)
    purge_remote(run)
    return Removal(shortcode, tuple(sorted(files)), tuple(seen), tuple(_find_other_places(run)))


def _find_shortcode(run: Run, post: str) -> str:
    # an image in the run, or once in it
    if named := re.fullmatch(rf"(.+)_\d+\.({_SUFFIXES})", post):
        return named[1]
    at_source = {p.shortcode for p in read_rows(run.posts, Post) if post and p.source_name == post}
    return at_source.pop() if len(at_source) == 1 else post


def _find_files(run: Run, shortcode: str) -> set[str]:
    rows = {p.file_name for p in read_rows(run.posts, Post) if p.shortcode == shortcode}
    rows |= {r.image for r in read_records(run.dataset) if r.shortcode == shortcode}
    return rows | {path.name for path in _list_files(run, shortcode) if path.suffix != ".txt"}


def _list_files(run: Run, shortcode: str) -> list[Path]:
    is_of_post = re.compile(rf"{re.escape(shortcode)}_\d+\.({_SUFFIXES})").fullmatch
    return [path for path in run.images.glob(f"{shortcode}_*") if is_of_post(path.name)]


def _purge(run: Run, shortcode: str, files: set[str]) -> None:
    shutil.rmtree(run.dataset.with_name(f".{run.dataset.name}.part"), ignore_errors=True)
    if any(record.shortcode == shortcode for record in read_records(run.dataset)):
        record_edition(run)
        with replacing_folder(run.dataset) as tmp_path:
            copy_without(run.dataset, tmp_path, shortcode)
            write_card(tmp_path)
    with suppress(OSError, ValueError, LookupError, TypeError):  # missing or damaged
        losses = read_json(run.image_losses)
        write_json(run.image_losses, [row for row in losses if row["file_name"] not in files])
    for path in (run.captions, run.posts, run.rejected):
        if path.is_file():
            rewrite(path, lambda row: row.get("file_name") not in files)
    if run.taken_back.is_file():
        names = run.taken_back.read_text(encoding="utf-8").split()
        write_text(run.taken_back, "".join(f"{name}\n" for name in names if name not in files))
    shutil.rmtree(run.cache, ignore_errors=True)
    for name in files:
        run.sidecar(name).unlink(missing_ok=True)
        run.image(name).unlink(missing_ok=True)
    for path in _list_files(run, shortcode):
        path.unlink()


def _find_trained_on(run: Run, shortcode: str) -> list[str]:
    known = list_editions(run)
    lines = []
    for folder, text in _list_models(run):
        named = [edition for hash, edition in known.items() if hash in text]
        if any(shortcode in edition.train for edition in named):
            lines.append(
                f"{folder} was trained on it: delete it, and train again without it (begin_again in 04)"
            )
        elif any(shortcode in edition.validation for edition in named):
            lines.append(f"{folder} was measured on it, not trained")
        elif not named:
            lines.append(f"{folder} may have been trained on it: its dataset is not recorded")
    return lines


def _list_models(run: Run) -> list[tuple[Path, str]]:
    swept = (*sorted(run.sweep.glob("trial-*")), *sorted(run.sweep.glob("before-*")))
    found = []
    for place in (run.folder, *swept):
        model = place / run.model.name
        folders = [*sorted((place / run.checkpoints.name).glob("*")), model]
        for folder in filter(Path.is_dir, folders):
            verdict = [place / run.verdict.name] if folder == model else []
            found.append((folder, _read_all((*folder.glob("*.json"), *verdict))))
    return found


def _read_all(paths: Iterable[Path]) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())


def _find_other_places(run: Run) -> list[str]:
    pages = [path for path in (run.export, run.notebooks, run.report_html) if path.exists()]
    lines = [f"{path} may show it: make it again, or delete it" for path in pages]
    if here.is_there() and (here.MIRROR.path / FOLDER / run.name).is_dir():
        lines += filter(None, [here.MIRROR.if_taken_down])
    config = run.read_config("dataset") if run.config("dataset").is_file() else {}
    if pushed_to := config.get("push_to"):
        lines.append(
            f"{pushed_to} on the Hub has it, in its history too: delete that repository, and push again"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m helpers.dataset.takedown", description=__doc__)
    parser.add_argument("run", help="the run's name; its folder is runs/RUN")
    parser.add_argument("shortcode", help="the part of a post's URL after /p/, or an image's name")
    args = parser.parse_args()
    print(remove(Run(args.run), args.shortcode))


if __name__ == "__main__":
    run_command(main)
