"""Google Colab: the only module that knows it. Elsewhere everything here is a plain answer or does nothing.

`python -m helpers.colab OWNER/NAME [REF]` writes a new home of the repository into every badge and clone line,
and the tag or branch to clone.
"""

import importlib.util
import logging
import math
import os
import re
import shutil
import sys
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path

from helpers.drive import Drive, NotKept, explain
from helpers.errors import RunError
from helpers.mirror import Mirror
from helpers.redact import hide
from helpers.restore import restore_from
from helpers.run import Run
from helpers.store import folder_bytes, write_text

log = logging.getLogger(__name__)
REPOSITORY = "annalaura-diffusion/annalaura-diffusion"
RELEASE = "v0.2.0"  # the tag that Setup clones
HERE = Path(__file__).parent.parent
MOUNT = Path("/content/drive")  # Google Drive is mounted here and nowhere else
GOOGLES = MOUNT / "MyDrive"
DRIVE = Path(os.environ.get("RUNS_MIRROR") or GOOGLES).expanduser().absolute()
IS_GOOGLES = DRIVE == GOOGLES  # if not, a folder of the user's own takes its place
FOLDER_ON_DRIVE = "annalaura-diffusion/runs"
STOP_S = 20.0  # to mirror what a stop saved: Kubernetes and Slurm give 30 from SIGTERM to SIGKILL
SESSION_HOURS = 12  # of a free one at most; Google promises no figure
SESSION = (
    "session    a free one ends after about 90 minutes without you, and after about "
    f"{SESSION_HOURS} hours in all; what is on Drive is there for the next"
)
ALONE = """runs stay on this machine and end with it.
           Each notebook gets a machine of its own, so the next one will not find this run: run this cell again
           and allow Drive, or run all five on this machine by !python -m helpers.batch RUN"""
NOBODY = f"nobody is there to be asked: if you are, google.colab.drive.mount('{MOUNT}') asks"
# what a person's notebooks are run by: Colab's is `python3 /usr/local/bin/jupyter-server ...`
SERVERS = ("jupyter-server", "jupyter-notebook", "jupyter-lab")


def on_colab() -> bool:
    return (
        "COLAB_RELEASE_TAG" in os.environ and importlib.util.find_spec("google.colab") is not None
    )


def is_attended() -> bool:
    """Whether a person in Colab's browser can be asked: in a kernel that Jupyter's server itself began.

    Not from a shell, nor in a kernel that another program runs, whatever its name: there `drive.mount` waits two
    minutes for an answer, even where the drive is mounted already, and Secrets ten seconds.
    """
    if not on_colab() or "google.colab" not in sys.modules:
        return False
    parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace")
    return any(Path(word).name in SERVERS for word in parent.split("\0")[:3])


def mount_drive() -> bool:
    """Mount Google Drive if it is to be had; say whether it is there. Who refused is not asked again.

    A folder that RUNS_MIRROR names is made instead. Raises RunError if it cannot be.
    """
    if not _is_there() and is_attended():
        _ask_for_drive()
    return _is_there()


def _is_there() -> bool:
    try:
        if not IS_GOOGLES:
            _make_own()
        return DRIVE.is_dir()
    except OSError:  # mounted and disconnected, as its first use will tell
        return True


def _make_own() -> None:
    """Make the folder that RUNS_MIRROR names, but never where Google Drive would be mounted."""
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
    """What to add where a path of the user's is not there: that Google Drive is not mounted, if it lies on it."""
    is_on_drive = MOUNT in path.absolute().parents and not GOOGLES.is_dir()
    return "; Google Drive is not mounted: run Setup again and allow it" if is_on_drive else ""


def _name_of_place() -> str:
    """What the mirror's place is called."""
    return "Google Drive" if IS_GOOGLES else str(DRIVE)


def drive_free_bytes() -> float:
    """What is free where runs are mirrored; no limit where it is not mounted, or does not say."""
    try:
        return shutil.disk_usage(DRIVE).free
    except OSError:
        return math.inf


def drive_room_bytes(run: Run) -> float:
    """What a run's checkpoints may take on Google Drive: what is free there, and what they take already."""
    place = DRIVE / FOLDER_ON_DRIVE / run.name / run.checkpoints.name
    return drive_free_bytes() + folder_bytes(place)


@cache
def _ask_for_drive() -> str:
    """Ask once; the reason if it is not to be had."""
    from google.colab import drive

    try:
        drive.mount(str(MOUNT))
    except Exception as error:  # Google's own, private kinds, and ValueError
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""


