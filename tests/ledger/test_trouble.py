"""A ledger that is locked, full, broken or out of reach says so, loses nothing, and goes on afterwards."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

from narrows.errors import NarrowsError, UsageError
from narrows.ledger.errors import LedgerBusy, LedgerError, LedgerFull
from narrows.ledger.ledger import Ledger
from narrows.ledger.requests import Reservation
from tests.ledger.conftest import reserve
from tests.ledger.postgres import Postgres
from tests.ledger.test_requests import money, used


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Somebody else is writing, and does not stop."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
    else:
        with psycopg.connect(url) as connection:
            connection.execute("LOCK TABLE ledger_keys IN EXCLUSIVE MODE")
            yield


def test_a_locked_ledger_can_be_read_and_written_later(url: str) -> None:
    with Ledger.open(url, patience=0.2) as ledger:
        key, secret = ledger.create_key("one")
        reservation = reserve(ledger, key, "a")
        with locked(url):
            for attempt in (
                lambda: reserve(ledger, key, "b"),
                lambda: ledger.settle(reservation, used(5)),
                lambda: ledger.release(reservation),
                lambda: ledger.revoke(key.id),
            ):
                with pytest.raises(LedgerBusy, match=r"the ledger .* stayed locked for 0.2 s; try again"):
                    attempt()
            assert ledger.authenticate(secret) == key
            assert money(ledger, key) == (0, 100)
            with Ledger.open(url, patience=0.2) as other:
                assert [row.id for row in other.requests()] == ["a"]
        assert ledger.settle(reservation, used(5)).cost == 5
        reserve(ledger, key, "b")
        assert money(ledger, key) == (5, 100)


def test_threads_wait_for_each_other_no_longer_than_they_may(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db", patience=0.1) as ledger:
        key, _ = ledger.create_key("one")
        inside, leave = threading.Event(), threading.Event()

        def write() -> None:
            with ledger._database.writing():
                inside.set()
                leave.wait(60)

        thread = threading.Thread(target=write)
        thread.start()
        inside.wait(60)
        with pytest.raises(LedgerBusy, match="stayed locked"):
            reserve(ledger, key, "a")
        leave.set()
        thread.join()
        reserve(ledger, key, "a")


def test_a_new_file_that_another_holds(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE other (x)")
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerBusy, match="stayed locked"):
            Ledger.open(file, patience=0.2)
    Ledger.open(file).close()


def test_a_full_ledger_loses_nothing(tmp_path: Path) -> None:
    pages = 10**6

    def limit(connection: Any, _: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")

    with Ledger.open(tmp_path / "ledger.db") as ledger:
        key, _ = ledger.create_key("one")
        event.listen(ledger._database.engine, "connect", limit)
        pages = 1  # no more than there are
        ledger._database.engine.dispose()
        reservations: list[Reservation] = []

        def fill() -> None:
            for number in range(1000):
                reservations.append(reserve(ledger, key, f"r{number}" + "x" * 100))

        with pytest.raises(LedgerFull, match=r"the ledger .*ledger.db has no room left; make room on its disk"):
            fill()
        assert money(ledger, key) == (0, 100 * len(reservations))
        charged = 0
        for reservation in reservations:
            try:
                charged += ledger.settle(reservation, used(7)).cost
            except LedgerFull:
                continue
        assert money(ledger, key)[0] == charged
        pages = 10**6
        ledger._database.engine.dispose()
        for reservation in reservations:
            assert ledger.settle(reservation, used(7)).cost == 7
        assert reservations
        assert money(ledger, key) == (7 * len(reservations), 0)
        reserve(ledger, key, "more")


FULL = """
CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER full_disk AFTER INSERT OR UPDATE ON ledger_requests FOR EACH ROW EXECUTE FUNCTION full_disk();
"""


def test_a_full_server_loses_nothing(server: Postgres) -> None:
    url = server.database()
    with Ledger.open(url) as ledger:
        key, _ = ledger.create_key("one")
        reservation = reserve(ledger, key, "a")
        with psycopg.connect(url) as connection:
            connection.execute(FULL)
        for attempt in (lambda: reserve(ledger, key, "b"), lambda: ledger.settle(reservation, used(5))):
            with pytest.raises(LedgerFull, match="has no room left"):
                attempt()
        assert money(ledger, key) == (0, 100)
        with psycopg.connect(url) as connection:
            connection.execute("DROP FUNCTION full_disk CASCADE")
        assert ledger.settle(reservation, used(5)).cost == 5


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"nothing of the kind" * 1000)
    with pytest.raises(LedgerError, match=r"ledger.db is no SQLite database, or a damaged one"):
        Ledger.open(tmp_path / "ledger.db")
    assert (tmp_path / "ledger.db").read_bytes() == b"nothing of the kind" * 1000


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://", "must outlive its process"),
        ("sqlite:///:memory:", "must outlive its process"),
        ("sqlite:///file:x?mode=memory&uri=true", "must outlive its process"),
        ("sqlite:////nowhere/at/all/ledger.db", "/nowhere/at/all is not a folder; create it"),
        ("/tmp", "/tmp is a folder; give the path of a file"),
        ("mysql://root:hidden@host/x", "mysql is not supported; give sqlite:///FILE or postgresql://"),
        ("post gres://root:hidden@host/x", "is no database's URL"),
        ("postgresql://root:hidden@host:port/x", "is no database's URL"),
    ],
)
def test_what_holds_no_ledger(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refusal:
        Ledger.open(url)
    assert "hidden" not in str(refusal.value)


def test_a_server_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="see whether the database server runs and lets us in") as refusal:
        Ledger.open(f"postgres://me:hidden@/x?host={tmp_path}")
    assert "hidden" not in str(refusal.value)


def test_postgresql_without_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(NarrowsError, match=r"pip install 'narrows\[postgres\]'"):
        Ledger.open("postgresql://me@host/x")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everything")
def test_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        key, _ = ledger.create_key("one")
    (tmp_path / "ledger.db").chmod(0o400)
    with Ledger.open(tmp_path / "ledger.db") as ledger, pytest.raises(LedgerError, match="may not be written"):
        reserve(ledger, key, "a")
