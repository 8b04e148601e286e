"""A server that is killed at any moment under load: what clients saw acknowledged is what the ledger holds.

1,000 moments around a scripted model in the soak, and 20 of the whole server.
"""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest

from narrows.ledger.ledger import Ledger
from narrows.ledger.requests import Row
from tests.cli.test_serve import Served
from tests.draws import SOAK, occasion
from tests.ledger.postgres import postgres, wait_until_left
from tests.server import victim
from tests.server.killed_clients import Clients, check

CHATS = ("chat", "chat stream", "messages", "messages stream", "text", "text stream")


def test_what_clients_saw_acknowledged_is_what_the_ledger_holds(tmp_path: Path) -> None:
    _kill_and_compare(f"sqlite:///{tmp_path / 'ledger.db'}", 1000 if SOAK else 10)


def test_and_so_it_is_in_postgresql() -> None:
    with postgres() as server:
        _kill_and_compare(server.database(), 100 if SOAK else 4)


def _kill_and_compare(url: str, points: int) -> None:
    now = occasion()
    random = Random(now)
    with Ledger.open(url) as ledger:
        _, secret = ledger.create_key("one")
    clients = Clients(secret, "scripted", CHATS, random)
    rows: dict[str, Row] = {}
    for point in range(points):
        process, port = victim.start(url)
        clients.run(port, process.kill, random.randrange(12), random.random() * 0.05)
        process.join()
        wait_until_left(url)
        with Ledger.open(url) as ledger:
            try:
                rows = check(ledger, clients, rows)
            except AssertionError as error:
                raise AssertionError(f"at point {point} of occasion {now!r}") from error
    _tell(clients, rows, points)


@pytest.mark.parametrize("point", range(20 if SOAK else 1))
def test_the_whole_server_too(point: int, tmp_path: Path) -> None:
    random = Random(f"{occasion()} {point}")
    server = Served(tmp_path)
    secret = re.findall(r"nrw_\w+", server.greeting)[0]
    clients = Clients(secret, "embedded", ("text", "text stream"), random)
    url = str(tmp_path / "data" / "ledger.db")
    rows: dict[str, Row] = {}
    for turn in range(2):  # the second time, what had no answer is asked again
        if turn:
            server = Served(tmp_path)
        port = int(server.url.rsplit(":", 1)[1])
        clients.run(port, server.process.kill, random.randrange(1, 30), random.random() * 0.1)
        server.process.wait()
        with Ledger.open(url) as ledger:
            rows = check(ledger, clients, rows)
    _tell(clients, rows, 2)


def _tell(clients: Clients, rows: dict[str, Row], points: int) -> None:
    again = sum(request.usage is None for request in clients.known)
    lost = sum(row.outcome == "lost" for row in rows.values())
    print(f"\n{points} kills: {len(clients.known)} acknowledged, {again} of them when asked again; {lost} lost")
    assert len(clients.known) > points
