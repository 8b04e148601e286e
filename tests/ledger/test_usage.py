"""Sums over requests are those of the rows, in whatever groups, and to the last digit."""

from __future__ import annotations

import csv
import io
from collections import Counter
from datetime import date
from decimal import Decimal
from random import Random
from typing import Any

import pytest

from narrows.economics.money import PICODOLLARS, picodollars
from narrows.economics.prices import Tokens
from narrows.errors import UsageError
from narrows.ledger.ledger import Ledger
from narrows.ledger.requests import Usage
from narrows.ledger.usage import Group, total, write_csv
from tests.draws import occasion
from tests.ledger.conftest import Clock, reserve

GROUPS: list[tuple[Group, ...]] = [
    (),
    ("key",),
    ("model",),
    ("day",),
    ("key", "day"),
    ("day", "model"),
    ("model", "key"),
]


def test_sums_are_those_of_the_rows(ledger: Ledger, clock: Clock) -> None:
    random = Random(occasion())
    keys = [ledger.create_key(name)[0] for name in ("same", "same", "other")]
    for number in range(60):
        key = random.choice(keys)
        model = random.choice(("a", "b"))
        reservation = ledger.reserve(
            key, request_id=f"r{number}", model=model, endpoint="/", worst_case=10 * PICODOLLARS
        )
        match random.randrange(4):
            case 0:
                ledger.release(reservation, "error")
            case 1:
                pass
            case _:
                counts = [random.randrange(1000) for _ in range(3)]
                ledger.settle(reservation, Usage(Tokens(*counts), random.randrange(10 * PICODOLLARS), counts[2] // 2))
        clock.add(hours=random.choice((0, 9, 30)))
    rows = [row for row in ledger.requests(limit=1000) if row.state != "open"]
    days = sorted({row.day for row in rows})
    since, until = days[1], days[-2]
    within = [row for row in rows if since <= row.day <= until]
    for groups in GROUPS:
        for options, counted in (({}, rows), ({"since": since, "until": until}, within)):
            expected: dict[tuple[Any, ...], Counter[str]] = {}
            for row in counted:
                group = tuple({"key": row.key_id, "model": row.model, "day": row.day}[name] for name in groups)
                sums = expected.setdefault(group, Counter())
                sums["requests"] += 1
                for name in ("hit", "miss", "output", "reasoning", "cost"):
                    sums[name] += getattr(row, name)
            found = ledger.usage(groups, **options)  # type: ignore[arg-type]
            assert len(found) == len(expected)
            for one in found:
                group = tuple(getattr(one, "key_id" if name == "key" else name) for name in groups)
                assert one.key_name == (None if "key" not in groups else {k.id: k.name for k in keys}[one.key_id or ""])
                for name in ("requests", "hit", "miss", "output", "reasoning", "cost"):
                    assert getattr(one, name) == expected[group][name]
            if groups[-1:] == ("day",):
                assert [one.day for one in found if one.key_id == found[0].key_id] == sorted(
                    one.day for one in found if one.key_id == found[0].key_id and one.day
                )
            assert total(found).cost == sum(row.cost for row in counted)
    assert [one.key_id for one in ledger.usage(key_id=keys[2].id)] == [keys[2].id]


def test_sums_beyond_64_bits(ledger: Ledger, clock: Clock) -> None:
    most = 4 * 10**18 - 1
    for number in range(5):
        key, _ = ledger.create_key(f"rich-{number}")
        ledger.settle(reserve(ledger, key, f"r{number}", most), Usage(Tokens(), most))
    (everything,) = ledger.usage(())
    assert everything.cost == 5 * most > 2**64
    file = io.StringIO()
    write_csv([everything], (), file)
    assert file.getvalue() == "requests,hit,miss,output,reasoning,cost_dollars\n5,0,0,0,0,19999999.999999999995\n"


def test_csv_can_be_read_back(ledger: Ledger) -> None:
    key, _ = ledger.create_key('quotes ", commas')
    ledger.settle(reserve(ledger, key, "r"), Usage(Tokens(1, 2, 3), 7, reasoning=1))
    rows = ledger.usage(("key", "model", "day"))
    file = io.StringIO()
    write_csv(rows, ("key", "model", "day"), file)
    (read,) = csv.DictReader(io.StringIO(file.getvalue()))
    assert (read["key_id"], read["key_name"], read["model"], read["day"]) == (
        key.id,
        key.name,
        "embedded",
        "2026-05-31",
    )
    assert [int(read[name]) for name in ("requests", "hit", "miss", "output", "reasoning")] == [1, 1, 2, 3, 1]
    assert picodollars(Decimal(read["cost_dollars"])) == 7


def test_nothing_and_nonsense(ledger: Ledger) -> None:
    for groups in GROUPS:
        assert ledger.usage(groups) == []
    with pytest.raises(UsageError, match="by key, model, day, not by 'hour'"):
        ledger.usage(("hour",))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="name the earlier day first"):
        ledger.usage(since=date(2026, 2, 1), until=date(2026, 1, 1))
