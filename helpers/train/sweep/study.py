"""Open a sweep's Optuna study, and lock each trial so that one process at a time runs it.

A running trial belongs to the process that holds its lock. A lock is released when its holder dies, so that another
process resumes that trial from its checkpoint, under the same number. Optuna's own retry callbacks instead fail the
trial and queue a copy: a kill between the two would lose the trial, and it would count twice.
"""

import json
import math
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import MedianPruner
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from helpers.config import TrainConfig
from helpers.core.errors import DatabaseError, RunError
from helpers.core.files import cut_half_line, folder_hash, locked
from helpers.core.run import Run
from helpers.host.here import secret
from helpers.train.prepare import training_signature
from helpers.train.sweep.search import num_evaluations, parse_dimension

CREATING = -1  # the number of the lock for creating a study; other locks have their trial's
BEAT_S, GRACE_S = 20, 120  # a worker's heartbeat; after GRACE_S without one it loses its trial
SECRET = "OPTUNA_STORAGE"
# a lost connection is noticed within a minute, and replaced
ENGINE = {
    "pool_pre_ping": True,
    "connect_args": {"connect_timeout": 10, "keepalives_idle": 30, "tcp_user_timeout": 60_000},
}
optuna.logging.set_verbosity(optuna.logging.ERROR)


class Journal:
    """The storage of an Optuna study in the run's folder, shared by the processes of one machine."""

    def __init__(self, run: Run) -> None:
        self.run = run
        run.sweep.mkdir(parents=True, exist_ok=True)
        path = run.sweep_journal
        backend = JournalFileBackend(str(path), lock_obj=JournalLock(path))
        self.storage: BaseStorage = JournalStorage(backend)

    @contextmanager
    def claim(self, number: int) -> Iterator["Claim | None"]:
        """Hold a trial's lock inside this context. Yields a Claim, or None if another process has the lock."""
        path = self.run.sweep_lock if number == CREATING else self.run.trial(number).lock
        with locked(path, wait=False) as is_mine:
            yield Claim() if is_mine else None


class JournalLock:
    """A lock on Optuna's journal file. A killed process releases the lock, and its half-written line is cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def acquire(self) -> bool:
        self.held = locked(self.path)
        self.held.__enter__()
        with self.path.open("ab+") as file:
            cut_half_line(file)
        return True

    def release(self) -> None:
        self.held.__exit__(None, None, None)


class Database:
    """The storage of an Optuna study in PostgreSQL, shared by any number of machines.

    A trial's lock is an advisory lock of a session with a heartbeat every BEAT_S; after GRACE_S without one the
    server ends the session and releases the lock (idle_session_timeout, PostgreSQL 14 and newer).
    """

    def __init__(self, run: Run, address: str) -> None:
        self.space = zlib.crc32(run.name.encode()) >> 1
        with database_errors():
            try:
                self.engine = create_engine(address, **ENGINE)
            except ModuleNotFoundError as error:
                raise RunError(
                    f"{error.name} is not installed: pip install psycopg2-binary, and start the sweep again"
                ) from None
            with wait_for(self, CREATING):  # or two workers create the tables at once
                self.storage: BaseStorage = RDBStorage(address, ENGINE)

    @contextmanager
    def claim(self, number: int) -> Iterator["Claim | None"]:
        """Hold a trial's lock inside this context. Yields a Claim, or None if another process has the lock."""
        with self.engine.connect() as pooled:
            session = pooled.execution_options(isolation_level="AUTOCOMMIT")
            session.detach()  # not pooled, so that closing it releases the lock
            session.execute(text(f"SET idle_session_timeout = '{GRACE_S}s'"))
            try_lock = text("SELECT pg_try_advisory_lock(:space, :number)")
            space = 0 if number == CREATING else self.space
            if not session.scalar(try_lock, {"space": space, "number": number}):
                yield None
                return
            claim = Claim()
            with claim.kept_alive(session):
                yield claim


