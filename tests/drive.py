"""A Google Drive on local folders that errs as the real one does, below everything that the mirror does.

`mount` is what the machine sees, a cache; `cloud` is what Drive has, and all that another machine will see.
"""

import errno
import os
import random
import shutil
import threading
from dataclasses import replace
from pathlib import Path

from helpers.host import colab
from helpers.host.interface import Place
from helpers.mirror.drive import Drive

FAULTS = (
    "delay",  # uploads end some time after the write
    "drop",  # a write that succeeds and leaves nothing
    "truncate",  # or a part
    "flip",  # or another bit
    "rename",  # or a second file, "x (1).y"
    "stale",  # reads, and with them listings, that are older than the last write
    "quota",  # from some moment on nothing leaves the cache, and no one says so
    "full",  # ENOSPC or EDQUOT in the middle of a write
    "disconnect",  # ENOTCONN for some operations
    "remount",  # and then the mount is back, without what had not been uploaded
)


def mounted(folder: Path) -> Place:
    """Google Drive, mounted at `folder`."""
    return replace(colab.HOST.place, path=folder)


class FaultyDrive(Drive):
    """`fault` happens where `seed` says; `dead` ends it, as a machine ends."""

    def __init__(self, root: Path, folder: str, cloud: Path, fault: str, seed: int) -> None:
        super().__init__(root, folder)
        self.cloud, self.fault = cloud / folder, fault
        self.random = random.Random(f"{fault} {seed}")
        self.begins = self.random.randint(2, 60)  # operations until a lasting fault
        self.operations, self.dead, self.met = 0, False, 0
        self.uploading: dict[str, int] = {}  # polls until they are in the cloud
        self.lock = threading.RLock()

    def die(self) -> None:
        """End, as a machine ends: between two operations, whatever a thread was about to do."""
        with self.lock:
            self.dead = True

    def _operate(self) -> None:
        self.operations += 1
        late = self.operations - self.begins
        if self.dead or (
            self.fault in ("disconnect", "remount") and 0 <= late % 70 < 4 and late >= 0
        ):
            self.met += 1
            if self.fault == "remount" and not self.dead:
                self.remount()
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    def remount(self) -> None:
        """Make the mount what the cloud is."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.cloud.is_dir():
            shutil.copytree(self.cloud, self.folder)
        self.uploading.clear()

    def _upload(self, name: str) -> None:
        target = self.cloud / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (self.folder / name).is_file():
            shutil.copyfile(self.folder / name, target)

    def _strikes(self, *faults: str) -> bool:
        struck = self.fault in faults and self.random.random() < 0.25
        self.met += struck
        return struck

    def read(self, name):
        with self.lock:
            self._operate()
            path = self.folder / name
            before = path.with_name(f".{path.name}.stale")
            if self._strikes("stale"):
                if not before.is_file():
                    raise FileNotFoundError(name)
                return iter([before.read_bytes()])
            return iter(list(super().read(name)))

    def write(self, name, chunks):
        with self.lock:
            self._operate()
            content, path = b"".join(chunks), self.path(name)
            if self.fault == "stale" and path.is_file():
                shutil.copyfile(path, path.with_name(f".{path.name}.stale"))
            if self._strikes("drop"):
                return
            if self._strikes("full"):
                super().write(name, [content[: len(content) // 2]])
                raise OSError(self.random.choice([errno.ENOSPC, errno.EDQUOT]), "no room")
            if self._strikes("rename"):
                name = Path(name).with_name(f"{path.stem} (1){path.suffix}").as_posix()
            if content and self._strikes("truncate", "flip"):
                content = self._spoil(content)
            super().write(name, [content])
            self._begin_upload(name)

    def _spoil(self, content: bytes) -> bytes:
        at = self.random.randrange(len(content))
        if self.fault == "truncate":
            return content[:at]
        return (
            content[:at] + bytes([content[at] ^ 1 << self.random.randrange(8)]) + content[at + 1 :]
        )

    def _begin_upload(self, name: str) -> None:
        if self.fault == "quota" and self.operations >= self.begins:
            self.uploading[name], self.met = 1 << 30, self.met + 1
        elif self.fault in ("delay", "remount"):
            self.uploading[name], self.met = self.random.randint(0, 5), self.met + 1
        else:
            self._upload(name)

    def remove(self, name):
        with self.lock:
            self._operate()
            super().remove(name)
            target = self.cloud / name
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)

    def rename(self, name, new):
        with self.lock:
            self._operate()
            super().rename(name, new)
            if (self.cloud / name).exists():
                (self.cloud / name).rename(self.cloud / new)

    def free_bytes(self):
        self._operate()
        return super().free_bytes()

    def is_uploaded(self, name):
        with self.lock:
            self._operate()
            left = self.uploading.get(name, 0)
            if left:
                self.uploading[name] = left - 1
                return False
            self._upload(name)
            self.uploading.pop(name, None)
            return True
