"""A PostgreSQL server of the tests' own: in a temporary folder, on a Unix socket there, gone when they are."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest


class Postgres:
    """A running server; `database` makes an empty database in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._databases = 0

    def database(self) -> str:
        """The URL of a new one."""
        self._databases += 1
        name = f"ledger{self._databases}"
        self.execute(f"CREATE DATABASE {name} STRATEGY FILE_COPY")
        return f"postgresql://narrows@/{name}?host={self.folder}"

    def execute(self, statement: str) -> None:
        """As the server's superuser."""
        with psycopg.connect(host=str(self.folder), user="narrows", dbname="postgres", autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload]


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server for as long as the block lasts; skips the test where none is installed or none may be started."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL's initdb and postgres are not installed (Debian: apt-get install postgresql)")
    user = _user()
    if user is None:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")
    folder = Path(tempfile.mkdtemp(prefix="narrows-pg-", dir="/tmp"))  # a socket's path must be short
    owner = pwd.getpwnam(user)
    as_user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    if as_user:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    folder.chmod(0o755)
    quiet = {"cwd": folder, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = None
    try:
        command = [programs / "initdb", "-D", folder / "data", "-U", "narrows", "-A", "trust", "-E", "UTF8", "-N"]
        subprocess.run([*command, "--locale=C"], check=True, **quiet, **as_user)  # type: ignore[call-overload]
        settings = {"listen_addresses": "", "unix_socket_directories": folder, "fsync": "off", "shared_buffers": "16MB"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        process = subprocess.Popen([programs / "postgres", "-D", folder / "data", *options], **quiet, **as_user)
        server = Postgres(folder)
        _wait(server, process)
        yield server
    finally:
        if process is not None:
            process.send_signal(signal.SIGQUIT)  # at once, whoever is still connected
            process.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_left(url: str) -> None:
    """Until the server has noticed that all clients of this database are gone, which it does when it next listens to
    them; nothing to wait for where there is no server."""
    if not url.startswith("postgresql"):
        return
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute(others).fetchone() != (0,):
            time.sleep(0.01)


def _programs() -> Path | None:
    """Where the newest server's programs lie; Debian keeps them out of PATH."""
    found = shutil.which("postgres")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    for folder in [*([Path(found).resolve().parent] if found else []), *reversed(folders)]:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


def _user() -> str | None:
    if os.getuid() != 0:
        return getpass.getuser()
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)


def _wait(server: Postgres, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            return server.execute("SELECT 1")
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > end:
                raise
            time.sleep(0.05)
