"""Instances: which of the servers that share a ledger are alive.

A server holds a lock for as long as it lives, and the system takes it away when it is gone, however it ends: a lock on
a file beside the database, or PostgreSQL's advisory lock, which goes with its connection. No clock is asked.
"""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import threading
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from narrows.ledger.database import Database
from narrows.ledger.errors import LedgerError


class Instances:
    """This process's own lock, and looks at others'."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._id: str | None = None
        self._file: int | None = None
        self._connection: Connection | None = None
        self._breaks = 0

    def own(self) -> str:
        """This server's name, whose lock is held from the first call on. LedgerError where it cannot be."""
        with self._lock:
            if self._id is None:
                name = secrets.token_hex(8)
                self._hold(name)
                self._id = name
            elif self._connection is not None and self._breaks != self._database.breaks:
                self._connect(self._id)
            return self._id

    def renew(self) -> None:
        """Take the lock again if the connection that held it is broken. LedgerError where that fails."""
        with self._lock:
            if self._id is None or self._connection is None:
                return
            try:
                self._connection.execute(text("SELECT 1"))
            except SQLAlchemyError:
                self._connect(self._id)

    def is_gone(self, name: str, connection: Connection) -> bool:
        """Whether nobody holds that server's lock; on PostgreSQL nobody can take it until the transaction ends."""
        if name == self._id:
            return False
        if self._database.file is None:
            asked = text("SELECT pg_try_advisory_xact_lock(:number)")
            return bool(connection.execute(asked, {"number": _number(name)}).scalar())
        try:
            handle = os.open(self._path(name), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        except OSError:
            return False  # nobody can tell, and taking away what a living server has reserved would be the greater harm
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(handle)
        return True

    def remove_leftovers(self) -> None:
        """Take away the files of servers that were killed."""
        if self._database.file is None:
            return
        for path in glob.glob(f"{glob.escape(str(self._path('')))}*"):
            with suppress(OSError):
                handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
                finally:
                    os.close(handle)

    def close(self) -> None:
        """Let go of the lock: what is reserved still belongs to nobody."""
        with self._lock:
            if self._file is not None and self._id is not None:
                with suppress(OSError):
                    os.unlink(self._path(self._id))
                os.close(self._file)
            if self._connection is not None:
                with suppress(SQLAlchemyError):
                    self._connection.close()
            self._id = self._file = self._connection = None

    def _path(self, name: str) -> Path:
        assert self._database.file is not None
        return self._database.file.with_name(f"{self._database.file.name}.server-{name}")

    def _hold(self, name: str) -> None:
        if self._database.file is None:
            self._connect(name)
            return
        path = self._path(name)
        while True:
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                raise LedgerError(
                    f"{path} cannot be written ({error.strerror}), by which other servers see that this one lives; "
                    "check the disk and the folder's permissions."
                ) from None
            # Between the two lines another may have taken the file for a killed server's.
            with suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(handle).st_ino:
                    self._file = handle
                    return
            os.close(handle)

    def _connect(self, name: str) -> None:
        """Hold PostgreSQL's lock on a connection of its own, in place of one that may be broken.

        The lock is a shared one, because the broken connection may hold it still.
        """
        breaks = self._database.breaks
        with self._database.explained():
            connection = self._database.lasting()
            connection.execute(text("SELECT pg_advisory_lock_shared(:number)"), {"number": _number(name)})
        if self._connection is not None:
            with suppress(SQLAlchemyError):
                self._connection.close()
        self._connection, self._breaks = connection, breaks


def _number(name: str) -> int:
    """An advisory lock's: 64 bits with a sign."""
    return int.from_bytes(bytes.fromhex(name), signed=True)
