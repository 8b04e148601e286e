"""One HTTP request on its way through the server: who, where, and what came of it, without a word of its text."""

from __future__ import annotations

import secrets
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from narrows.server.accounting import Account, Outcome, Usage
from narrows.server.errors import Protocol

_KEY = "narrows.visit"


@dataclass
class Visit:
    """Made at the door, filled on the way, told to the log and the metrics at the end. Times are time.monotonic."""

    protocol: Protocol
    method: str
    path: str
    id: str = field(default_factory=lambda: f"req_{secrets.token_hex(12)}")
    began: float = field(default_factory=time.monotonic)
    account: Account | None = None
    model: str | None = None
    status: int | None = None
    outcome: Outcome | None = None
    usage: Usage | None = None
    first_token: float | None = None
    last_token: float | None = None
    fault: BaseException | None = None

    def enter(self, scope: MutableMapping[str, Any]) -> None:
        """Let `of` find it there."""
        scope[_KEY] = self

    @staticmethod
    def of(scope: MutableMapping[str, Any]) -> Visit:
        """The visit that this is a part of."""
        visit: Visit = scope[_KEY]
        return visit

    @property
    def owner(self) -> Account:
        """Whose it is, once the door has let it in."""
        assert self.account is not None, "the door lets nobody in without a key"
        return self.account
