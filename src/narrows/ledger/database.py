"""Database: transactions on SQLite or PostgreSQL, whose failures are sentences."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool

from narrows.checkpoints.paths import is_folder
from narrows.errors import NarrowsError, UsageError
from narrows.ledger.errors import LedgerBusy, LedgerError, LedgerFull

_SQLITE_BUSY = {5, 6}  # SQLITE_BUSY, SQLITE_LOCKED
_SQLITE_FULL = {13}
_SQLITE_READONLY = {8}
_SQLITE_DISK = {10}  # SQLITE_IOERR
_SQLITE_BROKEN = {11, 26}  # SQLITE_CORRUPT, SQLITE_NOTADB

_POSTGRES_BUSY = {"40001", "40P01", "53300", "55P03", "57014"}  # serialisation, deadlock, connections, locks, timeouts
_POSTGRES_FULL = {"53100"}


class Database:
    """Connections to one database; safe to use from many threads.

    `patience`: seconds for which a transaction waits for others before it fails with LedgerBusy.
    """

    def __init__(self, url: str | Path, patience: float) -> None:
        self.url = _checked(url)
        self.where = self.url.render_as_string(hide_password=True)
        self.patience = patience
        self.file: Path | None = None
        self.breaks = 0  # connections that turned out to be broken
        if self.url.get_backend_name() == "sqlite":
            self.file = Path(os.path.realpath(str(self.url.database)))
            self.where = str(self.file)
        # SQLite has one writer at a time, and those who wait for it in other processes poll; threads queue up here.
        self._writer = threading.Lock() if self.file else None
        self._arguments: dict[str, Any] = (
            {"timeout": patience} if self.file else {"connect_timeout": max(2, int(patience))}
        )
        options: dict[str, Any] = {} if self.file else {"isolation_level": "READ COMMITTED"}
        self.engine = create_engine(
            self.url,
            connect_args=self._arguments,
            hide_parameters=True,
            max_overflow=12,
            pool_pre_ping=not self.file,
            pool_size=4,
            pool_timeout=patience,
            **options,
        )
        self._driver_error = self.engine.dialect.loaded_dbapi.Error
        event.listen(self.engine, "connect", self._connected)
        event.listen(self.engine, "handle_error", self._broken)
        if self.file:
            event.listen(self.engine, "begin", _begin)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database and changes nothing. LedgerError where that fails."""
        with self.explained(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is durable when the block has ended, and did nothing where it raised. LedgerError."""
        if self._writer and not self._writer.acquire(timeout=self.patience):
            raise self._busy()
        try:
            with self.explained(), self.engine.connect() as connection:
                connection.execution_options(narrows_writing=True)
                with connection.begin():
                    yield connection
        finally:
            if self._writer:
                self._writer.release()

    def lasting(self) -> Connection:
        """A connection that nobody else waits for, and that is in no transaction."""
        options = {"poolclass": NullPool, "isolation_level": "AUTOCOMMIT", "hide_parameters": True}
        engine = create_engine(self.url, connect_args=self._arguments, **options)
        event.listen(engine, "connect", self._connected)
        return engine.connect()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """The database's own errors become LedgerErrors."""
        try:
            yield
        except PoolTimeout:
            raise self._busy() from None
        except DBAPIError as error:
            raise self._sentence(error.orig) from None
        except self._driver_error as error:  # where SQLAlchemy was not in between
            raise self._sentence(error) from None
        except SQLAlchemyError as error:
            raise LedgerError(f"the ledger {self.where} could not be used ({error}); check the database.") from None

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def _busy(self) -> LedgerBusy:
        return LedgerBusy(
            f"the ledger {self.where} stayed locked for {self.patience:g} s; try again, and look who else writes it."
        )

    def _sentence(self, error: BaseException | None) -> LedgerError:
        said = " ".join(str(error).split())
        sqlite_code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        postgres_code = getattr(error, "sqlstate", None) or ""
        if sqlite_code in _SQLITE_BUSY or postgres_code in _POSTGRES_BUSY:
            return self._busy()
        if sqlite_code in _SQLITE_FULL or postgres_code in _POSTGRES_FULL:
            return LedgerFull(f"the ledger {self.where} has no room left; make room on its disk. Nothing was lost.")
        if sqlite_code in _SQLITE_DISK:
            return LedgerError(
                f"the ledger {self.where} could not be written ({said}); see whether its disk is damaged."
            )
        if sqlite_code in _SQLITE_READONLY:
            return LedgerError(f"the ledger {self.where} may not be written; check its permissions and its folder's.")
        if sqlite_code in _SQLITE_BROKEN:
            return LedgerError(
                f"the ledger {self.where} is no SQLite database, or a damaged one ({said}); name another, or put back "
                "a copy that is whole."
            )
        if self.file:
            return LedgerError(f"the ledger {self.where} could not be used ({said}); check the file and its folder.")
        return LedgerError(
            f"the ledger {self.where} could not be used ({said}); see whether the database server runs and lets us in."
        )

    def _connected(self, connection: Any, record: Any) -> None:
        """What holds for every new connection."""
        if self.file:
            connection.isolation_level = None  # transactions begin where we say, which Python's module would guess
            connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk before it returns
            connection.execute("PRAGMA foreign_keys = ON")
            return
        connection.autocommit = True
        for setting in ("synchronous_commit = on", f"lock_timeout = {round(self.patience * 1000)}"):
            connection.execute(f"SET {setting}")
        connection.autocommit = False

    def _broken(self, context: Any) -> None:
        if context.is_disconnect:
            self.breaks += 1


def _begin(connection: Connection) -> None:
    """A transaction that will write asks for the lock now: one that read first could not get it from another writer."""
    writing = connection.get_execution_options().get("narrows_writing")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _checked(url: str | Path) -> URL:
    """The database that is meant. UsageError for one that could not hold a ledger."""
    path = isinstance(url, Path) or "://" not in url
    try:
        parsed = URL.create("sqlite", database=str(url)) if path else make_url(str(url))
    except (ArgumentError, ValueError):
        raise UsageError(
            f"{str(url).split('://')[0]}://… is no database's URL; give sqlite:///FILE or postgresql://USER@HOST/NAME."
        ) from None
    kind = parsed.drivername.split("+")[0]
    if kind in ("postgresql", "postgres"):
        try:
            import psycopg  # noqa: F401 - SQLAlchemy imports it by its name
        except ImportError:
            raise NarrowsError(
                "a ledger in PostgreSQL needs psycopg, which is not installed; pip install 'narrows[postgres]'."
            ) from None
        return parsed.set(drivername="postgresql+psycopg")
    if kind != "sqlite":
        raise UsageError(f"{kind} is not supported; give sqlite:///FILE or postgresql://USER@HOST/NAME.")
    if not parsed.database or parsed.database == ":memory:" or parsed.database.startswith("file:") or parsed.query:
        raise UsageError("a ledger must outlive its process; give sqlite:///FILE, the path of a file.")
    folder = Path(parsed.database).absolute().parent
    if not is_folder(folder):
        raise UsageError(f"{folder} is not a folder; create it before a ledger is put into it.")
    if is_folder(Path(parsed.database)):
        raise UsageError(f"{parsed.database} is a folder; give the path of a file.")
    return parsed.set(drivername="sqlite+pysqlite")
