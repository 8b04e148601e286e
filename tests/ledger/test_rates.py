"""Rates: never more than the limit in any minute, and what is refused may come back when it is told to."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.errors import UsageError
from narrows.ledger.keys import Key
from narrows.ledger.rates import MINUTE, OverRate, Rates


class Monotonic:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(**limits: Any) -> Key:
    return Key("id", "name", ("inference",), datetime(2026, 1, 1, tzinfo=UTC), **limits)


STEPS = st.lists(st.tuples(st.floats(0, 40), st.integers(0, 100), st.integers(0, 100)), max_size=40)


@given(STEPS, st.integers(1, 5), st.integers(100, 250), st.integers(1, 3))
def test_no_minute_holds_more_than_the_limits(
    steps: list[tuple[float, int, int]], most: int, tokens: int, together: int
) -> None:
    """The steps: seconds to the next request, tokens that it may take, and those that it took in the end."""
    clock = Monotonic()
    rates = Rates(clock)
    one = key(requests_per_minute=most, tokens_per_minute=tokens, concurrency=together)
    let_in: list[tuple[float, Any]] = []
    running: list[tuple[Any, int]] = []
    for wait, wanted, took in steps:
        clock.now += wait
        if len(running) > 1 or (running and wait > 20):
            admission, before = running.pop(0)
            rates.leave(admission, min(before, admission.tokens))
        try:
            admission = rates.admit(one, wanted)
        except OverRate as refusal:
            retry_after = refusal.retry_after
            if rates.running(one.id) == together:
                continue
            clock.now += retry_after + 1e-6
            assert 0 < retry_after <= MINUTE
            admission = rates.admit(one, wanted)  # nobody else has come in the meantime
        let_in.append((clock.now, admission))
        running.append((admission, took))
        assert rates.running(one.id) == len(running) <= together
        last = [admitted for time, admitted in let_in if time > clock.now - MINUTE]
        assert len(last) <= most
        assert sum(admitted.tokens for admitted in last) <= tokens


def test_what_it_says_and_when_to_come_back() -> None:
    clock = Monotonic()
    rates = Rates(clock)
    two = key(requests_per_minute=2)
    for _ in range(2):
        rates.leave(rates.admit(two, 10**9))
        clock.now += 10
    with pytest.raises(
        OverRate, match=r"the API key id… has made as many requests as it may in a minute \(2\); wait a little\."
    ) as refusal:
        rates.admit(two, 1)
    assert math.isclose(refusal.value.retry_after, 40)
    clock.now += 40
    rates.admit(two, 1)
    few = key(tokens_per_minute=100)
    rates = Rates(clock)
    admission = rates.admit(few, 90)
    with pytest.raises(OverRate, match=r"has 100 tokens a minute, and this request may take 20; wait a little\."):
        rates.admit(few, 20)
    rates.leave(admission, 30)  # it took fewer than it might have
    rates.admit(few, 70)
    with pytest.raises(UsageError, match="may take 101 tokens, but the API key id… has 100 a minute; shorten"):
        rates.admit(few, 101)
    rates, single = Rates(clock), key(concurrency=1)
    admission = rates.admit(single, 1)
    with pytest.raises(OverRate, match=r"runs as many requests as it may at once \(1\)") as refusal:
        rates.admit(single, 1)
    assert refusal.value.retry_after == 1
    rates.leave(admission)
    rates.leave(admission)
    rates.admit(single, 1)


def test_keys_at_rest_take_no_memory() -> None:
    clock = Monotonic()
    rates = Rates(clock)
    limited = key(requests_per_minute=10, tokens_per_minute=10)
    admissions = [rates.admit(limited, 1) for _ in range(5)]
    clock.now += MINUTE
    for admission in admissions:
        rates.leave(admission)
    for _ in range(100):
        rates.leave(rates.admit(key(concurrency=1), 1))
    assert not rates._keys


def test_many_threads_run_no_more_at_once_than_they_may() -> None:
    rates = Rates()
    one = key(concurrency=3)

    def work(_: int) -> int:
        try:
            admission = rates.admit(one, 1)
        except OverRate:
            return 0
        seen = rates.running(one.id)
        rates.leave(admission)
        return seen

    with ThreadPoolExecutor(12) as pool:
        seen = list(pool.map(work, range(2000)))
    assert 1 <= max(seen) <= 3
    assert rates.running(one.id) == 0
