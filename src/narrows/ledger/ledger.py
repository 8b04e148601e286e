"""Ledger: keys, reservations and charges in one database, for many threads and several servers at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from narrows.economics.prices import Tier
from narrows.errors import UsageError
from narrows.ledger import requests
from narrows.ledger.checks import check_count
from narrows.ledger.database import Database
from narrows.ledger.errors import LedgerBusy, LedgerFull
from narrows.ledger.instances import Instances
from narrows.ledger.keys import Key, Scope, all_keys, change_budget, find_secret, insert_key, mark_revoked
from narrows.ledger.location import default_file
from narrows.ledger.migrate import migrate
from narrows.ledger.requests import Order, Outcome, Reservation, Row, Spending, Usage
from narrows.ledger.usage import Group, Sum, sums


class Ledger:
    """What a server asks before a request and tells behind it. Every method is one short transaction, durable when it
    returns; all raise LedgerError (LedgerBusy, LedgerFull) where the database cannot be used, having changed nothing.
    """

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock
        self._instances = Instances(database)

    @classmethod
    def open(
        cls,
        url: str | Path | None = None,
        *,
        create: bool = True,
        patience: float = 5.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> Self:
        """The ledger in a SQLite file (a path or sqlite:///FILE) or in PostgreSQL (postgresql://USER@HOST/NAME); by
        default a file in the data folder. Its tables are made, or renewed from an older version's.

        `create`: whether a file that is absent is made; UsageError otherwise. `patience`: seconds to wait for others.
        `clock` gives today's date, in UTC.
        """
        database = Database(url if url is not None else default_file(), patience)
        ledger = cls(database, clock)
        try:
            migrate(database, create)
            with suppress(LedgerBusy, LedgerFull):  # reading is possible all the same
                ledger.sweep()
        except BaseException:
            ledger.close()
            raise
        return ledger

    def close(self) -> None:
        """Let go of the database. Reservations that are still open are lost when the ledger is next opened."""
        self._instances.close()
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def where(self) -> str:
        """The file, or the URL without its password."""
        return self._database.where

    def create_key(
        self,
        name: str,
        *,
        scopes: Sequence[Scope] = ("inference",),
        expires: datetime | None = None,
        budget: int | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        concurrency: int | None = None,
    ) -> tuple[Key, str]:
        """A new key and its secret, which is not stored. `budget`: picodollars a calendar month (UTC).

        UsageError, naming the field, for what a key cannot have.
        """
        limits = {
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "concurrency": concurrency,
        }
        with self._database.writing() as connection:
            return insert_key(connection, self._now(), name, scopes, expires, budget, limits)

    def authenticate(self, secret: str, scope: Scope | None = None) -> Key:
        """The key of this secret. KeyRefused for one that is unknown, expired or revoked, or lacks the scope."""
        with self._database.reading() as connection:
            key = find_secret(connection, secret)
        key.check(self._now(), scope)
        return key

    def revoke(self, key_id: str) -> Key:
        """Refuse the key from now on; requests that run are settled as they would have been. UsageError for an unknown
        id."""
        with self._database.writing() as connection:
            return mark_revoked(connection, self._now(), key_id)

    def set_budget(self, key_id: str, budget: int | None) -> Key:
        """Give the key another budget, in picodollars a month, from now on; None for no limit. UsageError.

        Requests that run are settled as they would have been, below what the month has spent already too.
        """
        with self._database.writing() as connection:
            return change_budget(connection, key_id, budget)

    def keys(self) -> list[Key]:
        """All that were ever made, oldest first."""
        with self._database.reading() as connection:
            return all_keys(connection)

    def spending(self, month: date | None = None) -> dict[str, Spending]:
        """Every key's month, the present one by default; keys that asked for nothing in it may be absent."""
        with self._database.reading() as connection:
            return requests.spendings(connection, requests.month_of(month or self._now().date()))

    def reserve(
        self,
        key: Key,
        *,
        request_id: str,
        model: str,
        endpoint: str,
        worst_case: int,
        protocol: str = "openai",
        tier: Tier = "default",
        idempotency: str | None = None,
        fingerprint: str | None = None,
    ) -> Reservation:
        """Set the picodollars aside that a request may cost at most.

        OverBudget where what the month (UTC) has spent and reserved leaves no room. Where a request of the same key
        and idempotency key was charged, AlreadyDone; where it has not ended, StillRunning; where its fingerprint was
        another, UsageError. KeyRefused where the key was revoked or has expired meanwhile.
        """
        order = Order(request_id, model, endpoint, worst_case, protocol, tier, idempotency, fingerprint)
        with self._database.writing() as connection:
            return requests.reserve(connection, self._now(), key.id, order, self._instances.own())

    def settle(self, reservation: Reservation, usage: Usage) -> Row:
        """Charge a request, once: settling again gives back the row as it is.

        A request that was released because its server was thought gone is charged all the same, unless the budget
        has no more room (OverBudget) or another attempt under its idempotency key was made (AlreadyDone,
        StillRunning). NarrowsError where the cost is above what was reserved.
        """
        with self._database.writing() as connection:
            return requests.settle(connection, self._now(), reservation, usage)

    def release(self, reservation: Reservation, outcome: Outcome = "cancelled") -> Row:
        """End a request without a charge; one that has ended stays as it is."""
        with self._database.writing() as connection:
            return requests.release(connection, self._now(), reservation, outcome)

    def sweep(self) -> list[Row]:
        """Release what servers that are gone have left open, as `lost`; gives back these rows.

        Opening does so. A server that shares its ledger does so now and then, and counts as alive from then on even if
        its connection was broken.
        """
        self._instances.renew()
        with self._database.reading() as connection:
            if not requests.open_requests(connection):
                return []
        lost = []
        with self._database.writing() as connection:
            gone: dict[str, bool] = {}
            for row in requests.open_requests(connection):
                if row.instance not in gone:
                    gone[row.instance] = self._instances.is_gone(row.instance, connection)
                if gone[row.instance]:
                    lost.append(requests.release(connection, self._now(), row.reservation, "lost"))
        self._instances.remove_leftovers()
        return lost

    def request(self, request_id: str) -> Row | None:
        """The row of one request."""
        with self._database.reading() as connection:
            return requests.find_request(connection, request_id)

    def requests(
        self,
        *,
        key_id: str | None = None,
        since: date | None = None,
        until: date | None = None,
        limit: int = 100,
        before: Row | None = None,
    ) -> list[Row]:
        """The latest requests, open ones too, from one day (UTC) to another; `before` goes on behind a row of the last
        call."""
        check_count("limit", limit, least=1, most=100_000)
        with self._database.reading() as connection:
            return requests.list_requests(connection, key_id, since, until, limit, before)

    def usage(
        self,
        by: Sequence[Group] = ("key",),
        *,
        since: date | None = None,
        until: date | None = None,
        key_id: str | None = None,
    ) -> list[Sum]:
        """Sums over all requests that have ended, by any of key, model and day (UTC), from one day to another."""
        if since is not None and until is not None and since > until:
            raise UsageError(f"usage from {since} to {until} is asked for; name the earlier day first.")
        with self._database.reading() as connection:
            return sums(connection, by, since, until, key_id)

    def _now(self) -> datetime:
        return self._clock().astimezone(UTC)