class Claim:
    """A trial's lock, held by this process."""

    heard_at = math.inf  # when the database last answered; a file's lock needs no answers

    @contextmanager
    def kept_alive(self, session: Connection) -> Iterator[None]:
        """Query the database every BEAT_S seconds inside this context, from a separate thread."""
        ended, self.heard_at = threading.Event(), time.monotonic()
        self.thread = threading.Thread(target=self._beat, args=(session, ended), daemon=True)
        self.thread.start()
        try:
            yield
        finally:
            ended.set()
            self.thread.join(timeout=1)  # it may wait for a server that does not answer

    def _beat(self, session: Connection, ended: threading.Event) -> None:
        while not ended.wait(BEAT_S):
            try:
                session.scalar(text("SELECT 1"))
            except SQLAlchemyError:
                self.heard_at = -math.inf
                return
            self.heard_at = time.monotonic()

    def check(self) -> None:
        """Raise DatabaseError if another process may have taken the lock."""
        if time.monotonic() - self.heard_at > GRACE_S / 2:
            raise DatabaseError(
                "the database has not answered, and another worker may have this trial: "
                "start the sweep again, and it resumes"
            )


@contextmanager
def wait_for(place: Journal | Database, number: int) -> Iterator[None]:
    """Wait until a trial's lock is free, and hold the lock inside this context."""
    while True:
        with place.claim(number) as claim:
            if claim:
                yield
                return
        time.sleep(0.2)


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn database errors inside this context into a one-line DatabaseError that hides the database's address."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", cause)).strip().splitlines()[0]
        raise DatabaseError(
            f"the sweep's database cannot be used ({reason}): check {SECRET} and the "
            "server, then start the sweep again, and it resumes"
        ) from None


def open_place(run: Run, storage: str) -> Journal | Database:
    """Open the storage of a sweep's study: the run's folder, or PostgreSQL.

    `storage` is empty, `postgresql` for the address in the secret OPTUNA_STORAGE, or an address without a password.
    Raises RunError for anything else.
    """
    if not storage:
        return Journal(run)
    address = secret(SECRET) if storage == "postgresql" else storage
    try:
        url = make_url(address)
    except ArgumentError:
        url = None
    if url and "@" in f"{url.host}{url.database}":
        raise RunError(
            f"the address in {SECRET} has an @ or / in its password: write them as %40 and %2F"
        )
    if url is None or not url.drivername.startswith("postgres"):
        raise RunError(
            "sweep_storage is not a PostgreSQL address: leave it empty, or set it to 'postgresql' with "
            f"postgresql://user:password@host/database as the secret {SECRET}"
        )
    if (url.password or "password" in url.query) and storage != "postgresql":
        raise RunError(
            "sweep_storage holds a password, which would be saved with the settings: set it to "
            f"'postgresql', and the secret {SECRET} to the address"
        )
    backend = url.drivername.replace("postgres+", "postgresql+")
    url = url.set(drivername="postgresql" if backend == "postgres" else backend)
    return Database(run, url.render_as_string(hide_password=False))


def open_study(
    place: Journal | Database, run: Run, config: TrainConfig, planned: list[dict[str, Any]]
) -> optuna.Study:
    """Open or create a sweep's Optuna study with all planned trials. Raises RunError if settings or data changed."""
    warmup = math.ceil(num_evaluations(config) / 3)
    pruner = MedianPruner(n_startup_trials=3, n_warmup_steps=warmup)
    dimensions = {name: parse_dimension(name, asked) for name, asked in config.sweep.items()}
    signature = training_signature(config, processes=1) | {"max_steps": config.max_steps}
    signature |= {"sweep": config.sweep, "dataset": folder_hash(run.dataset)}
    with wait_for(place, CREATING):
        study = optuna.create_study(
            storage=place.storage, study_name=run.name, load_if_exists=True, pruner=pruner
        )
        _check_same_sweep(study, run, json.loads(json.dumps(signature)))
        known = [trial.params for trial in study.get_trials(deepcopy=False)]
        for params in planned:
            if params not in known:
                given = {"params": params, "distributions": dimensions}
                study.add_trial(optuna.create_trial(state=TrialState.WAITING, **given))
    return study


def _check_same_sweep(study: optuna.Study, run: Run, signature: dict[str, Any]) -> None:
    theirs = study.user_attrs.get("belongs")
    if theirs is None:
        study.set_user_attr("belongs", signature)
        return
    changed = [
        f"{name} was {theirs.get(name)!r}, not {signature.get(name)!r}"
        for name in sorted(theirs.keys() | signature.keys())
        if theirs.get(name) != signature.get(name)
    ]
    if changed:
        raise RunError(
            f"{run.sweep} is another sweep ({'; '.join(changed)[:400]}): give this one a run name of "
            "its own, or move that folder away"
        )
