"""Google Colab: the only module that knows it. Elsewhere everything here is a plain answer or does nothing.

`python -m helpers.colab OWNER/NAME` writes a new home of the repository into every badge and clone line.
"""

import importlib.util
import logging
import math
import os
import re
import shutil
import sys
from functools import cache
from pathlib import Path

from helpers.drive import Drive, NotKept, explain
from helpers.errors import RunError
from helpers.mirror import Mirror
from helpers.redact import hide
from helpers.restore import restore_from
from helpers.run import Run
from helpers.store import write_text

log = logging.getLogger(__name__)
REPOSITORY = "annalaura-diffusion/annalaura-diffusion"
DRIVE = Path(
    os.environ.get("RUNS_MIRROR") or "/content/drive/MyDrive"
)  # any folder may take its place
FOLDER_ON_DRIVE = "annalaura-diffusion/runs"
SESSION_HOURS = 12  # of a free one at most; Google promises no figure
SESSION = (
    "session    a free one ends after about 90 minutes without you, and after about "
    f"{SESSION_HOURS} hours in all; what is on Drive is there for the next"
)
# what runs notebooks with nobody before them: papermill, its like, or a kernel that calls it
HEADLESS = re.compile(
    r"papermill|helpers\.batch|nbconvert|nbclient|jupyter-execute|kernel_launcher"
)


def on_colab() -> bool:
    return (
        "COLAB_RELEASE_TAG" in os.environ and importlib.util.find_spec("google.colab") is not None
    )


def is_attended() -> bool:
    """Whether a person in Colab's browser can be asked.

    Not from a shell, nor in a kernel that another program runs: there `drive.mount` waits two minutes
    for an answer, even where the drive is mounted already, and Secrets ten seconds.
    """
    if not on_colab() or "google.colab" not in sys.modules:
        return False
    parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return not HEADLESS.search(parent)


def mount_drive() -> bool:
    """Mount Google Drive if it is to be had; say whether it is there. Who refused is not asked again."""
    if not _is_mounted() and is_attended():
        _ask_for_drive()
    return _is_mounted()


def _is_mounted() -> bool:
    try:
        return DRIVE.is_dir()
    except OSError:  # mounted and disconnected, as its first use will tell
        return True


def drive_free_bytes() -> float:
    """What is free on Google Drive; no limit where it is not mounted, or does not say."""
    try:
        return shutil.disk_usage(DRIVE).free
    except OSError:
        return math.inf


@cache
def _ask_for_drive() -> str:
    """Ask once; the reason if it is not to be had."""
    from google.colab import drive

    try:
        drive.mount(str(DRIVE.parent))
    except Exception as error:  # Google's own, private kinds, and ValueError
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""


def drive_words() -> str:
    """Ask for Google Drive, again if it was refused before, and say what came of it."""
    _ask_for_drive.cache_clear()
    if mount_drive():
        return f"Drive      {drive_free_bytes() / 1e9:.0f} GB free, runs are mirrored to {DRIVE / FOLDER_ON_DRIVE}"
    why = _ask_for_drive() if is_attended() else "nobody is there to be asked"
    return (
        f"Drive      not mounted ({why}): runs stay on this machine and end with it; "
        "run this cell again to be asked again"
    )


def restore(run: Run, follow: bool = True) -> str:
    """Bring back what a lost machine took along of a run, and have its mirror `follow` this machine from now on.

    What is here already is never replaced by older. Raises RunError if Drive cannot be read.
    """
    if not mount_drive():
        return f"{run.folder}: kept on this machine"
    mirror = _mirrors[_key(run)] = _new_mirror(run)
    try:
        done = restore_from(mirror.drive, run.folder)
    except OSError as error:
        raise RunError(f"{run.folder} cannot be brought back: {explain(error)}") from None
    words = f"{run.folder}: mirrored to {mirror.drive.folder}, {done.count} files brought back"
    if done.lost:
        words += f"; {len(done.lost)} did not verify there ({', '.join(done.lost[:3])})"
    if follow and (problem := mirror.take_over()):
        words += f"; NOTHING MORE IS MIRRORED: {problem}"
    return words


def keep(run: Run) -> str:
    """Copy what is new in the run to Google Drive, read it back, and say in a line what is kept there."""
    mirror = _mirror(run)
    if mirror is None:
        return f"{run.folder} is on this machine alone: Google Drive is not mounted"
    try:
        if not mirror.is_of_this_machine():
            restore(run)
            mirror = _mirror(run)
        problem = mirror.wait()
    except OSError as error:
        problem = explain(error)
    if problem:
        return f"{run.folder} is NOT all on Google Drive: {problem}. There for certain: {mirror.words()}"
    return f"{run.folder} is kept on Google Drive, {mirror.words()}, all of it read back"


def keep_soon(run: Run) -> None:
    """Have what is new in the run copied to Google Drive in the background, if that is mounted."""
    if mirror := _mirror(run):
        mirror.wake()


def let_go_on_drive(run: Run) -> None:
    """Have Google Drive let go of the checkpoints and models that were let go here."""
    mirror = _mirror(run)
    if mirror and (problem := mirror.let_go()):
        log.warning("%s: %s", run.folder, problem)


def purge_drive(run: Run) -> None:
    """Have nothing on Google Drive that is not in the run here. Raises RunError if that cannot be."""
    if mirror := _mirror(run):
        try:
            mirror.purge()
        except (OSError, NotKept) as error:
            what = explain(error) if isinstance(error, OSError) else error
            raise RunError(f"{run.folder} is still on Google Drive as it was: {what}") from None


_mirrors: dict[tuple[Path, Path], Mirror] = {}


def _key(run: Run) -> tuple[Path, Path]:
    return run.folder.absolute(), DRIVE


def _mirror(run: Run) -> Mirror | None:
    """The run's mirror if Drive is mounted, or was: a lost Drive is a problem, not a choice."""
    if _key(run) not in _mirrors and _is_mounted():
        _mirrors[_key(run)] = _new_mirror(run)
    return _mirrors.get(_key(run))


def _new_mirror(run: Run) -> Mirror:
    """A trial of a sweep has its own mirror, since another machine may go on with it."""
    whole = frozenset(path.name for path in (run.checkpoints, run.model, run.export, run.sweep))
    trials = run.trial_folders.relative_to(run.folder).as_posix()
    drive = Drive(DRIVE, f"{FOLDER_ON_DRIVE}/{run.name}")
    return Mirror(run.folder, drive, whole, frozenset({run.cache.name, trials}))


def secret(name: str) -> str:
    """A key from the environment or from Colab's Secrets, shown by nothing from then on.

    Raises RunError that tells how to set it.
    """
    if os.environ.get(name):
        return hide(name, os.environ[name])
    if is_attended():
        from google.colab import userdata

        try:
            value = userdata.get(name)
        except userdata.SecretNotFoundError:
            value = None
        except userdata.NotebookAccessError:
            raise RunError(
                f"{name} is not open to this notebook: under Secrets (the key in the left bar) "
                "switch on its Notebook access, and run this cell again"
            ) from None
        except userdata.TimeoutException:
            raise RunError(
                f"{name}: Colab's Secrets did not answer; run this cell again, or set "
                f"the environment variable {name}"
            ) from None
        if value:
            return hide(name, value)
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
        *sorted((root / "tools").glob("*.py")),
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
