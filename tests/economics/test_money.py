"""Money is exact: what goes in comes out, and nothing is rounded on the way."""

from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.economics.money import PICODOLLARS, dollars, picodollars, shown
from narrows.errors import UsageError

AMOUNTS = st.integers(min_value=0, max_value=10**40)


@given(st.integers(min_value=-(10**40), max_value=10**40))
def test_dollars_are_the_same_amount(amount: int) -> None:
    assert dollars(amount).as_integer_ratio()[0] * PICODOLLARS == amount * dollars(amount).as_integer_ratio()[1]
    read = Decimal(shown(amount).replace("$", "").replace(",", ""))
    assert read == dollars(amount)
    assert len(shown(amount).partition(".")[2]) >= 2
    if 0 <= amount < 10**30:
        assert picodollars(dollars(amount)) == picodollars(f"{dollars(amount):f}") == amount


@given(st.lists(AMOUNTS, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_sums_do_not_depend_on_the_order(amounts: list[int], random: Random) -> None:
    mixed = random.sample(amounts, len(amounts))
    assert sum(mixed) == sum(amounts)
    assert dollars(sum(mixed)).compare(dollars(sum(amounts))) == 0


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", 0),
        ("2.50", 2_500_000_000_000),
        ("0.000000000001", 1),
        ("1e3", 1000 * PICODOLLARS),
        (3, 3 * PICODOLLARS),
        (Decimal("0.003625"), 3_625_000_000),
        ("0e-999999", 0),
    ],
)
def test_what_is_read(text: Any, amount: int) -> None:
    assert picodollars(text) == amount


@pytest.mark.parametrize(
    "text",
    ["", "free", "NaN", "sNaN", "inf", "-1", "0.0000000000001", "1e999999", "1e-999999", "9" * 5000, 0.1, True, None],
)
def test_what_is_no_exact_amount_is_refused_by_its_name(text: Any) -> None:
    with pytest.raises(UsageError, match="the budget is"):
        picodollars(text, "the budget")


def test_how_it_is_shown() -> None:
    assert [shown(amount) for amount in (0, 1, 3_625_000, 12 * 10**11, 1_234_500 * 10**9, -5 * 10**11)] == [
        "$0.00",
        "$0.000000000001",
        "$0.000003625",
        "$1.20",
        "$1,234.50",
        "-$0.50",
    ]
