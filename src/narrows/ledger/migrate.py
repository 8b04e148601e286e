"""Brings a database to the tables that this version of the package works with, when it is opened."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from narrows.checkpoints.paths import exists
from narrows.errors import NarrowsError, UsageError
from narrows.ledger.database import Database
from narrows.ledger.errors import LedgerError
from narrows.ledger.tables import REVISION, VERSION_TABLE

_ALEMBIC = threading.Lock()
"""Alembic's migrations act on global names, one at a time."""

_POSTGRES_LOCK = 0x6E61_7272_6F77_7301
"""An advisory lock's number, ours."""


def migrate(database: Database, create: bool = True) -> None:
    """Make or renew the tables; nothing where they are there. Several processes may do so at once.

    UsageError where there is no file and none is to be made; NarrowsError for a database that a newer version of the
    package has changed; LedgerError where it cannot be used.
    """
    if database.file:
        if not create and not exists(database.file):
            raise UsageError(f"there is no ledger at {database.file}; narrows keys create makes one.")
        _create(database.file)
    with database.reading() as connection:
        if _revision(connection) == REVISION:
            return
    with _alone(database), database.writing() as connection:
        if not database.file:
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _POSTGRES_LOCK})
        if _revision(connection) != REVISION:
            _upgrade(connection, database.where)


def _create(file: Path) -> None:
    """A new database is its owner's alone, as are the files that SQLite puts beside it."""
    try:
        os.close(os.open(file, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise LedgerError(f"the ledger {file} cannot be opened ({error.strerror}); check the path.") from None


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    """Only one process at a time makes a SQLite file's write-ahead log: that is not waited for as other locks are."""
    if not database.file:
        yield
        return
    folder = os.open(database.file.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with database.explained(), closing(database.engine.raw_connection()) as connection:
            connection.cursor().execute("PRAGMA journal_mode = WAL")  # in no transaction
        yield
    finally:
        os.close(folder)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


def _upgrade(connection: Connection, where: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    with _ALEMBIC:
        try:
            command.upgrade(config, "head")
        except CommandError:
            raise NarrowsError(
                f"the ledger {where} was written by a newer version of narrows; install that, or name another ledger."
            ) from None
