"""A run's mirror on Google Drive, or a folder in its place: restore, sync, and what is let go there."""

import logging
import threading
from contextlib import suppress
from pathlib import Path

from helpers.core.errors import RunError
from helpers.core.files import folder_bytes
from helpers.core.run import Run
from helpers.host import colab
from helpers.host.colab import FOLDER_ON_DRIVE
from helpers.mirror.drive import Drive, NotKept, explain
from helpers.mirror.restore import restore_from
from helpers.mirror.upload import Mirror

log = logging.getLogger(__name__)
STOP_S = 20.0  # to mirror what a stop saved: Kubernetes and Slurm give 30 from SIGTERM to SIGKILL
_mirrors: dict[tuple[Path, Path], Mirror] = {}


def restore(run: Run, follow: bool = True) -> str:
    """Bring back what a lost machine took along of a run, and have its mirror `follow` this machine from now on.

    What is here already is never replaced by older. Raises RunError if Drive cannot be read, or RUNS_MIRROR made.
    """
    if not colab.mount_drive():
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


def sync(run: Run) -> str:
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
        return f"{run.folder} is NOT all on {colab.name_of_place()}: {problem}. There for certain: {mirror.words()}"
    return f"{run.folder} is kept on {colab.name_of_place()}, {mirror.words()}, all of it read back"


def sync_before_end(run: Run, most_s: float | None = None) -> str:
    """`sync` for a process that is about to end, in some seconds at most; nothing is said where there is no mirror."""
    if _mirror(run) is None:
        return ""
    said: list[str] = []
    keeping = threading.Thread(target=lambda: said.append(sync(run)), daemon=True)
    keeping.start()
    with suppress(KeyboardInterrupt):
        keeping.join(most_s)
    return (
        said[0]
        if said
        else f"{run.folder} is NOT all on {colab.name_of_place()}: there was no time"
    )


def sync_soon(run: Run) -> None:
    """Have what is new in the run copied to Google Drive in the background, if that is mounted."""
    if mirror := _mirror(run):
        mirror.wake()


def delete_remote(run: Run) -> None:
    """Have Google Drive let go of the checkpoints and models that were let go here."""
    mirror = _mirror(run)
    if mirror and (problem := mirror.let_go()):
        log.warning("%s: %s", run.folder, problem)


def purge_remote(run: Run) -> None:
    """Have nothing on Google Drive that is not in the run here. Raises RunError if that cannot be."""
    if mirror := _mirror(run):
        try:
            mirror.purge()
        except (OSError, NotKept) as error:
            what = explain(error) if isinstance(error, OSError) else error
            raise RunError(
                f"{run.folder} is still on {colab.name_of_place()} as it was: {what}"
            ) from None


def _key(run: Run) -> tuple[Path, Path]:
    return run.folder.absolute(), colab.DRIVE


def _mirror(run: Run) -> Mirror | None:
    """The run's mirror if Drive is mounted, or was: a lost Drive is a problem, not a choice."""
    if _key(run) not in _mirrors and colab.is_there():
        _mirrors[_key(run)] = _new_mirror(run)
    return _mirrors.get(_key(run))


def _new_mirror(run: Run) -> Mirror:
    """A trial of a sweep has its own mirror, since another machine may go on with it."""
    whole = frozenset(path.name for path in (run.checkpoints, run.model, run.export, run.sweep))
    trials = run.trial_folders.relative_to(run.folder).as_posix()
    drive = Drive(colab.DRIVE, f"{FOLDER_ON_DRIVE}/{run.name}")
    return Mirror(run.folder, drive, whole, frozenset({run.cache.name, trials}))


def remote_room_bytes(run: Run) -> float:
    """What a run's checkpoints may take on Google Drive: what is free there, and what they take already."""
    place = colab.DRIVE / FOLDER_ON_DRIVE / run.name / run.checkpoints.name
    return colab.drive_free_bytes() + folder_bytes(place)
