"""A real PostgreSQL of Debian's packages, in a folder of its own and on a socket there alone."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _programs() -> Path | None:
    """Where initdb and pg_ctl lie, the newest version's; Debian puts them beside the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server inside; yields its address."""
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # a socket's path must be short
    user = None
    if os.getuid() == 0:  # PostgreSQL refuses root
        user = "postgres"
        shutil.chown(folder, user)
    data = folder / "data"

    def call(*command: str | Path) -> None:
        done = subprocess.run(command, user=user, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    call(programs / "initdb", "-D", data, "-U", "sweeper", "-A", "trust", "--no-sync")
    call(programs / "pg_ctl", "-D", data, "-o", options, "-l", folder / "log", "-w", "start")
    try:
        yield f"postgresql://sweeper@/postgres?host={folder}"
    finally:
        call(programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)
