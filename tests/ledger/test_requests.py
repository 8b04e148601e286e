"""Reservations and charges: no budget is exceeded, nothing is charged twice, and the sums are those of the rows."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from narrows.economics.prices import Tokens
from narrows.errors import NarrowsError, UsageError
from narrows.ledger.errors import AlreadyDone, OverBudget, StillRunning
from narrows.ledger.keys import Key
from narrows.ledger.ledger import Ledger
from narrows.ledger.requests import Reservation, Usage
from tests.draws import occasion, scaled
from tests.ledger.conftest import Clock, reserve


def used(cost: int = 0, **options: Any) -> Usage:
    return Usage(Tokens(1, 2, 3), cost, **options)


def money(ledger: Ledger, key: Key, month: date | None = None) -> tuple[int, int]:
    """What the key's month has settled and reserved, which is what its rows say."""
    spent = ledger.spending(month).get(key.id)
    rows = [row for row in ledger.requests(key_id=key.id, limit=10_000) if month is None or row.day >= month]
    rows = (
        [row for row in rows if (row.day.year, row.day.month) == (spent.month.year, spent.month.month)] if spent else []
    )
    found = (spent.settled, spent.reserved) if spent else (0, 0)
    assert found == (
        sum(row.cost for row in rows),
        sum(row.reserved for row in rows if row.state == "open"),
    )
    return found


def test_a_request_from_its_reservation_to_its_charge(ledger: Ledger, clock: Clock) -> None:
    key, _ = ledger.create_key("one", budget=1000)
    reservation = reserve(ledger, key, "r1", 600, protocol="anthropic", tier="priority")
    open_row = ledger.request("r1")
    assert open_row is not None
    assert open_row.reservation == reservation
    assert (open_row.state, open_row.outcome, open_row.ended, open_row.cost) == ("open", None, None, 0)
    assert money(ledger, key) == (0, 600)
    clock.add(hours=-2)  # it jumps, and what is measured does not
    usage = Usage(Tokens(10, 20, 30), 599, reasoning=5, outcome="cut", first_token_seconds=0.25, seconds=1.5)
    row = ledger.settle(reservation, usage)
    assert row == ledger.request("r1")
    assert (row.hit, row.miss, row.output, row.reasoning, row.cost, row.reserved) == (10, 20, 30, 5, 599, 600)
    assert (row.state, row.outcome, row.tier, row.protocol) == ("settled", "cut", "priority", "anthropic")
    assert (row.first_token_seconds, row.seconds) == (0.25, 1.5)
    assert row.started == clock.now + timedelta(hours=2)
    assert row.ended == clock.now
    assert money(ledger, key) == (599, 0)


def test_settling_or_releasing_again_changes_nothing(ledger: Ledger) -> None:
    key, _ = ledger.create_key("one", budget=1000)
    charged, dropped = reserve(ledger, key, "charged"), reserve(ledger, key, "dropped")
    row = ledger.settle(charged, used(70))
    assert ledger.settle(charged, used(99)) == ledger.release(charged) == row
    row = ledger.release(dropped, "error")
    assert (row.state, row.outcome, row.cost) == ("released", "error", 0)
    assert ledger.release(dropped, "cancelled") == row
    assert money(ledger, key) == (70, 0)


def test_what_is_above_the_budget_is_refused(ledger: Ledger) -> None:
    key, _ = ledger.create_key("one", budget=5 * 10**12)
    ledger.settle(reserve(ledger, key, "a", 10**12), used(10**12))
    reservation = reserve(ledger, key, "b", 3 * 10**12)
    reserve(ledger, key, "free", 0)
    with pytest.raises(OverBudget) as refusal:
        reserve(ledger, key, "c", 10**12 + 1)
    assert str(refusal.value) == (
        f"the API key {key.id}… has $5.00 a month, of which $1.00 is spent and $3.00 reserved by requests under way; "
        "this one may cost $1.000000000001. Ask for fewer tokens, wait until 2026-06-01, or have the budget raised."
    )
    assert ledger.request("c") is None
    reserve(ledger, key, "d", 10**12)
    ledger.settle(reservation, used(1))
    reserve(ledger, key, "e", 3 * 10**12 - 1)
    nothing, _ = ledger.create_key("nothing", budget=0)
    with pytest.raises(OverBudget, match=r"has \$0.00 a month"):
        reserve(ledger, nothing, "f", 1)


