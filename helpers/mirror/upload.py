"""A run's mirror on Google Drive, kept in the background while work goes on on the local disk.

Small files travel in parts under one index (parts.py); a checkpoint or a model keeps its shape, its manifest
written last. Nothing counts as kept before every byte was read back from Drive and its upload had ended, and
nothing old goes before the new is kept.
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

from helpers.core.files import MANIFEST, find_corruption, read_json, sha256, write_text
from helpers.mirror.archives import Parts, above, list_small, unfit
from helpers.mirror.drive import CHUNK, Drive, NotKept, Uploads, amount, explain
from helpers.mirror.index import Folder, aside, is_hidden, is_of_series, newest_first

log = logging.getLogger(__name__)
KEPT_AT_LEAST = 2  # checkpoints on Drive
RETRY_S = 60.0
POLL_S, HANG_S = 1.0, 600.0  # of waiting for a Drive that gives no sign of life
OWNER = "machine.txt"  # on Drive and, hidden, in the run: the machine whose work the mirror follows


class Mirror:
    """One run's folder and its mirror. `wake` never waits; `wait` does, and returns what is in the way."""

    def __init__(
        self, source: Path, drive: Drive, whole: frozenset[str], skip: frozenset[str]
    ) -> None:
        """`whole`: top folders in which folders with a manifest keep their shape; `skip`: what stays here."""
        self.source, self.drive, self.whole, self.skip = source, drive, whole, skip
        self.uploads = Uploads(drive)
        self.parts: Parts | None = None  # read from Drive by the first round
        self.is_outdated = False  # what is on Drive may have changed by another's hand
        self.faults: list[NotKept] = []  # of what is here, found by the last look
        self.broken: Set[str] = (
            frozenset()
        )  # files and folders whose copies on Drive stay as they are
        self.problem = ""
        self._asked = self._done = 0
        self._turn = threading.Condition()
        self._round = threading.Lock()
        self._thread: threading.Thread | None = None

    def wake(self) -> int:
        """Have what is new copied soon; calls before that has begun are as one."""
        with self._turn:
            self._asked += 1
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
                self._thread.start()
            self._turn.notify_all()
            return self._asked

    def wait(self) -> str:
        """Have all copied and all read back once more; return what is in the way, or nothing."""
        self.uploads.good = set()
        self.drive.heard_at = time.monotonic()
        ticket = self.wake()
        with self._turn:
            while not self._turn.wait_for(lambda: self._done >= ticket, POLL_S):
                if time.monotonic() - self.drive.heard_at > HANG_S:
                    return (
                        f"it has not answered for {HANG_S / 60:.0f} minutes: mount it again, "
                        "then run keep(here)"
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
                log.warning("%s: %s. Work goes on on this machine's disk", self.source, problem)
            with self._turn:
                self.problem = problem
                if problem or self._asked == ticket:
                    self._done = ticket
                self._turn.notify_all()

    def _try(self, act: Callable[[], None]) -> str:
        """Do something on Drive; return what was in the way, or nothing."""
        try:
            with self._round:
                act()
        except OSError as error:
            return explain(error)
        except NotKept as error:
            return str(error)
        except Exception as error:  # a thread that dies would be silent
            log.exception("the mirror of %s", self.source)
            return f"the mirror failed ({error!r}): copy {self.source} by hand"
        return ""

    def _copy(self, ticket: int) -> None:
        """Bring all to Drive, the newest folder first; stop after it if something newer is here."""
        self._require_owner()
        here, found = self._look()
        lost = self.parts.copy(found, self._earlier() | here, self.broken)
        problems: list[Exception] = [*lost, *self.faults]
        for number, name in enumerate(newest_first(here)):
            if number and self._asked > ticket:
                return
            try:
                self._copy_folder(name, here[name])
            except (OSError, NotKept) as error:
                problems.append(error)
        self._prune(here)
        if problems:
            raise problems[0]

    def _look(self) -> tuple[dict[str, Folder], dict]:
        """The folders and the small files that are here. Folders first: none is to be ahead of its log."""
        if self.parts is None or self.is_outdated:
            self.is_outdated, self.uploads.good = False, set()
            self.parts = Parts(self.source, self.uploads)
        self.faults = []
        here: dict[str, Folder] = {}
        skipped = {p.relative_to(self.source) for word in self.skip for p in self.source.glob(word)}
        for path in sorted(p for top in self.whole for p in (self.source / top).rglob(MANIFEST)):
            name = path.parent.relative_to(self.source)
            if is_hidden(name) or not skipped.isdisjoint(name.parents):
                continue
            with suppress(FileNotFoundError):  # pruned meanwhile
                try:
                    size = sum(entry["size"] for entry in read_json(path).values())
                    here[name.as_posix()] = Folder(sha256(path), path.stat().st_mtime_ns, size)
                except (AttributeError, KeyError, TypeError, ValueError):
                    self.faults.append(
                        NotKept(f"{find_corruption(path.parent)}: move that folder away")
                    )
                    skipped.add(name)
        small = list_small(self.source, {*here, *(name.as_posix() for name in skipped)})
        small = {name: stat for name, stat in small.items() if not self._is_late(name, small)}
        why = unfit(self.source, small)
        self.faults += [NotKept(f"{words}, then run keep(here)") for words in why.values()]
        self.broken = why.keys()
        return here, {n: s for n, s in small.items() if not {n, *above(n)} & self.broken}

    def _is_late(self, name: str, small: dict) -> bool:
        """Whether a file is of a folder that came while small files were listed, which the next round takes whole."""
        top = name.split("/")[0]
        return top in self.whole and any(f"{folder}/{MANIFEST}" in small for folder in above(name))

    def _earlier(self) -> dict[str, Folder]:
        return self.parts.index.folders

    # folders

    def _copy_folder(self, name: str, folder: Folder) -> None:
        """Have Drive hold a folder, its manifest last. Its files stay open: a kept checkpoint may be pruned here."""
        if (name, folder.sha256) in self.uploads.good:
            return
        with ExitStack() as stack:
            files = _open_all(self.source / name, folder, stack)
            if files is None:
                return  # pruned or replaced meanwhile; the next round takes what is there then
            manifest = files[MANIFEST].read()
            listed = json.loads(manifest)
            self._clear_way(name, folder, manifest)
            for file, entry in listed.items():
                self.uploads.put(
                    f"{name}/{file}", entry["size"], entry["sha256"], partial(_chunks, files[file])
                )
            self.uploads.put_bytes(f"{name}/{MANIFEST}", manifest)
        self.drive.remove(aside(name))
        self.uploads.good.add((name, folder.sha256))

    def _clear_way(self, name: str, folder: Folder, manifest: bytes) -> None:
        """Put another version aside until the new one is kept. Raises NotKept where there is no room."""
        there = self.drive.text(f"{name}/{MANIFEST}").encode()
        if there == manifest:
            return  # whole, or to be mended file by file
        if there:
            self.drive.remove(aside(name))
            self.drive.rename(name, aside(name))
        else:
            self.drive.remove(name)  # begun and never ended
        if folder.size > self.drive.free_bytes():
            self._make_room(folder.size)
        self.uploads.require_room(name, folder.size)

    def _make_room(self, size: int) -> None:
        """Let go of checkpoints that are no longer here, the oldest first, but never of the newest that is kept."""
        series = {n: f for n, f in self._earlier().items() if is_of_series(n)}
        kept = [name for name in newest_first(series, self._here(series)) if self._is_kept(name)]
        for old in kept[1:][::-1]:
            if size > self.drive.free_bytes() and not (self.source / old).exists():
                self._let_go([old])

    def _kept_series(self) -> list[str]:
        """The folders of a series (checkpoints) that are known to be on Drive, the newest first."""
        folders = self.parts.index.folders
        kept = [
            name
            for name, folder in folders.items()
            if is_of_series(name) and (name, folder.sha256) in self.uploads.good
        ]
        return newest_first({name: folders[name] for name in kept}, self._here(kept))

    def _here(self, names: Iterable[str]) -> set[str]:
        return {name for name in names if (self.source / name).is_dir()}

    def _prune(self, here: dict[str, Folder]) -> None:
        """Let go on Drive what was let go here, but never the newest two that are kept."""
        series = {n: folder for n, folder in self._earlier().items() if is_of_series(n)}
        if not series.keys() - here.keys():
            return
        for name in series:
            self._look_again(name)
        ordered = newest_first(series, here)
        newest = islice((name for name in ordered if self._is_kept(name)), KEPT_AT_LEAST)
        stay = {*here, *(kept := list(newest))}
        if len(kept) == KEPT_AT_LEAST:
            self._let_go([name for name in series if name not in stay])

    def _look_again(self, name: str) -> None:
        """Forget that a folder is kept if somebody took of it since, as its manifest and its sizes tell."""
        key = (name, self._earlier()[name].sha256)
        text = self.drive.text(f"{name}/{MANIFEST}")
        is_there = hashlib.sha256(text.encode()).hexdigest() == key[1] and all(
            self.drive.size(f"{name}/{file}") == entry["size"]
            for file, entry in json.loads(text).items()
        )
        if not is_there:
            self.uploads.good.discard(key)

    def _is_kept(self, name: str) -> bool:
        """Whether Drive holds a folder, read back now if it was not before."""
        key = (name, self._earlier()[name].sha256)
        if key not in self.uploads.good:
            text = self.drive.text(f"{name}/{MANIFEST}")
            if hashlib.sha256(text.encode()).hexdigest() != key[1]:
                return False
            if not self.drive.is_uploaded(f"{name}/{MANIFEST}"):
                return False
            for file, entry in json.loads(text).items():
                place = f"{name}/{file}"
                held = self.drive.holds(place, entry["size"], entry["sha256"])
                if not (held and self.drive.is_uploaded(place)):
                    return False
            self.uploads.good.add(key)
        return True

    def let_go(self) -> str:
        """Let go on Drive of every folder that is no longer here; return what is in the way, or nothing."""

        def act() -> None:
            here, _ = self._look()
            if gone := [name for name in self._earlier() if name not in here]:
                self._own()
                self._let_go(gone)

        return self._try(act)

    def _let_go(self, names: list[str]) -> None:
        if names:
            self._require_owner()
            left = {n: f for n, f in self._earlier().items() if n not in names}
            self.parts.publish(left)
            for name in names:
                self.drive.remove(name)

    # two machines

    def take_over(self) -> str:
        """Have the mirror follow this machine; return what is in the way, or nothing."""
        return self._try(self._own)

    def _own(self) -> None:
        self.uploads.put_bytes(OWNER, self._machine().encode())

    def _require_owner(self) -> None:
        """Raises NotKept if another machine has taken the mirror over since this one did."""
        theirs = self.drive.text(OWNER)
        if not theirs:
            self._own()
        elif theirs != self._machine():
            raise NotKept(
                "another machine has taken this run's mirror over: stop one of the two; "
                "to go on with this one, run the cell with restore(here) again"
            )

    def _machine(self) -> str:
        path = self.source / f".{OWNER}"
        if not path.is_file():
            write_text(path, uuid.uuid4().hex)
        return path.read_text()

    def is_of_this_machine(self) -> bool:
        """Whether this machine has restored from the mirror, or there was nothing to restore."""
        return (self.source / f".{OWNER}").is_file() or not self.drive.text(OWNER)

    # what to say and to take out

    def words(self) -> str:
        """What is known to be on Drive: up to which step, how much."""
        if self.parts is None:
            return amount(0)
        known, good = self.parts.index, {name for name, _ in self.uploads.good}
        size = sum(x.size for n, x in (known.parts | known.folders).items() if n in good)
        kept = self._kept_series()
        step = f"up to step {int(kept[0].rsplit('-', 1)[-1])}, " if kept else ""
        return f"{step}{amount(size)}"

    def purge(self) -> None:
        """Have nothing on Drive of what is no longer here. Raises NotKept or OSError where that failed."""
        with self._round:
            here, found = self._look()
            self.parts.purge(found, self._earlier() | here)


def _open_all(path: Path, folder: Folder, stack: ExitStack) -> dict[str, BinaryIO] | None:
    """A folder's files, open for reading, or None where it has gone or been replaced since.

    Raises NotKept where it is not what its manifest says.
    """
    what = find_corruption(path)
    try:
        manifest = (path / MANIFEST).read_bytes()
        if hashlib.sha256(manifest).hexdigest() != folder.sha256:
            return None
        if what:
            raise NotKept(f"{what}: move that folder away, then run keep(here)")
        names = (*json.loads(manifest), MANIFEST)
        return {name: stack.enter_context((path / name).open("rb")) for name in names}
    except FileNotFoundError:
        return None


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while chunk := file.read(CHUNK):
        yield chunk
