"""Every property of the ledger is one of SQLite and of PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from narrows.ledger.keys import Key
from narrows.ledger.ledger import Ledger
from narrows.ledger.requests import Reservation
from tests.ledger.postgres import Postgres, postgres


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = datetime(2026, 5, 31, 23, 59, 59, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def add(self, **duration: float) -> None:
        self.now += timedelta(**duration)


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    with postgres() as started:
        yield started


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    made: str = request.getfixturevalue("server").database()
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(url: str, clock: Clock) -> Iterator[Ledger]:
    with Ledger.open(url, clock=clock) as opened:
        yield opened


def reserve(ledger: Ledger, key: Key, request_id: str, worst_case: int = 100, **options: Any) -> Reservation:
    return ledger.reserve(
        key, request_id=request_id, model="embedded", endpoint="/v1/completions", worst_case=worst_case, **options
    )
