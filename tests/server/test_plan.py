"""GET /api/plan: the overview of the price book's day, to whoever has a key."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest

from narrows.economics.money import plain
from narrows.economics.overview import overview
from narrows.economics.prices import OTHERWISE, Tokens
from tests.server.test_accounts import BOOK, House

TODAY = datetime.now(UTC).date()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("plan")).open() as house:
        yield house


def test_it_tells_the_overview_of_today(house: House) -> None:
    status, told = house.get("/api/plan?context=131072&cached=0.29&tokens=2000000&written=0.07", house.key())
    parts = {"cached": Fraction(29, 100), "written": Fraction(7, 100)}
    assert (status, told) == (200, overview(BOOK, TODAY, context=131072, tokens=2_000_000, **parts))
    assert told["month"]["tokens"] == {"hit": 539_400, "miss": 1_320_600, "output": 140_000}
    costs = {cost["model"]: cost for cost in told["month"]["costs"]}
    assert costs.keys() == set(BOOK.names) - {OTHERWISE}
    for name, cost in costs.items():
        entry = BOOK.entry(name, TODAY)
        assert cost["since"] == entry.since.isoformat()
        assert cost["total"] == plain(entry.price.cost(Tokens(**told["month"]["tokens"])))


def test_unasked_it_tells_of_the_longest_context_as_the_report_does(house: House) -> None:
    status, told = house.get("/api/plan", house.key())
    assert (status, told["context"]) == (200, 1 << 20)
    before, now = (told["efficiency"][f"deepseek-{name}"] for name in ("v3.2", "v4-pro"))
    assert [round(now["flops"] / 1e9, 1), round(now["flops"] / before["flops"], 3)] == [319.4, 0.267]
    assert [round(now["history_bytes"] / 1e9, 2), round(now["history_bytes"] / before["history_bytes"], 3)] == [
        5.28,
        0.105,
    ]
    assert sum(told["month"]["tokens"].values()) == 100_000_000


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *(("context", wrong) for wrong in ("0", "-1", str((1 << 20) + 1), "4096.5", "128K", "")),
        *(("tokens", wrong) for wrong in ("0", str(10**15 + 1), "1e6", "9" * 5000)),
        *((name, wrong) for name in ("cached", "written") for wrong in ("-0.01", "1.01", "nan", "inf", "80%")),
    ],
)
def test_what_lies_outside_is_refused_by_name(house: House, name: str, wrong: str) -> None:
    status, told = house.get(f"/api/plan?{name}={wrong.replace('%', '%25')}", house.key())
    assert status == 400
    assert name in told["error"]["message"]


@pytest.mark.parametrize("query", ["context=1", "context=1048576", "tokens=1", "tokens=1000000000000000", "cached=0"])
def test_the_ends_are_inside(house: House, query: str) -> None:
    assert house.get(f"/api/plan?{query}", house.key())[0] == 200


def test_it_wants_a_key(house: House) -> None:
    told: dict[str, Any]
    status, told = house.get("/api/plan", "nrw_wrong")
    assert (status, told["error"]["code"]) == (401, "invalid_api_key")
