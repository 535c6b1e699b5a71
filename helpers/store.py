"""What must survive a kill: files and folders are written beside their place and renamed into it.

A reader sees the old or the new, never a half. A folder's manifest is written last and names every
file with its size and SHA-256, so a copy that lost something on its way does not verify.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have the disk keep what was written to a file, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(source: Path, target: Path) -> None:
    source.replace(target)
    _sync(target.parent)


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on leaving without an error it takes the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.part{path.suffix}")  # the suffix tells Pillow the format
    yield beside
    _sync(beside)
    _rename(beside, path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    with replacing_file(path) as beside:
        beside.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def append_line(path: Path, line: str) -> None:
    """Add a line to a file and have the disk keep it; a half line that a kill left is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        _cut_half_line(file)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _cut_half_line(file: Any) -> None:
    size = file.seek(0, os.SEEK_END)
    if size == 0 or (file.seek(-1, os.SEEK_END), file.read(1))[1] == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on leaving without an error it gets a manifest and replaces `folder`.

    A kill between the two renames leaves the old one as `.NAME.old`, which `recover_folder` puts back.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    yield beside
    write_manifest(beside)
    old = _old(folder)
    recover_folder(folder)
    if folder.exists():
        _rename(folder, old)
    _rename(beside, folder)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Put back what a kill in `replacing_folder` left aside, or clear it where the new one stands."""
    old = _old(folder)
    if old.exists() and not folder.exists():
        _rename(old, folder)
    shutil.rmtree(old, ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def write_manifest(folder: Path) -> None:
    """Name each file of `folder` with its size and SHA-256; written last, its presence says: complete."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    for path in folder.rglob("*"):
        _sync(path)
    write_json(folder / MANIFEST, files)


def damage(folder: Path) -> str | None:
    """What keeps `folder` from being what its manifest says, or None if it verifies."""
    if not (folder / MANIFEST).is_file():
        return f"{folder} has no {MANIFEST}: its writing did not end"
    for name, entry in read_json(folder / MANIFEST).items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != entry["size"] or sha256(path) != entry["sha256"]:
            return f"{path} is not what {MANIFEST} says"
    return None


def folder_hash(folder: Path) -> str:
    """One SHA-256 for all that a folder's manifest lists."""
    return sha256(folder / MANIFEST)


def mirror(
    source: Path, target: Path, skip: frozenset[str] = frozenset(), *, replace: bool = True
) -> int:
    """Copy files that `target` lacks, and with `replace` those that are newer; return how many.

    Manifests go last. Names beginning with a dot are work in progress and stay behind, and so do
    folders named in `skip`.
    """
    names = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
    names = [name for name in names if _travels(name, skip)]
    names.sort(key=lambda name: name.name == MANIFEST)
    wanted = [
        name
        for name in names
        if not (target / name).is_file() or (replace and _is_newer(source / name, target / name))
    ]
    for name in wanted:
        with replacing_file(target / name) as beside:
            shutil.copy2(source / name, beside)
    return len(wanted)


def _travels(path: Path, skip: frozenset[str]) -> bool:
    return not any(part.startswith(".") or part in skip for part in path.parts)


def _is_newer(path: Path, copy: Path) -> bool:
    ours, theirs = path.stat(), copy.stat()
    return ours.st_size != theirs.st_size or int(ours.st_mtime) > int(theirs.st_mtime)