def test_another_budget_holds_from_the_next_request_on(ledger: Ledger) -> None:
    key, _ = ledger.create_key("one", budget=100)
    first = reserve(ledger, key, "a", 100)
    assert ledger.set_budget(key.id, 150).budget == 150
    second = reserve(ledger, key, "b", 50)
    ledger.set_budget(key.id, 10)
    with pytest.raises(OverBudget):
        reserve(ledger, key, "c", 1)
    ledger.settle(first, used(90))
    ledger.release(second)
    with pytest.raises(OverBudget):
        reserve(ledger, key, "c", 1)
    assert money(ledger, key) == (90, 0)
    ledger.set_budget(key.id, None)
    reserve(ledger, key, "c", 10**15)
    assert ledger.keys()[0].budget is None
    with pytest.raises(UsageError, match="no key has the id 'nobody'"):
        ledger.set_budget("nobody", 1)
    with pytest.raises(UsageError, match="budget is -1"):
        ledger.set_budget(key.id, -1)


def test_a_key_without_a_budget_has_the_largest_amount(ledger: Ledger) -> None:
    key, _ = ledger.create_key("one")
    reservation = reserve(ledger, key, "a", 4 * 10**18)
    with pytest.raises(OverBudget, match=r"has \$4,000,000.00 a month"):
        reserve(ledger, key, "b", 1)
    ledger.settle(reservation, used(4 * 10**18))
    with pytest.raises(OverBudget):
        reserve(ledger, key, "c", 4 * 10**18)
    assert money(ledger, key) == (4 * 10**18, 0)


def test_a_cost_above_the_reservation_is_refused_and_can_be_settled_still(ledger: Ledger) -> None:
    key, _ = ledger.create_key("one", budget=1000)
    reservation = reserve(ledger, key, "a", 100)
    with pytest.raises(NarrowsError, match=r"request a would cost .* more than the .* that it reserved"):
        ledger.settle(reservation, used(101))
    assert money(ledger, key) == (0, 100)
    assert ledger.settle(reservation, used(100)).cost == 100


def test_every_month_has_the_whole_budget_and_pays_for_what_began_in_it(ledger: Ledger, clock: Clock) -> None:
    key, _ = ledger.create_key("one", budget=100)
    may, june = date(2026, 5, 1), date(2026, 6, 1)
    late = reserve(ledger, key, "late", 100)
    clock.add(seconds=2)
    assert clock.now.month == 6
    reserve(ledger, key, "new", 100)
    ledger.settle(late, used(60))
    assert (money(ledger, key, may), money(ledger, key, june)) == ((60, 0), (0, 100))
    clock.add(seconds=-2)  # back it jumps, and that month's rest is as it was
    reserve(ledger, key, "again", 40)
    with pytest.raises(OverBudget, match="wait until 2026-06-01"):
        reserve(ledger, key, "more", 1)
    clock.add(days=400)
    reserve(ledger, key, "far", 100)
    clock.now = clock.now.replace(month=12, day=31)
    reserve(ledger, key, "last", 100)
    with pytest.raises(OverBudget, match="wait until 2028-01-01"):
        reserve(ledger, key, "more", 1)
    assert (money(ledger, key, may), money(ledger, key, june)) == ((60, 40), (0, 100))


def test_an_idempotency_key_is_charged_once(ledger: Ledger) -> None:
    key, _ = ledger.create_key("one", budget=1000)
    other, _ = ledger.create_key("other")
    first = reserve(ledger, key, "a", idempotency="once", fingerprint="x")
    with pytest.raises(StillRunning, match="request a with the idempotency key 'once' is still running") as running:
        reserve(ledger, key, "b", idempotency="once", fingerprint="x")
    assert running.value.row == ledger.request("a")
    row = ledger.settle(first, used(50))
    with pytest.raises(AlreadyDone) as done:
        reserve(ledger, key, "c", 10_000, idempotency="once", fingerprint="x")
    assert done.value.row == row
    with pytest.raises(UsageError, match="'once' was used for another request"):
        reserve(ledger, key, "d", idempotency="once", fingerprint="y")
    reserve(ledger, other, "e", idempotency="once", fingerprint="y")
    assert money(ledger, key) == (50, 0)


def test_what_was_not_charged_may_be_tried_again(ledger: Ledger) -> None:
    key, _ = ledger.create_key("one", budget=1000)
    first = reserve(ledger, key, "a", idempotency="once")
    ledger.release(first, "error")
    second = reserve(ledger, key, "b", idempotency="once")
    with pytest.raises(StillRunning):  # the first one was not over after all; it must not be charged beside the second
        ledger.settle(first, used(50))
    ledger.settle(second, used(60))
    with pytest.raises(AlreadyDone):
        ledger.settle(first, used(50))
    assert money(ledger, key) == (60, 0)


