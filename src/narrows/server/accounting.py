"""What the server asks of a ledger: who may come in, what a request may cost at most, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

Tier = Literal["default", "priority"]
Outcome = Literal["done", "cut", "cancelled", "error"]
"""`cut`: part of a stream was sent, and that part is charged; `cancelled` and `error` cost nothing."""


@dataclass(frozen=True)
class Account:
    """Whose key it is. `scopes`: "inference" to use models, "metrics" to read figures, "admin" for everything."""

    id: str
    name: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Whether the key is good for this."""
        return scope in self.scopes or "admin" in self.scopes


@dataclass(frozen=True)
class Wanted:
    """A request before it runs: tokens of its prompts, the most that all its answers may have, and when it came
    (time.monotonic).

    `idempotency`: what the client calls it, so that it is charged once however often it is sent; `fingerprint` stands
    for all that it says, and is the same when it is sent again.
    """

    request_id: str
    model: str
    endpoint: str
    protocol: str
    prompt: int
    output: int
    tier: Tier
    began: float
    idempotency: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of a request: of its prompts those that were known (`hit`) and the rest, of its answers all, and those of
    reasoning among them."""

    hit: int = 0
    miss: int = 0
    output: int = 0
    reasoning: int = 0

    @property
    def prompt(self) -> int:
        """Tokens of the prompts."""
        return self.hit + self.miss


class Ledger(Protocol):
    """Thread-safe; every call is short, and made in a thread. What it refuses is an `ApiError`."""

    def authenticate(self, secret: str) -> Account:
        """Whose key this is. 401 for one that is unknown, expired or revoked; 503 where nobody can tell now."""

    def reserve(self, account: Account, wanted: Wanted) -> Any:
        """Room for the most that a request may cost -> what to settle or release, once.

        402 over the budget, 429 over a rate, 409 for an idempotency key that is done or under way, 503 where it cannot
        be written.
        """

    def settle(self, reservation: Any, usage: Usage, outcome: Outcome, first_token: float | None) -> int:
        """Charge a request -> its cost in picodollars; durable when it returns. `first_token`: seconds until there was
        one. 503 where it cannot be written; it is then to be released."""

    def release(self, reservation: Any, outcome: Outcome) -> None:
        """End a request that costs nothing. Fails for nothing: what cannot be written now is written later."""
