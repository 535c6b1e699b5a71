"""Copy a run's files to and from its mirror (Google Drive or another folder), and delete files on the mirror."""

import logging
import threading
from contextlib import suppress
from pathlib import Path

from helpers.core.errors import RunError
from helpers.core.files import folder_bytes
from helpers.core.run import Run
from helpers.host import colab
from helpers.mirror.drive import Drive, NotMirrored, explain
from helpers.mirror.restore import restore_from
from helpers.mirror.upload import Mirror

log = logging.getLogger(__name__)
STOP_S = 20.0  # to mirror what a stop saved: Kubernetes and Slurm give 30 from SIGTERM to SIGKILL
_mirrors: dict[tuple[Path, Path], Mirror] = {}


def restore(run: Run, follow: bool = True) -> str:
    """Restore a run's files from its mirror, and return a line that reports the result.

    With `follow`, the mirror copies this machine's work from now on. Newer files here are never replaced by older ones.
    Raises RunError if Drive cannot be read, or the folder that RUNS_MIRROR names cannot be made.
    """
    mirror = _mirror(run) if colab.mount_drive() else None
    if mirror is None:
        return f"{run.folder}: saved on this machine only"
    mirror.is_outdated = True
    try:
        done = restore_from(mirror.drive, run.folder)
    except OSError as error:
        raise RunError(f"{run.folder} cannot be restored: {explain(error)}") from None
    words = f"{run.folder}: mirrored to {mirror.drive.folder}, {done.count} files restored"
    if done.missing:
        words += f"; {len(done.missing)} did not verify there ({', '.join(done.missing[:3])})"
    if follow and (problem := mirror.take_over()):
        words += f"; NOTHING MORE IS MIRRORED: {problem}"
    return words


def sync(run: Run) -> str:
    """Copy a run's new files to its mirror, verify every file there, and return a line that reports the result."""
    mirror = _mirror(run)
    if mirror is None:
        return f"{run.folder} is on this machine alone: Google Drive is not mounted"
    try:
        if not mirror.is_of_this_machine():
            restore(run)
        problem = mirror.flush()
    except (OSError, RunError) as error:
        problem = explain(error)
    if problem:
        return f"{run.folder} is NOT all on {colab.name_of_place()}: {problem}. Verified there: {mirror.words()}"
    return f"{run.folder} is kept on {colab.name_of_place()}, {mirror.words()}, all of it read back"


def sync_before_end(run: Run, max_s: float | None = None) -> str:
    """Sync a run for at most `max_s` seconds before the process ends. The report is "" if there is no mirror."""
    if _mirror(run) is None:
        return ""
    reported: list[str] = []
    syncing = threading.Thread(target=lambda: reported.append(sync(run)), daemon=True)
    syncing.start()
    with suppress(KeyboardInterrupt):
        syncing.join(max_s)
    if reported:
        return reported[0]
    return f"{run.folder} is NOT all on {colab.name_of_place()}: there was no time"


def sync_soon(run: Run) -> None:
    """Schedule a background sync if the run has a mirror. Calls made before the sync starts share it."""
    if mirror := _mirror(run):
        mirror.schedule()


def delete_remote(run: Run) -> None:
    """Delete from the mirror all checkpoints and models that no longer exist on this machine."""
    mirror = _mirror(run)
    if mirror and (problem := mirror.delete_missing()):
        log.warning("%s: %s", run.folder, problem)


def purge_remote(run: Run) -> None:
    """Delete from the mirror every small file that is not in the local run folder. Raises RunError if that fails."""
    if mirror := _mirror(run):
        try:
            mirror.purge()
        except (OSError, NotMirrored) as error:
            what = f"{run.folder} is still on {colab.name_of_place()} as it was"
            raise RunError(f"{what}: {explain(error)}") from None


def _mirror(run: Run) -> Mirror | None:
    """Return a run's mirror, or None if Drive was never mounted.

    After a lost connection it is returned, so that the loss is reported. The cache is left out, and so are a sweep's
    trials: each has a mirror of its own, since another machine may continue it.
    """
    key = (run.folder.absolute(), colab.DRIVE)
    if key not in _mirrors and colab.is_there():
        folders = (run.checkpoints, run.model, run.export, run.sweep)
        skip = {run.cache.name, run.trial_folders.relative_to(run.folder).as_posix()}
        drive = Drive(colab.DRIVE, f"{colab.FOLDER_ON_DRIVE}/{run.name}")
        _mirrors[key] = Mirror(run.folder, drive, {path.name for path in folders}, skip)
    return _mirrors.get(key)


def remote_room_bytes(run: Run) -> float:
    """Return how many bytes a run's checkpoints may use on the mirror: the free space plus their present size there."""
    place = colab.DRIVE / colab.FOLDER_ON_DRIVE / run.name / run.checkpoints.name
    return colab.drive_free_bytes() + folder_bytes(place)
