"""The price book: dated, exact, and refused where it is neither."""

from datetime import date
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.economics.money import dollars
from narrows.economics.prices import Entry, Price, PriceBook, Tier, Tokens
from narrows.errors import NarrowsError, UsageError

BOOK = PriceBook.load()
LAUNCH, LATER = date(2026, 4, 24), date(2026, 11, 1)


def test_the_published_prices() -> None:
    """Dollars for a million tokens of each kind."""
    published = {
        ("deepseek-v4-pro", LAUNCH): "0.145 1.74 3.48",
        ("deepseek-v4-pro", LATER): "0.003625 0.435 0.87",
        ("deepseek-v4-flash", LAUNCH): "0.028 0.14 0.28",
        ("claude-opus-4.8", LATER): "0.5 5 25",
        ("self-hosted", LATER): "0.001 0.01 0.02",
    }
    million = 1_000_000
    for (model, day), expected in published.items():
        price = BOOK.price(model, day)
        kinds = (Tokens(hit=million), Tokens(miss=million), Tokens(output=million))
        assert " ".join(f"{dollars(price.cost(tokens)).normalize():f}" for tokens in kinds) == expected
    assert BOOK.price("deepseek-v4-pro", LATER).hit == 3_625  # picodollars a token
    assert {model for model, _ in published} == set(BOOK.names)
    assert all(BOOK.entry(model, LATER).source for model in BOOK.names)


COUNTS = st.integers(min_value=0, max_value=10**9)
TOKENS = st.builds(Tokens, COUNTS, COUNTS, COUNTS)
PRICES = st.builds(Price, COUNTS, COUNTS, COUNTS, st.integers(1, 10).map(Fraction))
TIERS = st.sampled_from(["default", "priority"])


@given(PRICES, st.lists(TOKENS, max_size=8), TIERS)
def test_the_cost_of_all_is_the_sum_of_the_costs(price: Price, parts: list[Tokens], tier: Tier) -> None:
    whole = Tokens(*(sum(getattr(one, kind) for one in parts) for kind in ("hit", "miss", "output")))
    assert price.cost(whole, tier) == sum(price.cost(one, tier) for one in parts)
    assert type(price.cost(whole, tier)) is int
    assert price.cost(whole, "priority") == price.cost(whole) * price.priority


@given(st.sets(st.dates(), min_size=1, max_size=6), st.dates())
def test_the_latest_price_that_is_not_after_the_day(since: set[date], on: date) -> None:
    entries = [Entry("m", day, Price(day.toordinal(), 0, 0), "test") for day in since]
    book = PriceBook(entries)
    held = [day for day in since if day <= on]
    if held:
        assert book.price("m", on).hit == max(held).toordinal()
    else:
        with pytest.raises(UsageError, match=f"m has no price on {on}; its first one holds from {min(since)}"):
            book.price("m", on)


def test_an_unknown_model_is_told_the_nearest_names() -> None:
    with pytest.raises(UsageError, match=r"deepseek-v4-por has no price; .*: deepseek-v4-pro, deepseek-v4-flash\."):
        BOOK.price("deepseek-v4-por", LATER)
    with pytest.raises(UsageError, match=r"zzz has no price; .*self-hosted"):
        BOOK.price("zzz", LATER)


ENTRY = """
[[prices]]
model = "mine"
from = 2026-05-01
hit = 0.1
miss = 0.2
output = 0.3
priority = 1.5
source = "us"
"""


def test_a_hosts_file_takes_the_place_of_the_models_it_names(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(ENTRY + ENTRY.replace("mine", "self-hosted").replace("0.1", "1_000.5"))
    book = PriceBook.load(file)
    assert set(book.names) == {*BOOK.names, "mine"}
    assert book.price("self-hosted", LATER).hit == 1_000_500_000
    assert book.price("mine", LATER).cost(Tokens(10, 10, 10), "priority") == 9_000_000
    with pytest.raises(UsageError, match="self-hosted has no price on 2026-04-24"):  # its own entries are gone
        book.price("self-hosted", LAUNCH)
    assert book.price("deepseek-v4-pro", LAUNCH) == BOOK.price("deepseek-v4-pro", LAUNCH)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("0.1\n", "0.0000001\n", "mine: hit is 1E-7 dollars a million tokens; give at most 6 decimals"),
        ("0.1\n", "-1\n", "mine: hit is -1; give dollars from 0 on"),
        ("0.1\n", "nan\n", "mine: hit is NaN; give dollars from 0 on"),
        ("0.1\n", "true\n", "mine: hit is True; give dollars"),
        ("0.1\n", "[]\n", r"mine: hit is \[\]; give dollars"),
        ("1.5", "0.5", "mine: priority is .*0.5.*; give how many times the price it costs"),
        ("1.5", "inf", "mine: priority is .*; give how many times"),
        ("0.1\n", "0.000001\n", "mine: priority 3/2 times the price of hit has more than 6 decimals"),
        ("2026-05-01", '"May"', "mine: from is 'May'; give a date"),
        ("2026-05-01", "2026-05-01T00:00:00Z", "mine: from is .*; give a date"),
        ('source = "us"', "", "mine: the field source is missing"),
        ('source = "us"', 'sauce = "us"\nsource = "us"', "mine: the field sauce is not known here"),
        ('"mine"', "7", "entry 1: model is 7; give text"),
        ("[[prices]]", "[prices]", "is no price book"),
        ("[[prices]]", "x = 1\n[[prices]]", "is no price book"),
        ("[[prices]]", "[[prices", "is not TOML"),
        ("[[prices]]", ENTRY + "[[prices]]", "mine has two prices from 2026-05-01; remove one"),
    ],
)
def test_a_broken_book_names_file_model_and_field(tmp_path: Path, before: str, after: str, said: str) -> None:
    file = tmp_path / "prices.toml"
    assert before in ENTRY
    file.write_text(ENTRY.replace(before, after))
    with pytest.raises(NarrowsError, match=f"^{file}.*{said}"):
        PriceBook.load(file)


def test_a_book_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NarrowsError, match="cannot be read"):
        PriceBook.load(tmp_path / "absent.toml")
    (tmp_path / "prices.toml").write_bytes(b"\xff")
    with pytest.raises(NarrowsError, match="is not TOML"):
        PriceBook.load(tmp_path / "prices.toml")


@pytest.mark.parametrize("count", [-1, 1.0, True, None])
def test_tokens_are_counted(count: object) -> None:
    with pytest.raises(UsageError, match="miss tokens are"):
        Tokens(1, count, 1)  # type: ignore[arg-type]
