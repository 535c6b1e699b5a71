"""A sweep's study in Optuna, and who runs which of its trials: one process each, whatever dies.

A trial that is not ended belongs to whoever holds its lock. A lock ends with its holder, so a trial that a lost
machine left is free at once, under its own number, and goes on from its checkpoint. Optuna's own way, to fail
it and queue a copy, would lose it to a kill between the two, and count it twice.
"""

import json
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from helpers.core.errors import DatabaseError, RunError
from helpers.core.files import cut_half_line, locked
from helpers.core.run import Run
from helpers.host.colab import secret

OPENING = -1  # the lock of making a study; others go by their trial's number
BEAT_S, GRACE_S = 20, 120  # of a worker on a database; silent for longer, it has lost its trial
SECRET = "OPTUNA_STORAGE"
# a connection that was lost is found out in a minute, and made anew
ENGINE = {
    "pool_pre_ping": True,
    "connect_args": {"connect_timeout": 10, "keepalives_idle": 30, "tcp_user_timeout": 60_000},
}
optuna.logging.set_verbosity(optuna.logging.ERROR)


class Journal:
    """A study in the run's folder, for the processes of one machine."""

    def __init__(self, run: Run) -> None:
        self.run = run
        run.sweep.mkdir(parents=True, exist_ok=True)
        path = run.sweep_journal
        self.storage: BaseStorage = JournalStorage(
            JournalFileBackend(str(path), lock_obj=JournalLock(path))
        )

    @contextmanager
    def claim(self, number: int) -> Iterator["Claim | None"]:
        """Hold a trial's lock inside, if nobody else does; None otherwise."""
        path = self.run.sweep_lock if number == OPENING else self.run.trial(number).lock
        with locked(path, wait=False) as is_mine:
            yield Claim() if is_mine else None


class JournalLock:
    """Optuna's lock of its journal by the kernel, which a kill releases; what a kill left half written is cut off."""

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
    """A study in PostgreSQL, for any number of machines.

    A lock is an advisory one of a session that says something every BEAT_S; after GRACE_S of silence the
    server ends the session and the lock with it (idle_session_timeout, PostgreSQL 14 and newer).
    """

    def __init__(self, run: Run, address: str) -> None:
        """Raises RunError if the database is not to be had."""
        self.space = zlib.crc32(run.name.encode()) >> 1
        with database_errors():
            self.engine = _engine(address)
            with wait_for(self, OPENING):  # two workers would make the tables at once
                self.storage: BaseStorage = RDBStorage(address, ENGINE)

    @contextmanager
    def claim(self, number: int) -> Iterator["Claim | None"]:
        """Hold a trial's lock inside, if nobody else does; None otherwise."""
        with self.engine.connect() as pooled:
            session = pooled.execution_options(isolation_level="AUTOCOMMIT")
            session.detach()  # so that closing it ends it, and its lock
            session.execute(text(f"SET idle_session_timeout = '{GRACE_S}s'"))
            ask = text("SELECT pg_try_advisory_lock(:space, :number)")
            space = 0 if number == OPENING else self.space
            if not session.scalar(ask, {"space": space, "number": number}):
                yield None
                return
            with Heartbeat(session) as claim:
                yield claim


def _engine(address: str) -> Engine:
    try:
        return create_engine(address, **ENGINE)
    except ModuleNotFoundError as error:
        raise RunError(
            f"{error.name} is not installed: pip install psycopg2-binary, and start the sweep again"
        ) from None


class Claim:
    """The right to run a trial."""

    def check(self) -> None:
        """Raise DatabaseError if it is lost."""


class Heartbeat(Claim):
    """A claim that lasts while its session is heard of."""

    def __init__(self, session: Connection) -> None:
        self.session, self.ended = session, threading.Event()
        self.heard_at = time.monotonic()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Heartbeat":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join(timeout=1)  # it may wait for a server that is silent

    def _beat(self) -> None:
        while not self.ended.wait(BEAT_S):
            try:
                self.session.scalar(text("SELECT 1"))
            except SQLAlchemyError:
                self.heard_at = -GRACE_S
                return
            self.heard_at = time.monotonic()

    def check(self) -> None:
        if time.monotonic() - self.heard_at > GRACE_S / 2:
            raise DatabaseError(
                "the database has not been heard of, and another worker may have this trial: "
                "start the sweep again, it goes on"
            )


@contextmanager
def wait_for(place: Journal | Database, number: int) -> Iterator[None]:
    """Hold a lock inside, after whoever has it now."""
    while True:
        with place.claim(number) as claim:
            if claim:
                yield
                return
        time.sleep(0.2)


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn a database's errors into a line without its address."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ or error
        words = str(getattr(cause, "orig", cause)).strip().splitlines()[0]
        raise DatabaseError(
            f"the sweep's database cannot be used ({words}): look at {SECRET} and at the "
            "server, then start the sweep again, it goes on"
        ) from None


def open_place(run: Run, storage: str) -> Journal | Database:
    """Where the study lies: the run's folder, or PostgreSQL.

    storage  empty; `postgresql`, whose address is the secret OPTUNA_STORAGE; or an address without a password
    Raises RunError for another.
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
            f"the address in {SECRET} has an @ or / in its password: write them as %40 and %2F there"
        )
    if url is None or not url.drivername.startswith("postgres"):
        raise RunError(
            "sweep_storage is no PostgreSQL address: leave it empty, or set it to 'postgresql' with "
            f"postgresql://user:password@host/database as the secret {SECRET}"
        )
    if (url.password or "password" in url.query) and storage != "postgresql":
        raise RunError(
            "sweep_storage holds a password, which would be kept with the settings: set it to "
            f"'postgresql', and the address as the secret {SECRET}"
        )
    backend = url.drivername.replace("postgres+", "postgresql+")
    url = url.set(drivername="postgresql" if backend == "postgres" else backend)
    return Database(run, url.render_as_string(hide_password=False))


def open_study(
    place: Journal | Database,
    run: Run,
    planned: list[dict[str, Any]],
    dimensions: dict[str, optuna.distributions.BaseDistribution],
    belongs: dict[str, Any],
    pruner: optuna.pruners.BasePruner,
) -> optuna.Study:
    """The study with all planned trials in it, made or completed; raises RunError if it is of another sweep."""
    with wait_for(place, OPENING):
        study = optuna.create_study(
            storage=place.storage, study_name=run.name, load_if_exists=True, pruner=pruner
        )
        _check_same_sweep(study, run, json.loads(json.dumps(belongs)))
        there = [trial.params for trial in study.get_trials(deepcopy=False)]
        for params in planned:
            if params not in there:
                waiting = optuna.create_trial(
                    state=TrialState.WAITING, params=params, distributions=dimensions
                )
                study.add_trial(waiting)
    return study


def _check_same_sweep(study: optuna.Study, run: Run, belongs: dict[str, Any]) -> None:
    theirs = study.user_attrs.get("belongs")
    if theirs is None:
        study.set_user_attr("belongs", belongs)
        return
    changed = [
        f"{name} was {theirs.get(name)!r}, not {belongs.get(name)!r}"
        for name in sorted(theirs.keys() | belongs.keys())
        if theirs.get(name) != belongs.get(name)
    ]
    if changed:
        raise RunError(
            f"{run.sweep} is another sweep ({'; '.join(changed)[:400]}): give this one a run name of "
            "its own, or move that folder away"
        )


def unfinished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that still have to be run or ended, by number."""
    return [t for t in study.get_trials(deepcopy=False) if not t.state.is_finished()]
