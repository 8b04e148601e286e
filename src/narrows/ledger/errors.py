"""What the ledger refuses, each with a sentence for whom it concerns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from narrows.errors import NarrowsError, UsageError

if TYPE_CHECKING:
    from narrows.ledger.requests import Row


class LedgerError(NarrowsError):
    """The database cannot be used now. What was asked for was not done, unless the connection broke while it was being
    committed; asking again is safe in either case: `settle` and `release` do nothing twice."""


class LedgerBusy(LedgerError):
    """Others keep the database locked."""


class LedgerFull(LedgerError):
    """The database has no room left."""


class KeyRefused(NarrowsError):
    """A secret that opens nothing, or not this; `reason` says why."""

    def __init__(self, sentence: str, reason: Literal["unknown", "expired", "revoked", "scope"]) -> None:
        super().__init__(sentence)
        self.reason = reason


class UnknownKey(UsageError):
    """No key has this id."""


class OverBudget(NarrowsError):
    """The month's budget does not hold the request's worst case."""


class StillRunning(NarrowsError):
    """A request under the same idempotency key has not ended; `row` is what is known of it."""

    def __init__(self, row: Row) -> None:
        super().__init__(
            f"request {row.id} with the idempotency key {row.idempotency!r} is still running; wait for it to end."
        )
        self.row = row


class AlreadyDone(NarrowsError):
    """A request under the same idempotency key was charged already, as `row` says."""

    def __init__(self, row: Row) -> None:
        super().__init__(
            f"request {row.id} with the idempotency key {row.idempotency!r} was done already, and is not charged "
            "again; take another idempotency key for another request."
        )
        self.row = row
