"""The ledger as the server asks it: tokens become money here, and refusals become answers."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from types import TracebackType
from typing import Any, NoReturn, Self

from narrows.economics.prices import Price, Tokens
from narrows.errors import NarrowsError, UsageError
from narrows.ledger.errors import AlreadyDone, KeyRefused, LedgerError, OverBudget, StillRunning
from narrows.ledger.keys import Key
from narrows.ledger.ledger import Ledger
from narrows.ledger.rates import Admission, OverRate, Rates
from narrows.ledger.requests import Reservation
from narrows.ledger.requests import Usage as Charge
from narrows.server.accounting import Account, Outcome, Usage, Wanted
from narrows.server.errors import ApiError
from narrows.server.log import say
from narrows.server.tariff import Tariff

# Seconds between two looks at what could not be written, and at requests of servers that are gone.
_TEND_SECONDS = 2.0
_SWEEP_SECONDS = 60.0


@dataclass(frozen=True)
class KeyAccount(Account):
    """An account with the key behind it."""

    key: Key

    @classmethod
    def of(cls, key: Key) -> Self:
        """The account of this key."""
        return cls(key.id, key.name, frozenset(key.scopes), key)


@dataclass(frozen=True)
class _Reserved:
    """A request under way: its row, its place among the key's rates, and the price that held when it came."""

    reservation: Reservation
    admission: Admission
    price: Price
    wanted: Wanted


class LedgerAccounts:
    """accounting.Ledger over the real one. Used as a context: a thread of its own writes what could not be written at
    once, and releases what servers that are gone have left."""

    def __init__(
        self, ledger: Ledger, tariff: Tariff, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.ledger, self.tariff = ledger, tariff
        self._clock = clock
        self._rates = Rates()
        self._late: deque[Callable[[], Any]] = deque()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._tend, name="narrows-ledger", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()
        self._write_late()
        if self._late:
            say("not written: they are released as lost when the ledger is next opened", requests=len(self._late))

    def today(self) -> date:
        """The day (UTC) whose prices hold."""
        return self._clock().astimezone(UTC).date()

    def authenticate(self, secret: str) -> KeyAccount:
        """As accounting.Ledger.authenticate."""
        try:
            return KeyAccount.of(self.ledger.authenticate(secret))
        except NarrowsError as error:
            refuse(error)

    def reserve(self, account: Account, wanted: Wanted) -> _Reserved:
        """As accounting.Ledger.reserve."""
        assert isinstance(account, KeyAccount)
        try:
            price = self.tariff.price(wanted.model, self.today())
        except NarrowsError as error:
            say("price", why=str(error))
            raise ApiError(503, f"{wanted.model} has no price today; tell who runs this server.") from None
        # A prompt's tokens may turn out to be known or not, whichever of both costs more.
        dearer = "hit" if price.hit > price.miss else "miss"
        most = price.cost(Tokens(output=wanted.output, **{dearer: wanted.prompt}), wanted.tier)
        try:
            admission = self._rates.admit(account.key, wanted.prompt + wanted.output)
            try:
                reservation = self.ledger.reserve(
                    account.key,
                    request_id=wanted.request_id,
                    model=wanted.model,
                    endpoint=wanted.endpoint,
                    protocol=wanted.protocol,
                    worst_case=most,
                    tier=wanted.tier,
                    idempotency=wanted.idempotency,
                    fingerprint=wanted.fingerprint,
                )
            except BaseException:
                self._rates.leave(admission, 0)
                raise
        except NarrowsError as error:
            refuse(error)
        return _Reserved(reservation, admission, price, wanted)

    def settle(self, reservation: _Reserved, usage: Usage, outcome: Outcome, first_token: float | None) -> int:
        """As accounting.Ledger.settle."""
        tokens = Tokens(usage.hit, usage.miss, usage.output)
        cost = reservation.price.cost(tokens, reservation.wanted.tier)
        seconds = time.monotonic() - reservation.wanted.began
        charge = Charge(tokens, cost, usage.reasoning, outcome, first_token, seconds)

        def write() -> None:
            self.ledger.settle(reservation.reservation, charge)

        try:
            write()
        except LedgerError as error:
            if outcome != "cut":  # nobody waits for a cut stream's row
                refuse(error)
            self._late.append(write)
        except NarrowsError as error:
            refuse(error)
        self._rates.leave(reservation.admission, usage.prompt + usage.output)
        return cost

    def release(self, reservation: _Reserved, outcome: Outcome) -> None:
        """As accounting.Ledger.release."""
        # What was computed for nobody counts for the rates, or whoever leaves in time would have none.
        self._rates.leave(reservation.admission, 0 if outcome == "error" else None)

        def write() -> None:
            self.ledger.release(reservation.reservation, outcome)

        try:
            write()
        except LedgerError:
            self._late.append(write)

    def _tend(self) -> None:
        swept = time.monotonic()
        while not self._ending.wait(_TEND_SECONDS):
            self._write_late()
            if time.monotonic() - swept > _SWEEP_SECONDS:
                swept = time.monotonic()
                try:
                    lost = self.ledger.sweep()
                except LedgerError:
                    continue
                for row in lost:
                    say("lost", id=row.id, key=row.key_id, model=row.model)

    def _write_late(self) -> None:
        """Write what could not be written when it was to be, as far as that is possible now."""
        for _ in range(len(self._late)):
            write = self._late.popleft()
            try:
                write()
            except LedgerError:
                self._late.append(write)
                return
            except NarrowsError as error:  # of a request that was charged or tried again meanwhile
                say("not written", why=str(error))


def refuse(error: NarrowsError) -> NoReturn:
    """Say it as the server answers it."""
    match error:
        case KeyRefused():
            raise ApiError(401, str(error), code="invalid_api_key", headers={"www-authenticate": "Bearer"}) from None
        case OverBudget():
            raise ApiError(402, str(error), code="insufficient_quota") from None
        case OverRate():
            raise ApiError(429, str(error), code="rate_limit_exceeded", retry_after=error.retry_after) from None
        case AlreadyDone() | StillRunning():
            raise ApiError(409, str(error), code="idempotency_key_used") from None
        case LedgerError():
            say("ledger", why=str(error))  # which names files and hosts that are no client's business
            raise ApiError(
                503,
                "the server's ledger cannot be used now, and nothing was charged; try again a little later.",
                code="ledger_unavailable",
                retry_after=1,
            ) from None
        case UsageError():
            raise ApiError(400, str(error)) from None
    raise error
