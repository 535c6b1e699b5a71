"""Copy a run's files to and from its mirror (Google Drive or another folder), and delete files on the mirror."""

import logging
import threading
from contextlib import suppress
from pathlib import Path

from helpers.core.errors import RunError
from helpers.core.files import folder_bytes
from helpers.core.run import Run
from helpers.host import here
from helpers.host.interface import FOLDER
from helpers.mirror.drive import Drive, NotMirrored, explain
from helpers.mirror.index import Index
from helpers.mirror.restore import Restored, restore_from
from helpers.mirror.upload import Mirror

log = logging.getLogger(__name__)
STOP_S = 20.0  # to mirror what a stop saved: Kubernetes and Slurm give 30 from SIGTERM to SIGKILL
_mirrors: dict[tuple[Path, Path | None], Mirror] = {}


def restore(run: Run, follow: bool = True) -> str:
    """Restore a run's files from its mirror, and return a line that reports the result.

    With `follow`, the mirror copies this machine's work from now on. Newer files here are never replaced by older ones.
    Raises RunError if Drive cannot be read, or the folder that RUNS_MIRROR names cannot be made.
    """
    mirror = _mirror(run) if here.open_mirror() else None
    if mirror is None:
        return f"{run.folder}: saved on this machine only"
    mirror.is_outdated = True
    try:
        done = restore_from(mirror.drive, run.folder)
        earlier = _restore_earlier(run)
    except OSError as error:
        raise RunError(f"{run.folder} cannot be restored: {explain(error)}") from None
    words = f"{run.folder}: mirrored to {mirror.drive.folder}, {done.count} files restored"
    missing = done.missing
    for folder, copied in earlier.items():
        words += f", {copied.count} from {folder}" if copied.count else ""
        missing = missing + copied.missing
    if earlier:  # another copy may have them
        missing = [name for name in dict.fromkeys(missing) if not (run.folder / name).exists()]
    elif not done.count and not any(run.folder.glob("*.jsonl")):
        words += here.HOST.why_none_earlier(run.name)
    if missing:
        words += f"; {len(missing)} did not verify there ({', '.join(missing[:3])})"
    if follow and (problem := mirror.take_over()):
        words += f"; NOTHING MORE IS MIRRORED: {problem}"
    return words


def _restore_earlier(run: Run) -> dict[Path, Restored]:
    """Restore what is missing or outdated from the host's read-only copies, the newest first."""
    copies = [Drive(folder, "") for folder in here.HOST.earlier(run.name)]
    changed = {
        c: max(i.newest_change() for i in Index.read_all(c.text) or [Index()]) for c in copies
    }
    unwanted = frozenset(run.read_taken_down())
    ordered = sorted(copies, key=changed.get, reverse=True)
    return {copy.folder: restore_from(copy, run.folder, unwanted) for copy in ordered}


def sync(run: Run) -> str:
    """Copy a run's new files to its mirror, verify every file there, and return a line that reports the result."""
    mirror = _mirror(run)
    if mirror is None:
        return f"{run.folder} is on this machine alone{here.HOST.alone}"
    problem = ""
    try:
        if not mirror.is_of_this_machine():
            restore(run, follow=False)
            problem = mirror.take_over()
        problem = problem or mirror.flush()
        if not problem:
            _copy_report(run, mirror.drive)
    except (OSError, NotMirrored, RunError) as error:
        problem = explain(error)
    if problem:
        return f"{run.folder} is NOT all on {here.MIRROR.name}: {problem}. Verified there: {mirror.words()}"
    return f"{run.folder} is kept on {here.MIRROR.name}, {mirror.words()}, all of it read back{here.MIRROR.note}"


def _copy_report(run: Run, drive: Drive) -> None:
    """Copy report.html to the mirror as a file of its own, which a browser opens there; remove it if it is gone."""
    if run.report_html.is_file():
        drive.put_bytes(run.report_html.name, run.report_html.read_bytes())
    else:
        drive.remove(run.report_html.name)


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
    return f"{run.folder} is NOT all on {here.MIRROR.name}: there was no time"


def sync_soon(run: Run) -> None:
    """Schedule a background sync if the run has a mirror. Calls made before the sync starts share it.

    Returns at once and raises nothing: a mirror that fails is told by `sync`.
    """
    with suppress(RunError):  # RUNS_MIRROR cannot be made
        if mirror := _mirror(run):
            mirror.schedule()


def written_elsewhere(run: Run) -> None:
    """Read the mirror's index anew before the next sync, since another process of this machine has written it."""
    if mirror := _mirror(run):
        mirror.is_outdated = True


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
            what = f"{run.folder} is still on {here.MIRROR.name} as it was"
            raise RunError(f"{what}: {explain(error)}") from None


def _mirror(run: Run) -> Mirror | None:
    key = (run.folder.absolute(), here.MIRROR and here.MIRROR.path)
    # a mirror that lost its connection is returned too, so that the loss is reported
    if key not in _mirrors and here.is_there():
        folders = (run.checkpoints, run.model, run.export, run.sweep)
        # each trial has a mirror of its own, since another machine may continue it
        skip = {run.cache.name, run.trial_folders.relative_to(run.folder).as_posix()}
        drive = Drive(here.MIRROR.path, f"{FOLDER}/{run.name}")
        _mirrors[key] = Mirror(run.folder, drive, {path.name for path in folders}, skip)
    return _mirrors.get(key)


def remote_room_bytes(run: Run) -> float:
    """Return how many bytes a run's checkpoints may use on the mirror: the free space plus their present size there."""
    mirror = _mirror(run)
    held = folder_bytes(mirror.drive.folder / run.checkpoints.name) if mirror else 0
    return here.free_bytes() + held
