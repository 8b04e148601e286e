"""Several servers on one ledger: the living keep what they reserved, and the dead are found out at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from narrows.ledger.ledger import Ledger
from narrows.ledger.requests import Usage
from tests.ledger import worker
from tests.ledger.conftest import reserve
from tests.ledger.postgres import Postgres
from tests.ledger.test_requests import used


def test_two_processes_charge_one_key(url: str) -> None:
    with Ledger.open(url) as ledger:
        key, _ = ledger.create_key("one")
    started = [worker.start(worker.charge, url, key, name, 20) for name in ("a", "b")]
    settled = {words[1]: int(words[2]) for _, reader in started for words in worker.lines(reader)}
    for process, _ in started:
        process.join()
        assert process.exitcode == 0
    with Ledger.open(url) as ledger:
        assert {row.id: row.cost for row in ledger.requests()} == settled
        assert len(settled) == 40
        assert ledger.spending()[key.id].settled == sum(settled.values())


def test_the_living_lose_nothing_when_another_opens_or_dies(url: str, tmp_path: Path) -> None:
    with Ledger.open(url) as ledger:
        key, _ = ledger.create_key("one")
        mine = reserve(ledger, key, "mine")
        process, reader = worker.start(worker.hold, url, key, "theirs")
        assert reader.poll(60)
        with Ledger.open(url) as third:  # in the same process, too
            assert {row.state for row in third.requests()} == {"open"}
            assert third.sweep() == []
            process.kill()
            process.join()
            reader.close()
            while not (swept := third.sweep()):  # PostgreSQL notices a moment later
                time.sleep(0.01)
            (lost,) = swept
            assert (lost.id, lost.outcome, lost.cost) == ("theirs", "lost", 0)
            assert ledger.sweep() == []
        assert ledger.spending()[key.id].reserved == 100
        assert ledger.settle(mine, used(7)).cost == 7
    assert not list(tmp_path.glob("*.server-*"))


def test_a_clock_that_jumps_declares_nobody_dead(url: str, clock: object) -> None:
    with Ledger.open(url) as ledger:
        key, _ = ledger.create_key("one")
        reserve(ledger, key, "mine")
        with Ledger.open(url, clock=clock) as other:  # type: ignore[arg-type]
            assert [row.state for row in other.requests()] == ["open"]


def test_a_server_that_ends_leaves_its_requests_to_the_next(url: str) -> None:
    with Ledger.open(url) as ledger:
        key, _ = ledger.create_key("one")
        left = reserve(ledger, key, "left")
    with Ledger.open(url) as ledger:
        (row,) = ledger.requests()
        assert (row.outcome, row.cost, row.state) == ("lost", 0, "released")
        assert ledger.settle(left, Usage(used().tokens, 9)).cost == 9  # it was served after all
        assert ledger.spending()[key.id].settled == 9


def test_a_connection_that_breaks_is_not_a_server_that_is_gone(server: Postgres) -> None:
    url = server.database()
    with Ledger.open(url) as ledger:
        key, _ = ledger.create_key("one")
        first = reserve(ledger, key, "first")
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        reserve(ledger, key, "second")
        with Ledger.open(url) as other:
            assert {row.state for row in other.requests()} == {"open"}
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        with Ledger.open(url) as other:  # before the first has noticed
            assert {row.outcome for row in other.requests()} == {"lost"}
        assert ledger.settle(first, used(5)).cost == 5


def test_a_server_whose_lock_was_lost_takes_it_again(server: Postgres) -> None:
    url = server.database()
    with Ledger.open(url) as ledger:
        reserve(ledger, ledger.create_key("one")[0], "mine")
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        assert ledger.sweep() == []
        with Ledger.open(url) as other:
            assert [row.state for row in other.requests()] == ["open"]


@pytest.mark.parametrize("left", ["ledger.db.server-00ff", "ledger.db.server-"])
def test_files_of_dead_servers_are_removed(tmp_path: Path, left: str) -> None:
    (tmp_path / left).touch()
    url = str(tmp_path / "ledger.db")
    with Ledger.open(url) as ledger:
        reserve(ledger, ledger.create_key("one")[0], "left")
    with Ledger.open(url):
        assert not (tmp_path / left).exists()
