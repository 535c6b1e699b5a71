"""Access to Google Colab: Drive, Secrets, and whether a user is there to answer. No other module calls Colab."""

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path

from helpers.core.errors import RunError
from helpers.host.interface import Host, Place

MOUNT = Path("/content/drive")  # Google Drive is mounted here and nowhere else
GOOGLES = MOUNT / "MyDrive"
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
    """Return True if a Jupyter server on Colab started this kernel, so that a user can answer prompts.

    Elsewhere `drive.mount` waits two minutes for an answer, even if Drive is mounted already, and Secrets ten seconds.
    """
    if not on_colab() or "google.colab" not in sys.modules:
        return False
    parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace")
    return any(Path(word).name in SERVERS for word in parent.split("\0")[:3])


def why_not_there(path: Path) -> str:
    """Return a hint to mount Google Drive if a path needs that, and "" otherwise."""
    is_on_drive = MOUNT in (path, *path.absolute().parents) and not GOOGLES.is_dir()
    return "; Google Drive is not mounted: run Setup again and allow it" if is_on_drive else ""


def open_drive(again: bool) -> str:
    """Ask the user to mount Drive, once, or anew if `again`; return why it is not mounted, or "" on success."""
    if not is_attended():
        return NOBODY
    if again:
        _ask_for_drive.cache_clear()
    return _ask_for_drive()


@cache
def _ask_for_drive() -> str:
    from google.colab import drive

    try:
        drive.mount(str(MOUNT))  # asks the user
    except Exception as error:  # private exceptions of Google's, and ValueError
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""


def how_to_set(name: str) -> str:
    """Return how a user sets a secret, which code that no one has open cannot read."""
    if is_attended():
        return "add it under Secrets (the key in the left bar)"
    return (
        "Colab's Secrets cannot be read from here: in a cell of your own, before this, run "
        f"import os; from google.colab import userdata; os.environ[{name!r}] = userdata.get({name!r})"
    )


def _ask_for_secret(name: str) -> str:
    """Return a value from Colab's Secrets, or "" if that secret does not exist or no user can be asked.

    Raises RunError if it may not be read.
    """
    if not is_attended():
        return ""
    from google.colab import userdata

    try:
        return userdata.get(name)
    except userdata.SecretNotFoundError:
        return ""
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


HOST = Host(
    name="Colab",
    is_here=on_colab,
    is_rented=True,
    place=Place(
        GOOGLES,
        name="Google Drive",
        label="Drive",
        if_full="free space there (its bin counts too)",
        if_gone="mount it again (the folder icon on the left, then Mount Drive)",
        if_shut="mount it again and allow all that it asks for",
        if_odd="look at drive.google.com",
        if_taken_down="Google Drive's bin keeps it for 30 days: empty it",
    ),
    open_place=open_drive,
    why_missing=why_not_there,
    ask_secret=_ask_for_secret,
    how_to_set=how_to_set,
    alone=": Google Drive is not mounted",
    if_alone=ALONE,
    session_hours=12,  # of a free session, at most; Google promises no figure
    if_longer="a free session lasts 12 hours at most: run this notebook again on the next machine, and with Drive "
    "mounted it resumes",
    if_it_fails="*Runtime*, *Change runtime type*, *Runtime version*, 2026.07",
    advice=(
        "session    a free one ends after about 90 minutes without you, and after about 12 hours in all; what is on "
        "Drive is there for the next one",
        "copy       *File*, *Save a copy in Drive*, and open that from then on: a notebook opened from GitHub forgets "
        "what you typed",
        f"pictures   a folder of yours goes on your Drive: {GOOGLES}/my pictures",
        "secrets    under Secrets (the key in the left bar), each with *Notebook access* on",
        "GPU        *Runtime*, *Change runtime type*, *T4 GPU*: before anything else, as it is another machine",
        "next       each notebook gets a machine of its own, which finds this run on Google Drive alone",
    ),
    badge="[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/main/notebooks/{notebook})",
)