def test_a_released_request_is_charged_within_the_budget_if_it_was_served_after_all(ledger: Ledger) -> None:
    key, _ = ledger.create_key("one", budget=100)
    first, second = reserve(ledger, key, "a", 50), reserve(ledger, key, "b", 50)
    ledger.release(first, "lost")
    ledger.release(second, "lost")
    assert ledger.settle(first, used(50)).outcome == "done"
    reserve(ledger, key, "c", 40)
    with pytest.raises(OverBudget):
        ledger.settle(second, used(20))
    assert ledger.settle(second, used(10)).cost == 10
    assert money(ledger, key) == (60, 40)


def test_what_no_row_holds(ledger: Ledger) -> None:
    key, _ = ledger.create_key("one")
    bad: list[tuple[dict[str, Any], str]] = [
        ({"request_id": ""}, "request_id is ''"),
        ({"model": "a\0b"}, "model is .*cannot be printed"),
        ({"endpoint": "x" * 201}, "endpoint is .*1 to 200"),
        ({"protocol": "\udcff"}, "protocol is"),
        ({"tier": "gold"}, "tier is 'gold'; choose default or priority"),
        ({"worst_case": 1.0}, "worst_case is 1.0"),
        ({"worst_case": -1}, "worst_case is -1"),
        ({"idempotency": "x" * 256}, "the idempotency key is"),
        ({"idempotency": ""}, "the idempotency key is ''"),
    ]
    fine = {"request_id": "a", "model": "m", "endpoint": "/", "worst_case": 1}
    for options, said in bad:
        with pytest.raises(UsageError, match=said):
            ledger.reserve(key, **fine | options)  # type: ignore[arg-type]
    reservation = ledger.reserve(key, **fine)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="there is a request a already"):
        ledger.reserve(key, **fine)  # type: ignore[arg-type]
    for options, said in (
        ({"reasoning": 4}, "reasoning is 4"),
        ({"cost": 0.5}, "cost is 0.5"),
        ({"outcome": "fine"}, "outcome is 'fine'"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"first_token_seconds": -1}, "first_token_seconds is -1"),
    ):
        with pytest.raises(UsageError, match=said):
            used(**options)
    with pytest.raises(UsageError, match="has no request b"):
        ledger.settle(Reservation("b", key.id, 1), used())
    with pytest.raises(UsageError, match="no key has the id 'nobody'"):
        ledger.release(Reservation("a", "nobody", 1))
    ledger.release(reservation)


def test_rows_come_latest_first_in_pages(ledger: Ledger, clock: Clock) -> None:
    key, _ = ledger.create_key("one")
    other, _ = ledger.create_key("other")
    for number in range(7):
        reserve(ledger, key, f"r{number}")
        clock.add(hours=12 * (number % 2))
    reserve(ledger, other, "other")
    pages = [ledger.requests(key_id=key.id, limit=3)]
    while pages[-1]:
        pages.append(ledger.requests(key_id=key.id, limit=3, before=pages[-1][-1]))
    assert [row.id for page in pages for row in page] == [f"r{number}" for number in reversed(range(7))]
    days = {row.id: row.day for page in pages for row in page}
    first, last = min(days.values()), max(days.values())
    assert {row.id for row in ledger.requests(key_id=key.id, since=last)} == {
        r for r, day in days.items() if day == last
    }
    assert {row.id for row in ledger.requests(until=first)} == {r for r, day in days.items() if day == first}
    with pytest.raises(UsageError, match="limit is 0"):
        ledger.requests(limit=0)


