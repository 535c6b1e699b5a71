"""Google Colab: the only module that knows it. Elsewhere everything here is a plain answer or does nothing.

`python -m helpers.colab OWNER/NAME` writes a new home of the repository into every badge and clone line.
"""

import importlib.util
import os
import re
import sys
from pathlib import Path

from helpers.errors import RunError
from helpers.run import Run
from helpers.store import mirror, write_text

REPOSITORY = "annalaura-diffusion/annalaura-diffusion"
DRIVE = Path("/content/drive/MyDrive")
FOLDER_ON_DRIVE = "annalaura-diffusion/runs"
NOT_MIRRORED = frozenset({"cache"})  # can be computed again


def on_colab() -> bool:
    return (
        "COLAB_RELEASE_TAG" in os.environ and importlib.util.find_spec("google.colab") is not None
    )


def mount_drive() -> bool:
    """Mount Google Drive if it is to be had; say whether it is there.

    `drive.mount` waits two minutes for a browser that a papermill kernel has not, even where the drive
    is mounted already: so look first, and never ask from a kernel that no browser drives.
    """
    if not DRIVE.is_dir() and on_colab() and "google.colab" in sys.modules:
        from google.colab import drive

        drive.mount(str(DRIVE.parent))
    return DRIVE.is_dir()


def restore(run: Run) -> str:
    """Bring back what a lost machine took along of a run; what is here already is never replaced."""
    if not mount_drive():
        return f"{run.folder}: kept on this machine"
    kept = DRIVE / FOLDER_ON_DRIVE / run.name
    count = mirror(kept, run.folder, replace=False) if kept.is_dir() else 0
    return f"{run.folder}: mirrored to {kept}, {count} files brought back"


def keep(run: Run) -> None:
    """Copy what is new in the run to Google Drive, if that is mounted."""
    if DRIVE.is_dir():
        mirror(run.folder, DRIVE / FOLDER_ON_DRIVE / run.name, NOT_MIRRORED)


def secret(name: str) -> str:
    """A key from the environment or from Colab's Secrets. Raises RunError that tells how to set it."""
    if os.environ.get(name):
        return os.environ[name]
    if on_colab() and "google.colab" in sys.modules:
        from google.colab import userdata

        value = userdata.get(name)
        if value:
            return value
    raise RunError(
        f"{name} is not set: on Colab add it under Secrets (the key in the left bar), "
        f"elsewhere set the environment variable {name}"
    )


def badge(notebook: str) -> str:
    """The Open-in-Colab badge of a notebook, in Markdown."""
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    page = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{notebook}"
    return f"[![Open In Colab]({image})]({page})"


def rewrite_repository(new: str, root: Path = Path()) -> list[Path]:
    """Replace REPOSITORY by `new` wherever it stands; return the files that changed."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", new):
        raise RunError(
            f"{new!r} is no repository: give OWNER/NAME as it stands in its GitHub address"
        )
    files = [
        root / "helpers/colab.py",
        root / "README.md",
        *sorted((root / "notebooks").glob("*.ipynb")),
    ]
    changed = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        if REPOSITORY in text:
            write_text(path, text.replace(REPOSITORY, new))
            changed.append(path)
    return changed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m helpers.colab OWNER/NAME")
    try:
        print("\n".join(f"rewrote {path}" for path in rewrite_repository(sys.argv[1])))
    except RunError as error:
        sys.exit(str(error))
