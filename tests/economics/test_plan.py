"""A month's bills: the claim from list prices, workloads from files, and hosting beside them."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.economics.bill import amount, requests_for
from narrows.economics.models import CONFIGS, known
from narrows.economics.money import PICODOLLARS
from narrows.economics.overview import MOST_CONTEXT, MOST_TOKENS, overview
from narrows.economics.plan import hosting, of_bill, of_workload
from narrows.economics.prices import PriceBook, Tokens
from narrows.economics.storage import history_bytes
from narrows.economics.units import HOURS_A_MONTH, share, tokens
from narrows.economics.work import decode_work, total
from narrows.economics.workload import Requests, load
from narrows.errors import NarrowsError, UsageError
from narrows.model.precision import Precision
from tests.economics.test_roofline import CHIP

BOOK = PriceBook.load()
TODAY = date(2026, 11, 1)
PRO, FLASH, OPUS = "deepseek-v4-pro", "deepseek-v4-flash", "claude-opus-4.8"


def test_ten_thousand_dollars_become_1392() -> None:
    """Written tokens at list prices: Opus 4.8's $25 a million, V4-Pro's $3.48 at its launch; later .87."""
    made = of_bill(amount("10000", "bill"), Requests("r", 1, 0, 1000), 0, BOOK, TODAY, [PRO], "opus-4.8")
    opus, launch, later = made.bills
    assert [one.entry.model for one in made.bills] == [OPUS, PRO, PRO]
    assert [one.total for one in made.bills] == [dollars * PICODOLLARS for dollars in (10_000, 1392, 348)]
    assert round(opus.total / launch.total, 1) == Fraction("7.2")
    assert made.reference is opus
    assert [one["total"] for one in made.told()["bills"]] == ["10000.00", "1392.00", "348.00"]
    assert later.entry.since == date(2026, 4, 27)
    assert made.requests == 400_000
    early = of_bill(amount("1", "bill"), Requests("r", 1, 0, 1000), 0, BOOK, date(2026, 4, 26), [PRO], PRO)
    assert [one.entry.since for one in early.bills] == [date(2026, 4, 24)]  # nothing of prices that came later


COUNTS = st.integers(0, 10**6)


@given(COUNTS, st.integers(1, 10**6), st.fractions(0, 1), st.integers(1, 10**9), COUNTS)
def test_a_bill_buys_the_same_requests_elsewhere(
    prompt: int, output: int, cached: Fraction, dollars: int, reasoning: int
) -> None:
    each = Requests("r", 1, prompt, output, cached)
    made = of_bill(dollars * PICODOLLARS, each, reasoning, BOOK, TODAY, [PRO, FLASH, OPUS], OPUS)
    assert made.bills[0].total == dollars * PICODOLLARS
    assert made.requests * BOOK.price(OPUS, TODAY).cost(each.each) == dollars * PICODOLLARS
    thought = Tokens(each.hit, prompt - each.hit, output + reasoning)
    for one in made.bills[1:]:
        assert one.total == made.requests * one.entry.price.cost(thought)
    assert [one.entry.model for one in made.bills].count(OPUS) == 1


def test_bills_that_cannot_be() -> None:
    nothing = Requests("r", 1, 0, 0)
    with pytest.raises(UsageError, match="such requests read and write nothing"):
        of_bill(1, nothing, 0, BOOK, TODAY, [PRO], OPUS)
    with pytest.raises(UsageError, match=r"such requests cost nothing with claude-opus-4\.8"):
        requests_for(1, Tokens(), BOOK.entry(OPUS, TODAY))
    with pytest.raises(UsageError, match="the bill is of nothing"):
        requests_for(0, Tokens(output=1), BOOK.entry(OPUS, TODAY))
    with pytest.raises(UsageError, match=r"claude-opus-4\.8 has no price on 2026-04-25; its first one holds from"):
        of_bill(1, Requests("r", 1, 0, 1), 0, BOOK, date(2026, 4, 25), [PRO], OPUS)
    for text, said in (("0", "give dollars above 0"), ("-5", "give dollars from 0 on"), ("ten", "give dollars")):
        with pytest.raises(UsageError, match=said):
            amount(text, "--monthly-bill")
    assert amount("$10,000", "--monthly-bill") == 10_000 * PICODOLLARS


def test_names_and_their_ends() -> None:
    assert [BOOK.resolve(name) for name in (OPUS, "opus-4.8", "v4-pro", "v4-flash")] == [OPUS, OPUS, PRO, FLASH]
    with pytest.raises(UsageError, match=r"v4-por has no price; the nearest names that have one: deepseek-v4-pro"):
        BOOK.resolve("v4-por")
    with pytest.raises(UsageError, match=r"gpt-9 has no price"):
        BOOK.resolve("gpt-9")
    two = PriceBook([replace(BOOK.entry(PRO, TODAY), model=name) for name in ("a-pro", "b-pro")])
    with pytest.raises(UsageError, match="pro may be any of a-pro, b-pro; name one"):
        two.resolve("pro")
    names = {PRO: PRO, "v4-pro": PRO, "v3.2": "deepseek-v3.2", "tiny": "tiny", "gpt": None, "": None}
    assert {name: known(name) for name in names} == names


AGENTS = """
[[requests]]
name = "agents"
count = 5000
per = "day"
prompt = "32K"
cached = "80%"
output = 600
reasoning = { high = 1500, max = 9000 }
effort = "high"
"""
WORKLOAD = f"""{AGENTS}
[[requests]]
count = 30000
prompt = 2000
output = 400
"""


def test_a_workload_is_read_and_billed(tmp_path: Path) -> None:
    file = tmp_path / "workload.toml"
    file.write_text(WORKLOAD)
    agents, others = load(file)
    assert agents.count == round(5000 * HOURS_A_MONTH / 24) == 152_188
    assert agents.each == Tokens(hit=26_214, miss=32_768 - 26_214, output=2100)
    assert (others.name, others.each) == ("requests 2", Tokens(miss=2000, output=400))
    made = of_workload([agents, others], BOOK, TODAY, [PRO], "opus-4.8")
    by_hand = sum(requests.count * BOOK.price(PRO, TODAY).cost(requests.each) for requests in (agents, others))
    assert made.bills[-1].total == by_hand
    assert {effort: [one.total for one in bills] for effort, bills in made.by_effort.items()}["high"] == [
        one.total for one in made.bills
    ]
    written = {effort: bills[0].output for effort, bills in made.by_effort.items()}
    price = BOOK.price(OPUS, TODAY).output
    assert written["max"] - written["none"] == 9000 * agents.count * price
    assert [*made.by_effort] == ["none", "high", "max"]
    assert sum(demand.share for demand in made.demands) == pytest.approx(1)
    assert made.demands[0].output == 2100
    assert made.demands[0].share == pytest.approx(agents.count / (agents.count + others.count))
    assert of_workload([others], BOOK, TODAY, [PRO], None).by_effort == {}
    assert of_workload([others], BOOK, TODAY, [PRO], None).reference is None
    half = others.reading(Fraction(1, 2))
    assert half.each == Tokens(hit=1000, miss=1000, output=400)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            '"32K"',
            '"32 pages"',
            "agents: prompt is '32 pages'; give a whole number of tokens from 0, or so many K or M",
        ),
        ('"32K"', "-1", "agents: prompt is -1"),
        ('"32K"', "1.5", "agents: prompt is Decimal('1.5')"),
        ('"80%"', "80", "agents: cached is 80; give a share up to 1, or 80%, if that is meant"),
        ('"80%"', '"120%"', "agents: cached is '120%'"),
        ('"80%"', "nan", "agents: cached is Decimal('NaN')"),
        ('"day"', '["day"]', "agents: per is ['day']; give one of hour, day, month"),
        ('effort = "high"', "effort = [1]", "agents: effort is [1]"),
        ('"day"', '"fortnight"', "agents: per is 'fortnight'; give one of hour, day, month"),
        ("5000", "0", "agents: count is 0; give a whole number from 1"),
        ("5000", '"5K"', "agents: count is '5K'"),
        ("output = 600", "", "agents: the field output is missing"),
        ("output = 600", "output = 600\nprice = 3", "agents: the field price is not known here"),
        ('effort = "high"', 'effort = "low"', "agents: effort is 'low'; give one of none, high, max"),
        ("high = 1500, ", "", "agents: how much is thought at the effort high is not known"),
        ("max = 9000", "most = 9000", "agents: reasoning is {"),
        ("max = 9000", 'max = "9 GB"', "agents: reasoning.max is '9 GB'"),
        ('"agents"', "3", "3: name is 3; give text"),
        ("prompt = 2000\noutput = 400", "prompt = 0\noutput = 0", "requests 2: its requests read and write nothing"),
        ("[[requests]]", "[[request]]", "is no workload; let it hold tables [[requests]]"),
        ("[[requests]]", "[[requests", "is not TOML"),
    ],
)
def test_a_workload_that_is_wrong(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = tmp_path / "workload.toml"
    file.write_text(WORKLOAD.replace(old, new, 1))
    with pytest.raises(NarrowsError) as told:
        load(file)
    assert str(told.value).startswith(str(file))
    assert said in str(told.value)


def test_a_workload_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NarrowsError, match="cannot be read"):
        load(tmp_path / "none.toml")


def test_hosting_beside_the_bills() -> None:
    made = of_workload([Requests("r", 100_000, 8000, 500)], BOOK, TODAY, [PRO], OPUS)
    assert made.models == (OPUS, PRO)
    assert of_workload([Requests("r", 1, 1, 1)], BOOK, TODAY, [], PRO).models == (PRO,)  # who pays may host
    small = replace(CHIP, name="Small", memory=10**10)
    found = hosting(made, [(PRO, CONFIGS[PRO])], [(8, CHIP), (8, small), (67, CHIP)], speed=20, reached=0.5)
    hosted, misses, cannot = found
    assert misses.missed == "its weights and one request do not fit"
    assert "67 chips of a stage do not divide the 384 routed experts" in cannot.missed
    assert hosted.served is not None
    compared = [made.bills[0], made.bills[-1]]  # what is paid now, and its own price of today
    for (entry, even), one in zip(hosted.even, compared, strict=True):
        assert entry == one.entry
        assert even is not None
        assert float(one.total / PICODOLLARS) / 100_000 * even.at == pytest.approx(hosted.served.monthly)
    slow = hosting(made, [(PRO, CONFIGS[PRO])], [(8, CHIP)], speed=1e6)
    assert slow[0].missed == "nobody there would get 1e+06 tokens/s"
    whole = hosting(made, [(PRO, CONFIGS[PRO])], [(8, CHIP)], speed=20, precision=Precision.FP8, reached=1.0)[0].served
    assert whole is not None
    assert (whole.deployment.precision, whole.deployment.reached) == (Precision.FP8, 1.0)
    assert hosted.served.deployment.reached == 0.5
    few = hosting(made, [(PRO, CONFIGS[PRO])], [(8, CHIP)], speed=20, reached=0.5, hours=200)[0]
    assert few.served is not None
    assert few.served.most_a_month == pytest.approx(hosted.served.most_a_month * 200 / HOURS_A_MONTH)
    assert few.served.monthly == hosted.served.monthly  # they cost what they do
    with pytest.raises(UsageError, match=r"cannot answer prompts of 1,999,999 tokens: .* 2,000,000 tokens lies beyond"):
        hosting(
            of_workload([Requests("r", 1, 1_999_999, 1)], BOOK, TODAY, [PRO], None), [(PRO, CONFIGS[PRO])], [], speed=1
        )
    lines = dict(hosted.explain())
    assert any(name.endswith("weights: routed experts") for name in lines)
    assert any(": a chunk of " in name for name in lines)
    even_lines = [terms for name, terms in lines.items() if f": as much as {OPUS}" in name]
    assert len(even_lines) == 1
    assert f"{hosted.even[0][1].at:,.0f} requests a month" in even_lines[0]  # type: ignore[union-attr]
    assert hosted.told()["break_even"][0]["instead_of"] == OPUS


def test_what_the_page_shows() -> None:
    told = overview(BOOK, TODAY, context=1 << 20, cached=Fraction(1, 4), tokens=10**9, written=Fraction(1, 10))
    for name, found in told["efficiency"].items():
        assert found["flops"] == float(total(decode_work(CONFIGS[name], 1 << 20)))
        assert found["history_bytes"] == history_bytes(CONFIGS[name], 1 << 20)
        assert found["curve"][-1] == [1 << 20, found["flops"], found["history_bytes"]]
        assert [place for place, _, _ in found["curve"]][::4] == [4096 << double for double in range(9)]
    month = told["month"]
    assert month["tokens"] == {"hit": 225_000_000, "miss": 675_000_000, "output": 100_000_000}
    by_model = {one["model"]: one for one in month["costs"]}
    assert by_model[OPUS]["total"] == "5987.50"  # 225 × .50 + 675 × 5 + 100 × 25
    assert by_model[PRO]["since"] == "2026-04-27"
    assert share("29%", "s") * 100 == 29  # exactly, or 28 of 100 tokens would be known
    assert Requests("r", 1, 100, 1, share("29%", "s")).hit == 29
    shares = month["by_cached"]["shares"]
    assert (shares[0], shares[5], shares[-1]) == (0, 0.25, 1)
    assert month["by_cached"]["costs"][OPUS][5] == by_model[OPUS]["total"]
    first = overview(BOOK, date(2026, 1, 2), context=1, cached=Fraction(0), tokens=1, written=Fraction(0))
    assert first["month"]["costs"] == []  # nothing had a price then but the server's own, which is nobody's offer
    assert [len(found["curve"]) for found in first["efficiency"].values()] == [1, 1, 1]
    short = overview(BOOK, TODAY, context=9, cached=Fraction(0), tokens=1, written=Fraction(0))
    assert [place for place, _, _ in short["efficiency"][PRO]["curve"]] == [1, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"context": 0}, "context is 0"),
        ({"context": MOST_CONTEXT + 1}, "whole number from 1 to 1,048,576"),
        ({"tokens": MOST_TOKENS + 1}, "tokens is"),
        ({"cached": Fraction(11, 10)}, "cached is 1.1; give a share from 0 to 1"),
        ({"written": Fraction(-1)}, "written is -1"),
    ],
)
def test_what_the_page_cannot_show(asked: dict[str, int], said: str) -> None:
    usual = {"context": 1000, "cached": Fraction(0), "tokens": 1, "written": Fraction(0)}
    with pytest.raises(UsageError) as told:
        overview(BOOK, TODAY, **(usual | asked))  # type: ignore[arg-type]
    assert said in str(told.value)


def test_numbers_as_planners_write_them() -> None:
    written = {5: 5, "5": 5, "128K": 131_072, "1m": 1 << 20, "2 K": 2048, "1,048,576": 1 << 20, "1.5M": 3 << 19}
    assert {text: tokens(text, "n") for text in written} == written
    assert [share(text, "s") for text in (0, 1, "25%", "0.25", Decimal("0.25"), "100 %")] == [
        *(0, 1, 0.25, 0.25, 0.25, 1)
    ]
    for wrong in ("", "K", "1e6", "-1", "1.0001K", "1.5", "1 G", True, None, 10**20):
        with pytest.raises(UsageError, match="give a whole number of tokens from 1"):
            tokens(wrong, "n")
    for wrong in ("", "%", "101%", "1.1", -1, True, None, "nan", Decimal("NaN"), 0.5, ["1"]):
        with pytest.raises(UsageError, match=r"give a share (from 0, )?up to 1"):
            share(wrong, "s")
    with pytest.raises(UsageError, match="give a share above 0"):
        share("0%", "s", above=True)
