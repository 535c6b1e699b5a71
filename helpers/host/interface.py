"""What differs between the hosts of the notebooks: colab.py, kaggle.py and plain.py each fill it in, here.py asks.

Every host works in `runs/` beside the code; what outlives the machine is the runs' mirror, and that is the host's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FOLDER = "annalaura-diffusion/runs"  # of all runs' mirrors, in a place


@dataclass(frozen=True)
class Place:
    """A folder that outlives the machine, where runs are mirrored, and what to do there, as a user is told."""

    path: Path
    name: str
    is_made: bool = False  # where it is missing; a mount point must not be
    label: str = "mirror"  # before the line of Setup
    note: str = ""  # after the line that says what is kept
    if_full: str = "free space there"
    if_gone: str = "connect that disk again"
    if_shut: str = "allow this user to write there"
    if_odd: str = "look at that folder"
    if_taken_down: str = ""  # where a deleted file may remain


def nothing(*_: object) -> str:
    """Return the answer of a host that has nothing to ask: ""."""
    return ""


@dataclass(frozen=True)
class Host:
    """A kind of machine that runs the notebooks; its fields hold a plain machine's values unless told."""

    name: str
    is_here: Callable[[], bool]
    is_rented: bool = (
        False  # a new machine each session: Setup installs, and small files are downloaded unasked
    )
    place: Place | None = None  # unless RUNS_MIRROR names a folder
    open_place: Callable[[bool], str] = (
        nothing  # asks the user, again if True; returns why it stays shut
    )
    why_missing: Callable[[Path], str] = nothing  # ends the error of a path that is not there
    earlier: Callable[[str], list[Path]] = lambda _: []  # read-only mirrors of a run, by its name
    why_none_earlier: Callable[[str], str] = (
        nothing  # after "restored", if there is none of the run
    )
    ask_secret: Callable[[str], str] = (
        nothing  # "" if there is none; raises RunError if it is not open
    )
    how_to_set: Callable[[str], str] = (
        "set the environment variable {}".format
    )  # a secret, by its name
    alone: str = ""  # ends the line that a run has no mirror
    if_alone: str = ""  # and what that means
    session_hours: float = math.inf
    if_longer: str = ""  # what to do for a training that is longer
    if_offline: str = ""  # after "the package index does not answer"
    if_it_fails: str = ""  # after versions that were not checked
    advice: tuple[str, ...] = ()  # lines of Setup
    badge: str = ""  # the Markdown that opens a {notebook} of the {repository} there
