"""The host of this machine, its secrets, and the place where runs are mirrored; nothing above asks which host it is."""

import math
import os
import shutil
from pathlib import Path

from helpers.core.errors import RunError
from helpers.core.redact import register_secret
from helpers.host import colab, kaggle, plain
from helpers.host.interface import FOLDER, Host, Place

HOSTS = (kaggle.HOST, colab.HOST, plain.HOST)  # in the order of asking
HOST: Host = next(host for host in HOSTS if host.is_here())
MIRROR: Place | None = HOST.place
if own := os.environ.get("RUNS_MIRROR"):  # a folder that takes its place
    MIRROR = Place(path := Path(own).expanduser().absolute(), name=str(path), is_made=True)


def secret(name: str) -> str:
    """Return a secret from the environment or the host's secrets, to be redacted in all output from now on.

    Raises RunError that says how to set it.
    """
    if value := os.environ.get(name) or HOST.ask_secret(name):
        return register_secret(name, value)
    raise RunError(f"{name} is not set: {HOST.how_to_set(name)}")


def open_mirror(again: bool = False) -> bool:
    """Ask the user for the mirror's place if it is not there, and return whether it is.

    A person who refused is asked again only if `again`. If RUNS_MIRROR names a folder, that is made instead. Raises
    RunError if it cannot be.
    """
    return is_there() or (MIRROR == HOST.place and not HOST.open_place(again) and is_there())


def is_there() -> bool:
    """Return whether the mirror's place is there. Raises RunError if RUNS_MIRROR names a folder that cannot be made."""
    try:
        if MIRROR and MIRROR.is_made:
            _make_folder(MIRROR.path)
        return MIRROR is not None and MIRROR.path.is_dir()
    except OSError:  # mounted and disconnected, as its first use will tell
        return True


def _make_folder(path: Path) -> None:
    if HOST.why_missing(path):
        raise RunError(
            f"RUNS_MIRROR is {path}, where nothing is mounted: mount it, or name a folder elsewhere"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"RUNS_MIRROR is {path}, which cannot be made ({error.strerror}): name a folder that can be written"
        ) from None


def free_bytes() -> float:
    """Return the free bytes on the mirror's disk, or infinity if there is none or it does not answer."""
    try:
        return shutil.disk_usage(MIRROR.path).free if MIRROR else math.inf
    except OSError:
        return math.inf


def mirror_words() -> str:
    """Open the mirror's place, asking even after a refusal, and return a line that describes the result.

    Raises RunError if the folder that RUNS_MIRROR names cannot be made.
    """
    if open_mirror(again=True):
        free = f"{free_bytes() / 1e9:.0f} GB free"
        return f"{MIRROR.label:10} {free}, runs are mirrored to {MIRROR.path / FOLDER}"
    return f"{HOST.place.label:10} not mounted ({HOST.open_place(False)}): {HOST.if_alone}"
