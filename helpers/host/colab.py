"""Access to Google Colab: Drive, Secrets, and whether a user is there to answer. No other module calls Colab."""

import importlib.util
import math
import os
import shutil
import sys
from functools import cache
from pathlib import Path

from helpers.core.errors import RunError
from helpers.core.redact import register_secret

MOUNT = Path("/content/drive")  # Google Drive is mounted here and nowhere else
GOOGLES = MOUNT / "MyDrive"
DRIVE = Path(os.environ.get("RUNS_MIRROR") or GOOGLES).expanduser().absolute()
IS_GOOGLES = DRIVE == GOOGLES  # if not, a folder of the user's own takes its place
FOLDER_ON_DRIVE = "annalaura-diffusion/runs"
SESSION_HOURS = 12  # of a free session, at most; Google promises no figure
SESSION = (
    "session    a free one ends after about 90 minutes without you, and after about "
    f"{SESSION_HOURS} hours in all; what is on Drive is there for the next one"
)
ALONE = """runs stay on this machine and end with it.
           Each notebook gets a machine of its own, so the next one will not find this run: run this cell again
           and allow Drive, or run all five on this machine by !python -m helpers.batch RUN"""
NOBODY = f"nobody is there to be asked: if you are, google.colab.drive.mount('{MOUNT}') asks"
# the servers that run a person's notebooks: Colab's is `python3 /usr/local/bin/jupyter-server ...`
SERVERS = ("jupyter-server", "jupyter-notebook", "jupyter-lab")


def on_colab() -> bool:
    return (
        "COLAB_RELEASE_TAG" in os.environ and importlib.util.find_spec("google.colab") is not None
    )


def is_attended() -> bool:
    """Return True if this kernel runs on Colab with a user who can answer prompts.

    Elsewhere `drive.mount` waits two minutes for an answer, even if Drive is mounted already, and Secrets ten seconds.
    """
    if not on_colab() or "google.colab" not in sys.modules:
        return False
    parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace")
    return any(Path(word).name in SERVERS for word in parent.split("\0")[:3])


def mount_drive() -> bool:
    """Mount Google Drive if a user is there to allow it. The result tells whether the mirror's folder is available.

    A user who refused is not asked again. Raises RunError if RUNS_MIRROR names a folder that cannot be made.
    """
    if not is_there() and is_attended():
        _ask_for_drive()
    return is_there()


def is_there() -> bool:
    try:
        if not IS_GOOGLES:
            _make_mirror_folder()
        return DRIVE.is_dir()
    except OSError:  # mounted and disconnected, as its first use will tell
        return True


def _make_mirror_folder() -> None:
    """Create the mirror's folder, which RUNS_MIRROR names. Raises RunError if the folder cannot be made."""
    if MOUNT in (DRIVE, *DRIVE.parents) and not GOOGLES.is_dir():
        raise RunError(
            f"RUNS_MIRROR is {DRIVE}, where Google Drive is not mounted: mount it, or name a folder elsewhere"
        )
    try:
        DRIVE.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"RUNS_MIRROR is {DRIVE}, which cannot be made ({error.strerror}): name a folder that can be written"
        ) from None


def why_not_there(path: Path) -> str:
    """Return a hint to mount Google Drive if a path needs that, and "" otherwise."""
    is_on_drive = MOUNT in path.absolute().parents and not GOOGLES.is_dir()
    return "; Google Drive is not mounted: run Setup again and allow it" if is_on_drive else ""


def name_of_place() -> str:
    """Return the name of the mirror's place for messages: "Google Drive", or the path of the user's own folder."""
    return "Google Drive" if IS_GOOGLES else str(DRIVE)


def drive_free_bytes() -> float:
    """Return the free bytes on the mirror's disk, or infinity if the disk does not answer."""
    try:
        return shutil.disk_usage(DRIVE).free
    except OSError:
        return math.inf


@cache
def _ask_for_drive() -> str:
    """Ask the user, once only, to mount Google Drive, and return the error message ("" after success)."""
    from google.colab import drive

    try:
        drive.mount(str(MOUNT))
    except Exception as error:  # private exceptions of Google's, and ValueError
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""


def drive_words() -> str:
    """Ask to mount Drive, even after a refusal, and describe the result. Raises RunError if RUNS_MIRROR is unusable."""
    _ask_for_drive.cache_clear()
    if mount_drive():
        free = f"{drive_free_bytes() / 1e9:.0f} GB free"
        return f"{'Drive' if IS_GOOGLES else 'mirror':10} {free}, runs are mirrored to {DRIVE / FOLDER_ON_DRIVE}"
    why = _ask_for_drive() if is_attended() else NOBODY
    return f"Drive      not mounted ({why}): {ALONE}"


def secret(name: str) -> str:
    """Return a secret from the environment or Colab's Secrets, or raise RunError. Later output redacts the secret."""
    value = os.environ.get(name) or (_ask_for_secret(name) if is_attended() else None)
    if value:
        return register_secret(name, value)
    if on_colab() and not is_attended():
        raise RunError(
            f"{name} is not set, and Colab's Secrets cannot be read from here: in a cell of your own, before this, run "
            f"import os; from google.colab import userdata; os.environ[{name!r}] = userdata.get({name!r})"
        )
    raise RunError(
        f"{name} is not set: on Colab add it under Secrets (the key in the left bar), "
        f"elsewhere set the environment variable {name}"
    )


def _ask_for_secret(name: str) -> str | None:
    """Return a secret from Colab's Secrets, or None if the secret is missing. Raises RunError if access is refused."""
    from google.colab import userdata

    try:
        return userdata.get(name)
    except userdata.SecretNotFoundError:
        return None
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
