"""Rates: requests and tokens in any minute, and requests at once, by key; kept by every server for itself.

Time is a clock's that never jumps.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from narrows.errors import NarrowsError, UsageError
from narrows.ledger.keys import Key

MINUTE = 60.0


class OverRate(NarrowsError):
    """The key asks for more than it may now; in `retry_after` seconds there may be room."""

    def __init__(self, sentence: str, retry_after: float) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after


@dataclass(eq=False)
class Admission:
    """A request that was let in at a time, with the tokens that count for it."""

    key_id: str
    time: float
    tokens: int
    running: bool = True


@dataclass
class _Lately:
    """A key's admissions of the last minute, where these are limited, oldest first; how many requests of it run now."""

    admissions: deque[Admission] = field(default_factory=deque)
    running: int = 0


class Rates:
    """What every key has asked for lately; safe to use from many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: dict[str, _Lately] = {}

    def admit(self, key: Key, tokens: int) -> Admission:
        """Let a request in that may take so many tokens; `leave` ends it.

        OverRate where the key's limits leave no room now. UsageError where they never will.
        """
        if key.tokens_per_minute is not None and tokens > key.tokens_per_minute:
            raise UsageError(
                f"this request may take {tokens:,} tokens, but the API key {key.id}… has {key.tokens_per_minute:,} a "
                "minute; shorten the prompt or ask for fewer."
            )
        with self._lock:
            now = self._clock()
            lately = self._keys.setdefault(key.id, _Lately())
            self._forget(lately, now)
            try:
                self._check(key, lately, tokens, now)
            except OverRate:
                self._tidy(key.id, lately)
                raise
            admission = Admission(key.id, now, tokens)
            if key.requests_per_minute is not None or key.tokens_per_minute is not None:
                lately.admissions.append(admission)
            lately.running += 1
            return admission

    def leave(self, admission: Admission, tokens: int | None = None) -> None:
        """The request has ended and took so many tokens, which count instead of what it might have taken. Once."""
        with self._lock:
            if not admission.running:
                return
            admission.running = False
            if tokens is not None:
                admission.tokens = tokens
            lately = self._keys[admission.key_id]
            lately.running -= 1
            self._forget(lately, self._clock())
            self._tidy(admission.key_id, lately)

    def running(self, key_id: str) -> int:
        """How many requests of the key run now."""
        with self._lock:
            return self._keys[key_id].running if key_id in self._keys else 0

    @staticmethod
    def _check(key: Key, lately: _Lately, tokens: int, now: float) -> None:
        who = f"the API key {key.id}…"
        if key.concurrency is not None and lately.running >= key.concurrency:
            raise OverRate(
                f"{who} runs as many requests as it may at once ({key.concurrency:,}); wait for one to end.", 1.0
            )
        by_requests, by_tokens = _wait(lately.admissions, key, tokens, now)
        if max(by_requests, by_tokens) <= 0:
            return
        if by_requests >= by_tokens:
            said = f"has made as many requests as it may in a minute ({key.requests_per_minute:,})"
        else:
            said = f"has {key.tokens_per_minute:,} tokens a minute, and this request may take {tokens:,}"
        raise OverRate(f"{who} {said}; wait a little.", max(by_requests, by_tokens))

    @staticmethod
    def _forget(lately: _Lately, now: float) -> None:
        while lately.admissions and lately.admissions[0].time <= now - MINUTE:
            lately.admissions.popleft()

    def _tidy(self, key_id: str, lately: _Lately) -> None:
        """Keep nothing of a key about which there is nothing to know."""
        if not lately.running and not lately.admissions:
            self._keys.pop(key_id, None)


def _wait(admissions: Sequence[Admission], key: Key, tokens: int, now: float) -> tuple[float, float]:
    """Seconds until the key's limits of requests and of tokens leave room; 0 where they do now."""
    by_requests = by_tokens = 0.0
    if key.requests_per_minute is not None and len(admissions) >= key.requests_per_minute:
        by_requests = admissions[len(admissions) - key.requests_per_minute].time + MINUTE - now
    if key.tokens_per_minute is not None:
        room = key.tokens_per_minute - sum(admission.tokens for admission in admissions)
        for admission in admissions:
            if tokens <= room:
                break
            room += admission.tokens
            by_tokens = admission.time + MINUTE - now
    return by_requests, by_tokens