def test_many_threads_never_exceed_the_budget(url: str) -> None:
    budget, threads, each = 1000, 12, 25
    with Ledger.open(url, patience=60) as ledger:
        key, _ = ledger.create_key("one", budget=budget)
        numbers = itertools.count()

        def work(seed: int) -> int:
            random = Random(f"{seed} {occasion()}")
            charged = 0
            for _ in range(each):
                spent = ledger.spending()[key.id] if random.random() < 0.3 and key.id in ledger.spending() else None
                assert spent is None or spent.settled + spent.reserved <= budget
                worst = random.randint(1, 100)
                try:
                    reservation = reserve(ledger, key, f"r{next(numbers)}", worst)
                except OverBudget:
                    continue
                if random.random() < 0.7:
                    charged += ledger.settle(reservation, used(random.randint(0, worst // 4))).cost
                else:
                    ledger.release(reservation)
            return charged

        with ThreadPoolExecutor(threads) as pool:
            charged = sum(pool.map(work, range(threads)))
        assert money(ledger, key) == (charged, 0)
        assert 0 < charged <= budget
        assert sum(one.cost for one in ledger.usage()) == charged


def test_many_threads_with_one_idempotency_key_are_charged_once(url: str) -> None:
    with Ledger.open(url, patience=60) as ledger:
        key, _ = ledger.create_key("one")

        def attempt(number: int) -> int:
            try:
                reservation = reserve(ledger, key, f"r{number}", idempotency=f"once-{number % 5}")
            except (StillRunning, AlreadyDone):
                return 0
            return ledger.settle(reservation, used(7)).cost

        with ThreadPoolExecutor(10) as pool:
            assert sum(pool.map(attempt, range(100))) == 5 * 7
        assert money(ledger, key) == (5 * 7, 0)


AMOUNTS = st.integers(min_value=0, max_value=120)


class Accounts(RuleBasedStateMachine):
    """The ledger against a dictionary that does the same, whatever is asked of them in whatever order."""

    reservations: Bundle[Reservation] = Bundle("reservations")
    url: str

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.ledger = Ledger.open(self.url, clock=self.clock)
        self.keys = [self.ledger.create_key("key", budget=budget)[0] for budget in (300, 100)]
        self.number = 0
        self.rows: dict[str, dict[str, Any]] = {}

    def room(self, key: Key, month: tuple[int, int]) -> int:
        mine = [row for row in self.rows.values() if row["key"] == key.id and row["month"] == month]
        held = sum(row["worst"] if row["state"] == "open" else row["cost"] for row in mine)
        assert key.budget is not None
        return key.budget - held

    @rule(target=reservations, which=st.integers(0, 1), worst=AMOUNTS, once=st.sampled_from([None, None, "a", "b"]))
    def reserve(self, which: int, worst: int, once: str | None) -> Any:
        key, month = self.keys[which], (self.clock.now.year, self.clock.now.month)
        self.number += 1
        name = f"r{self.number}"
        same = [row for row in self.rows.values() if once and row["once"] == once and row["key"] == key.id]
        states = {row["state"] for row in same}
        expected: type[Exception] | None = None
        if "open" in states or "settled" in states:
            expected = StillRunning if "open" in states else AlreadyDone
        elif worst > max(self.room(key, month), 0):
            expected = OverBudget
        if expected:
            with pytest.raises(expected):
                reserve(self.ledger, key, name, worst, idempotency=once)
            return Reservation("none", key.id, 0)
        self.rows[name] = {"key": key.id, "month": month, "worst": worst, "cost": 0, "state": "open", "once": once}
        return reserve(self.ledger, key, name, worst, idempotency=once)

    @rule(reservation=reservations, share=st.floats(0, 1))
    def settle(self, reservation: Reservation, share: float) -> None:
        row = self.rows.get(reservation.request_id)
        if row is None or row["state"] == "released":
            return
        cost = int(reservation.worst_case * share)
        if row["state"] == "open":
            row |= {"state": "settled", "cost": cost}
        assert self.ledger.settle(reservation, used(cost)).cost == row["cost"]

    @rule(reservation=consumes(reservations))
    def release(self, reservation: Reservation) -> None:
        row = self.rows.get(reservation.request_id)
        if row is not None:
            row["state"] = "released" if row["state"] == "open" else row["state"]
            assert self.ledger.release(reservation, "error").state == row["state"]

    @rule(days=st.integers(-40, 40))
    def jump(self, days: int) -> None:
        self.clock.add(days=days)

    @invariant()
    def the_sums_are_those_of_the_rows(self) -> None:
        for month in {row["month"] for row in self.rows.values()}:
            spending = self.ledger.spending(date(*month, 1))
            for key in self.keys:
                mine = [row for row in self.rows.values() if (row["key"], row["month"]) == (key.id, month)]
                spent = spending.get(key.id)
                found = (spent.settled, spent.reserved) if spent else (0, 0)
                assert found == (
                    sum(row["cost"] for row in mine),
                    sum(row["worst"] for row in mine if row["state"] == "open"),
                )
                assert key.budget is not None
                assert sum(found) <= key.budget

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()


def test_whatever_is_asked_in_whatever_order(tmp_path_factory: pytest.TempPathFactory) -> None:
    class OnSqlite(Accounts):
        @property
        def url(self) -> str:  # type: ignore[override]
            return str(tmp_path_factory.mktemp("ledger") / "ledger.db")

    machine: Any = OnSqlite.TestCase
    machine.settings = settings(max_examples=scaled(15), stateful_step_count=30, deadline=None)
    machine().runTest()


def test_a_file_named_by_its_path(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "a b%20.db") as ledger:
        key, _ = ledger.create_key("one")
    with Ledger.open(str(tmp_path / "a b%20.db")) as ledger:
        assert ledger.keys() == [key]
    assert [file.name for file in tmp_path.iterdir()] == ["a b%20.db"]
    assert (tmp_path / "a b%20.db").stat().st_mode & 0o777 == 0o600
