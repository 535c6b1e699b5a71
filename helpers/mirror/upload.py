"""A run's mirror on Google Drive, written by a background thread while work continues on the local disk.

Small files go into archives under one index (archives.py); a checkpoint or a model is copied as a folder, its manifest
last. A file counts as mirrored once every byte was read back from Drive and its upload has ended, and an old version
is deleted only after the new one is mirrored.
"""

import hashlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import ExitStack, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from helpers.core.files import MANIFEST, find_corruption, locked, read_json, sha256, write_text
from helpers.mirror.archives import ArchiveSet, find_unmirrorable, list_small, parents_of
from helpers.mirror.drive import CHUNK, Drive, NotMirrored, explain, format_bytes
from helpers.mirror.index import Folder, backup_name, is_hidden, is_of_series, newest_first

log = logging.getLogger(__name__)
MIN_CHECKPOINTS = 2  # on Drive
RETRY_S = 60.0
POLL_S, HANG_S = 1.0, 600.0  # of waiting for a Drive that does not answer
OWNER = "machine.txt"  # on Drive and, hidden, in the run: the machine whose work the mirror follows


class Mirror:
    """The mirror of a run's folder on Drive. A background thread writes it.

    In the top folders `folder_roots`, a folder with a manifest is copied as a whole. Files that match a glob pattern in
    `skip` are not mirrored.
    """

    def __init__(self, source: Path, drive: Drive, folder_roots: set[str], skip: set[str]) -> None:
        self.source, self.drive, self.folder_roots, self.skip = source, drive, folder_roots, skip
        self.archives: ArchiveSet | None = None  # read from Drive by the first round
        self.is_outdated = False  # another machine may have changed what is on Drive
        self.faults: list[NotMirrored] = []  # of files here, found by the last look
        self.broken: Set[str] = frozenset()  # files and folders whose copies on Drive stay
        self.problem = ""
        self._asked = self._done = 0
        self._turn = threading.Condition()
        self._round = threading.Lock()
        self._thread: threading.Thread | None = None

    def schedule(self) -> int:
        """Schedule a background sync, and return its ticket number. Calls made before the sync starts share it."""
        with self._turn:
            self._asked += 1
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
                self._thread.start()
            self._turn.notify_all()
            return self._asked

    def flush(self) -> str:
        """Sync now, wait until every file is read back, and return an error line, or "" on success."""
        self.drive.verified = set()
        self.drive.heard_at = time.monotonic()
        ticket = self.schedule()
        with self._turn:
            while not self._turn.wait_for(lambda: self._done >= ticket, POLL_S):
                if time.monotonic() - self.drive.heard_at > HANG_S:
                    return (
                        f"it has not answered for {HANG_S / 60:.0f} minutes: mount it again, "
                        "then run sync(here)"
                    )
            return self.problem

    def _work(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(
                    lambda: self._asked > self._done, RETRY_S if self.problem else None
                )
                ticket = self._asked
            problem = self._try(partial(self._copy, ticket))
            if problem and problem != self.problem:
                log.warning("%s: %s. Work continues on this machine's disk", self.source, problem)
            with self._turn:
                self.problem = problem
                if problem or self._asked == ticket:
                    self._done = ticket
                self._turn.notify_all()

    def _try(self, act: Callable[[], None]) -> str:
        try:
            with self._round:
                act()
        except (OSError, NotMirrored) as error:
            return explain(error)
        except Exception as error:  # or the thread would die silently
            log.exception("the mirror of %s", self.source)
            return f"the mirror failed ({error!r}): copy {self.source} by hand"
        return ""

    def _copy(self, ticket: int) -> None:
        self._require_owner()
        here, found = self._scan()
        failed = self.archives.copy(found, self._on_drive() | here, self.broken)
        problems: list[Exception] = [*failed, *self.faults]
        for number, name in enumerate(newest_first(here)):
            if number and self._asked > ticket:
                return  # the later sync copies the older folders
            try:
                self._copy_folder(name, here[name])
            except (OSError, NotMirrored) as error:
                problems.append(error)
        self._prune(here)
        if problems:
            raise problems[0]

    def _scan(self) -> tuple[dict[str, Folder], dict]:
        if self.archives is None or self.is_outdated:
            self.is_outdated, self.drive.verified = False, set()
            self.archives = ArchiveSet(self.source, self.drive)
        self.faults = []
        here: dict[str, Folder] = {}
        skipped = {p.relative_to(self.source) for word in self.skip for p in self.source.glob(word)}
        # folders before small files: no checkpoint may be ahead of its log
        for path in sorted(
            p for top in self.folder_roots for p in (self.source / top).rglob(MANIFEST)
        ):
            name = path.parent.relative_to(self.source)
            if is_hidden(name) or not skipped.isdisjoint(name.parents):
                continue
            with suppress(FileNotFoundError):  # deleted meanwhile
                try:
                    size = sum(entry["size"] for entry in read_json(path).values())
                    here[name.as_posix()] = Folder(sha256(path), path.stat().st_mtime_ns, size)
                except (AttributeError, KeyError, TypeError, ValueError):
                    self.faults.append(
                        NotMirrored(f"{find_corruption(path.parent)}: move that folder away")
                    )
                    skipped.add(name)
        small = list_small(self.source, {*here, *(name.as_posix() for name in skipped)})
        small = {name: stat for name, stat in small.items() if not self._is_late(name, small)}
        why = find_unmirrorable(self.source, small)
        self.faults += [NotMirrored(f"{words}, then run sync(here)") for words in why.values()]
        self.broken = why.keys()
        return here, {n: s for n, s in small.items() if not {n, *parents_of(n)} & self.broken}

    def _is_late(self, name: str, small: dict) -> bool:
        # its folder was completed during the listing: it is left to the next sync
        is_top = name.split("/")[0] in self.folder_roots
        return is_top and any(f"{folder}/{MANIFEST}" in small for folder in parents_of(name))

    def _on_drive(self) -> dict[str, Folder]:
        return self.archives.index.folders

    # folders

    def _copy_folder(self, name: str, folder: Folder) -> None:
        if (name, folder.sha256) in self.drive.verified:
            return
        with ExitStack() as stack:
            # held open, since training may delete the folder meanwhile
            files = _open_all(self.source / name, folder, stack)
            if files is None:
                return  # deleted or replaced meanwhile; the next round copies what is there then
            manifest = files[MANIFEST].read()
            listed = json.loads(manifest)
            self._back_up(name, folder, manifest)
            for file, entry in listed.items():
                self.drive.put(
                    f"{name}/{file}", entry["size"], entry["sha256"], partial(_chunks, files[file])
                )
            # last, or a folder cut off half-way would look complete
            self.drive.put_bytes(f"{name}/{MANIFEST}", manifest)
        self.drive.remove(backup_name(name))
        self.drive.verified.add((name, folder.sha256))

    def _back_up(self, name: str, folder: Folder, manifest: bytes) -> None:
        there = self.drive.text(f"{name}/{MANIFEST}").encode()
        if there == manifest:
            return  # complete, or repaired file by file
        if there:
            self.drive.remove(backup_name(name))
            self.drive.rename(name, backup_name(name))
        else:
            self.drive.remove(name)  # incomplete
        if folder.size > self.drive.free_bytes():
            self._make_room(folder.size)
        self.drive.require_room(name, folder.size)

    def _make_room(self, size: int) -> None:
        series = {n: f for n, f in self._on_drive().items() if is_of_series(n)}
        complete = [n for n in newest_first(series, self._here(series)) if self._is_complete(n)]
        # the oldest first; the newest complete one stays
        for old in complete[1:][::-1]:
            if size > self.drive.free_bytes() and not (self.source / old).exists():
                self._delete([old])

    def _here(self, names: Iterable[str]) -> set[str]:
        return {name for name in names if (self.source / name).is_dir()}

    def _prune(self, here: dict[str, Folder]) -> None:
        series = {n: folder for n, folder in self._on_drive().items() if is_of_series(n)}
        if not series.keys() - here.keys():
            return
        for name, folder in series.items():
            files = self._files(name).items()
            is_there = all(self.drive.size(f"{name}/{file}") == e["size"] for file, e in files)
            if not files or not is_there:  # changed on Drive
                self.drive.verified.discard((name, folder.sha256))
        ordered = newest_first(series, here)
        newest = list(islice(filter(self._is_complete, ordered), MIN_CHECKPOINTS))
        if len(newest) == MIN_CHECKPOINTS:
            self._delete([name for name in series if name not in {*here, *newest}])

    def _files(self, name: str) -> dict[str, dict]:
        text = self.drive.text(f"{name}/{MANIFEST}")
        is_listed = hashlib.sha256(text.encode()).hexdigest() == self._on_drive()[name].sha256
        return json.loads(text) if is_listed else {}

    def _is_complete(self, name: str) -> bool:
        key = (name, self._on_drive()[name].sha256)
        if key not in self.drive.verified:
            files = self._files(name)
            if not files or not self.drive.is_uploaded(f"{name}/{MANIFEST}"):
                return False
            for file, entry in files.items():
                if not self.drive.verify(f"{name}/{file}", entry["sha256"]):
                    return False
            self.drive.verified.add(key)
        return True

    def delete_missing(self) -> str:
        """Delete from Drive all folders that no longer exist locally, and return an error line, or "" on success."""

        def act() -> None:
            here, _ = self._scan()
            if gone := [name for name in self._on_drive() if name not in here]:
                self._own()
                self._delete(gone)

        return self._try(act)

    def _delete(self, names: list[str]) -> None:
        if names:
            self._require_owner()
            left = {n: f for n, f in self._on_drive().items() if n not in names}
            self.archives.publish(left)
            for name in names:
                self.drive.remove(name)

    # two machines

    def take_over(self) -> str:
        """Make this machine the mirror's owner, and return an error line, or "" on success."""
        problem = self._try(self._own)
        if problem:  # sync restores and takes over, as on a machine that never owned the mirror
            self._id_path.unlink(missing_ok=True)
        return problem

    def _own(self) -> None:
        with locked(self.source / ".restore.lock"):  # two notebooks may share a machine
            mine = self._read_id() or uuid.uuid4().hex
            self.drive.put_bytes(OWNER, mine.encode())
            write_text(self._id_path, mine)  # last: it says that this machine has owned the mirror

    def _require_owner(self) -> None:
        theirs, mine = self.drive.text(OWNER), self._read_id()
        if not theirs:
            self._own()
        elif not mine:
            raise NotMirrored("this machine has not taken the mirror over yet: run sync(here)")
        elif theirs != mine:
            raise NotMirrored(
                "another machine has taken this run's mirror over: stop one of the two; "
                "to go on with this one, run the cell with restore(here) again"
            )

    @property
    def _id_path(self) -> Path:
        return self.source / f".{OWNER}"

    def _read_id(self) -> str:
        return self._id_path.read_text() if self._id_path.is_file() else ""

    def is_of_this_machine(self) -> bool:
        """Return True if no machine owns the mirror, or if this machine has ever owned it."""
        return bool(self._read_id()) or not self.drive.text(OWNER)

    # reports and take-down

    def words(self) -> str:
        """Describe how much is verified on Drive, as in `up to step 500, 3.4 GB`."""
        if self.archives is None:
            return format_bytes(0)
        known = self.archives.index.parts | self._on_drive()
        known = {n: e for n, e in known.items() if (n, e.sha256) in self.drive.verified}
        series = {n: entry for n, entry in known.items() if is_of_series(n)}
        newest = newest_first(series, self._here(series))[:1]
        step = "".join(f"up to step {int(name.rsplit('-', 1)[-1])}, " for name in newest)
        return f"{step}{format_bytes(sum(entry.size for entry in known.values()))}"

    def purge(self) -> None:
        """Delete from Drive every small file that does not exist locally. Raises NotMirrored or OSError on failure."""
        with self._round:
            here, found = self._scan()
            self.archives.purge(found, self._on_drive() | here)


def _open_all(path: Path, folder: Folder, stack: ExitStack) -> dict[str, BinaryIO] | None:
    what = find_corruption(path)
    try:
        manifest = (path / MANIFEST).read_bytes()
        if hashlib.sha256(manifest).hexdigest() != folder.sha256:
            return None  # replaced meanwhile
        if what:
            raise NotMirrored(f"{what}: move that folder away, then run sync(here)")
        names = (*json.loads(manifest), MANIFEST)
        return {name: stack.enter_context((path / name).open("rb")) for name in names}
    except FileNotFoundError:  # deleted meanwhile
        return None


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while chunk := file.read(CHUNK):
        yield chunk
