"""What must hold behind any input: no fault, no traceback, no open row, no job left, and a server that answers."""

from __future__ import annotations

import http.client
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from narrows.economics.prices import PriceBook
from narrows.ledger.ledger import Ledger
from narrows.server.backend import Backend
from narrows.server.errors import Protocol
from narrows.server.ledger_accounts import LedgerAccounts
from narrows.server.settings import Settings
from narrows.server.tariff import Tariff
from tests.server.babbler import Babbler
from tests.server.scripted import Live, live, wait_for

# Seconds in which every answer is there.
BOUND = 20.0

# What a server may say of itself: too much to do, a reply that took too long.
MEANT = {503, 504, 529}

# Whose records tell of a fault.
_LOGGERS = ("narrows", "uvicorn.error", "asyncio")

# What uvicorn says of bytes that are no HTTP, and of an upgrade that nobody offers.
_EXPECTED = ("Invalid HTTP request received.", "Unsupported upgrade request.", "No supported WebSocket library")


class Watched:
    """A live server with a ledger of its own, and keys for everything and for inference alone. `idle`: whether its
    backend has nothing to do."""

    def __init__(self, server: Live, ledger: Ledger, idle: Callable[[], bool]) -> None:
        self.server, self.ledger, self.idle = server, ledger, idle
        _, self.admin = ledger.create_key("admin", scopes=["admin"])
        _, self.secret = ledger.create_key("user")
        self.log = _Faults()

    def check(self) -> None:
        """That nothing of what was asked until now has left anything behind."""
        wait_for(lambda: not self.server.app.state.service.lifecycle.under_way, BOUND)
        faults, self.log.faults = self.log.faults, []
        assert not faults, faults
        wait_for(self.idle, BOUND)
        wait_for(lambda: not any(row.state == "open" for row in self.ledger.requests(limit=10)), BOUND)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=BOUND)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()


@contextmanager
def watched(
    folder: Path, backend: Backend, idle: Callable[[], bool], settings: Settings | None = None
) -> Iterator[Watched]:
    """A server around `backend` that is watched until the block ends."""
    with (
        Ledger.open(folder / "ledger.db") as ledger,
        LedgerAccounts(ledger, Tariff(PriceBook.load(), ["scripted"])) as accounts,
        live(backend, settings=settings, accounts=accounts) as server,
    ):
        house = Watched(server, ledger, idle)
        loggers = [logging.getLogger(name) for name in _LOGGERS]
        for logger in loggers:
            logger.addHandler(house.log)
        try:
            yield house
        finally:
            for logger in loggers:
                logger.removeHandler(house.log)


@contextmanager
def babbling(folder: Path, settings: Settings | None = None) -> Iterator[Watched]:
    """The same around one that babbles."""
    babbler = Babbler()
    with watched(folder, babbler, lambda: babbler.under_way == 0, settings) as house:
        yield house


def check_answer(protocol: Protocol, status: int, kind: str, body: bytes) -> Any:
    """That an answer is one, or an error in the protocol's own shape whose sentence helps -> its JSON."""
    assert status < 500 or status in MEANT, (status, body)
    kind = kind.split(";")[0]
    if status < 400:
        return json.loads(body) if kind == "application/json" else body
    assert kind == "application/json", (status, body)
    told = json.loads(body)
    if protocol == "anthropic":
        assert told.keys() == {"type", "error", "request_id"}
        assert told["error"].keys() == {"type", "message"}
    else:
        assert told.keys() == {"error"}
        assert told["error"].keys() == {"message", "type", "param", "code"}
    message = told["error"]["message"]
    assert message.endswith(".") or "; " in message, message
    return told


class _Faults(logging.Handler):
    """Keeps what tells of a fault."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.faults: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not record.getMessage().startswith(_EXPECTED):
            self.faults.append(f"{record.getMessage()} {getattr(record, 'fields', '')} {record.exc_info or ''}")