def drive_words() -> str:
    """Ask for Google Drive, again if it was refused before, and say what came of it.

    Raises RunError if the folder that RUNS_MIRROR names cannot be made.
    """
    _ask_for_drive.cache_clear()
    if mount_drive():
        free = f"{drive_free_bytes() / 1e9:.0f} GB free"
        return f"{'Drive' if IS_GOOGLES else 'mirror':10} {free}, runs are mirrored to {DRIVE / FOLDER_ON_DRIVE}"
    why = _ask_for_drive() if is_attended() else NOBODY
    return f"Drive      not mounted ({why}): {ALONE}"


def restore(run: Run, follow: bool = True) -> str:
    """Bring back what a lost machine took along of a run, and have its mirror `follow` this machine from now on.

    What is here already is never replaced by older. Raises RunError if Drive cannot be read, or RUNS_MIRROR made.
    """
    if not mount_drive():
        return f"{run.folder}: kept on this machine"
    mirror = _mirrors.setdefault(_key(run), _new_mirror(run))
    mirror.is_outdated = True
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
    """Copy what is new in the run to its mirror, read it back, and say in a line what is kept there."""
    mirror = _mirror(run)
    if mirror is None:
        return f"{run.folder} is on this machine alone: Google Drive is not mounted"
    try:
        if not mirror.is_of_this_machine():
            restore(run)
        problem = mirror.wait()
    except OSError as error:
        problem = explain(error)
    except RunError as error:
        problem = str(error)
    if problem:
        return f"{run.folder} is NOT all on {_name_of_place()}: {problem}. There for certain: {mirror.words()}"
    return f"{run.folder} is kept on {_name_of_place()}, {mirror.words()}, all of it read back"


def keep_before_end(run: Run, most_s: float | None = None) -> str:
    """`keep` for a process that is about to end, in some seconds at most; nothing is said where there is no mirror."""
    if _mirror(run) is None:
        return ""
    said: list[str] = []
    keeping = threading.Thread(target=lambda: said.append(keep(run)), daemon=True)
    keeping.start()
    with suppress(KeyboardInterrupt):
        keeping.join(most_s)
    return said[0] if said else f"{run.folder} is NOT all on {_name_of_place()}: there was no time"


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
            raise RunError(
                f"{run.folder} is still on {_name_of_place()} as it was: {what}"
            ) from None


_mirrors: dict[tuple[Path, Path], Mirror] = {}


def _key(run: Run) -> tuple[Path, Path]:
    return run.folder.absolute(), DRIVE


def _mirror(run: Run) -> Mirror | None:
    """The run's mirror if Drive is mounted, or was: a lost Drive is a problem, not a choice."""
    if _key(run) not in _mirrors and _is_there():
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
    value = os.environ.get(name) or (_ask_for_secret(name) if is_attended() else None)
    if value:
        return hide(name, value)
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
    """What Colab's Secrets hold under this name. Raises RunError where they do not let it be read."""
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


def badge(notebook: str) -> str:
    """The Open-in-Colab badge of a notebook, in Markdown."""
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    page = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{notebook}"
    return f"[![Open In Colab]({image})]({page})"


def rewrite_repository(new: str, ref: str = RELEASE, root: Path = HERE) -> list[Path]:
    """Replace REPOSITORY by `new` wherever it stands, and RELEASE by `ref` where it is cloned; return what changed.

    Raises RunError for what GitHub would not take as a name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*/(?!\.\.?$|.*\.git$)[A-Za-z0-9_.-]+", new):
        raise RunError(
            f"{new!r} is no repository: give OWNER/NAME as it stands in its GitHub address"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_./-]*", ref):
        raise RunError(f"{ref!r} is no tag or branch: give one such as {RELEASE} or main")
    names = ("helpers/colab.py", "README.md", "tools/*.py", "notebooks/*.ipynb")
    changed = []
    for path in (path for name in names for path in sorted(root.glob(name))):
        text = path.read_text(encoding="utf-8")
        written = text.replace(REPOSITORY, new).replace(f"-b {RELEASE} ", f"-b {ref} ")
        written = written.replace(f'RELEASE = "{RELEASE}"', f'RELEASE = "{ref}"')
        if written != text:
            write_text(path, written)
            changed.append(path)
    return changed


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m helpers.colab OWNER/NAME [REF]")
    try:
        for path in rewrite_repository(*sys.argv[1:]):
            print(f"rewrote {path.relative_to(HERE)}")
    except RunError as error:
        sys.exit(str(error))
