"""As google.colab.drive: asks before it looks whether the drive is mounted already."""

import os
from pathlib import Path

from google.colab import ask


class MessageError(Exception):
    """As google.colab._message has it."""


def mount(mountpoint, force_remount=False, timeout_ms=120_000, readonly=False):
    ask("drive")
    if "STUB_CLOUD" not in os.environ:
        raise MessageError("Error: credential propagation was unsuccessful")
    if Path(mountpoint).is_dir() and any(Path(mountpoint).iterdir()):
        raise ValueError("Mountpoint must not already contain files")
    Path(mountpoint).mkdir(parents=True, exist_ok=True)
    (Path(mountpoint) / "MyDrive").symlink_to(os.environ["STUB_CLOUD"])
    print(f"Mounted at {mountpoint}")
