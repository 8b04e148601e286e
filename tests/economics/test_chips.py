"""Chips: a data file with sources, read strictly, and found however they are spelt."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from narrows.economics.chips import Chips
from narrows.economics.units import HOURS_A_YEAR
from narrows.errors import NarrowsError, UsageError

CHIPS = Chips.load()

OWN = """
[owned]
years = 5
dollars_per_kwh = 0.20

[[chips]]
name = "Mine"
maker = "me"
kind = "gpu"
memory_gb = 24
bandwidth_gbs = 1000
bf16_tflops = 100
node = 2
link_gbs = 32
watts = 500
price = 2000
facts = "https://example.org"
"""


def test_every_chip_of_the_list_has_its_figures_and_sources() -> None:
    wanted = (
        *("A100", "H100", "H200", "B200", "MI300X", "RTX-4090", "RTX-5090", "Ascend-910C", "Ascend-950PR"),
        *("EPYC", "Xeon", "M4"),
    )
    names = [chip.name for chip in CHIPS.all]
    for name in wanted:
        assert any(one.startswith(name) for one in names), name
    for chip in CHIPS.all:
        assert chip.facts.startswith("https://"), chip.name
        assert (chip.hourly is None) or (chip.priced is not None and chip.prices.startswith("https://")), chip.name
        assert chip.rate("bf16") <= chip.rate("fp8") <= chip.rate("fp4")
        assert chip.node == 1 or chip.link is not None
    h100 = CHIPS.find("H100")  # its data sheet, halved where that counts sparse operations
    assert (h100.memory, h100.bandwidth) == (80 * 10**9, pytest.approx(3.35e12))
    assert (h100.rate("bf16"), h100.rate("fp8")) == (pytest.approx(989e12, rel=1e-3), pytest.approx(1979e12, rel=1e-3))
    assert h100.rate("fp4") == h100.rate("fp8")  # which it has no FP4 for
    assert CHIPS.find("A100").rate("fp8") == CHIPS.find("A100").rate("bf16")


@pytest.mark.parametrize("name", ["RTX-4090", "rtx4090", "RTX 4090", "rtx_4090"])
def test_a_name_is_found_however_it_is_spelt(name: str) -> None:
    assert CHIPS.find(name).name == "RTX-4090"


def test_how_many_of_which() -> None:
    for text, count, name in (
        ("8xH200", 8, "H200"),
        ("8 x h200", 8, "H200"),
        ("16×B200", 16, "B200"),
        ("A100", 1, "A100"),
    ):
        assert (CHIPS.parse(text)[0], CHIPS.parse(text)[1].name) == (count, name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8xH20", "there is no chip 'H20' here; the nearest: H200"),
        ("H300", "there is no chip 'H300' here; the nearest: H"),
        ("0xH200", "the chips are '0xH200'; say how many of which"),
        ("8xH200,8xH100", "name one kind, for sets of several kinds cannot be planned"),
        ("999999xH200", "such as 8xH200, from 1 to 100,000"),
        ("", "the chips are ''"),
        ("8x", "there is no chip '8x' here"),
        ("-1xH200", "there is no chip '-1xH200'"),
    ],
)
def test_what_is_no_chip(text: str, said: str) -> None:
    with pytest.raises(UsageError) as told:
        CHIPS.parse(text)
    assert said in str(told.value)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "chips.toml"
    file.write_text(OWN + OWN[OWN.index("[[chips]]") :].replace("Mine", "h100").replace("price = 2000", "hourly = 1.5"))
    chips = Chips.load(file)
    mine = chips.find("mine")
    # Written off over five years, and half a kilowatt at 20 cents.
    hour = Decimal(2000) / (5 * HOURS_A_YEAR) + Decimal("0.10")
    assert mine.hourly == int(hour * 10**12)
    assert mine.hourly_terms == "bought for $2,000 and written off over 5 years, with 500 W at $0.20 a kWh"
    assert mine.rate("fp4") == mine.rate("bf16") == 100e12
    assert (chips.find("H100").maker, chips.find("H100").hourly) == ("me", 1_500_000_000_000)  # theirs, not ours
    assert chips.find("H200") == CHIPS.find("H200")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("price = 2000", "price = 0", "Mine: price is 0; give a number above 0"),
        ("price = 2000", "price = -5", "Mine: price is -5; give a number above 0"),
        ("price = 2000", "price = 1e-300", "Mine: price is 1E-300; give a number from 0.000001"),
        ("bandwidth_gbs = 1000", "bandwidth_gbs = 1e-320", "Mine: bandwidth_gbs is 1E-320; give a number from"),
        ("node = 2", "node = 2\nlinks = 0", "Mine: links is 0; give how many of them make up link_gbs"),
        ("node = 2", "node = 2\nbare = 1", "Mine: bare is 1; give true or false"),
        ('name = "Mine"', 'name = "+++"', "+++: name is '+++'; give letters or digits"),
        ("price = 2000", "price = nan", "Mine: price is NaN; give a number above 0"),
        ("price = 2000", "price = 2000\nhourly = 1", "Mine: it has both hourly and price"),
        ("price = 2000", 'hourly = "1"', "Mine: hourly is 1; give a number above 0"),
        (
            "price = 2000",
            "hourly = 1.0000000000001",
            "Mine: hourly is 1.0000000000001 dollars; give at most 12 decimals",
        ),
        ("price = 2000", "cost = 2000", "Mine: the field cost is not known here"),
        ("memory_gb = 24", "", "Mine: the field memory_gb is missing"),
        ("memory_gb = 24", "memory_gb = true", "Mine: memory_gb is True"),
        ("memory_gb = 24", "memory_gb = 1e300", "Mine: memory_gb is 1E+300"),
        ('kind = "gpu"', 'kind = "tpu"', "Mine: kind is 'tpu'; give one of gpu, npu, soc, cpu"),
        ("node = 2", "node = 0", "Mine: node is 0"),
        ("node = 2", 'node = 2\npriced = "today"', "Mine: priced is 'today'; give a date"),
        ('maker = "me"', 'maker = " "', "Mine: maker is ' '; give text"),
        ("years = 5", "years = 0", "owned: years is 0"),
        ("years = 5", "year = 5", "owned: give years, dollars_per_kwh, perhaps source, and nothing else"),
        ("years = 5", "", "owned: give years, dollars_per_kwh, perhaps source, and nothing else"),
        ("[owned]", "[prices]", "is no list of chips"),
        ("[[chips]]", "[chips]", "is no list of chips"),
        ("[[chips]]", "[[chips", "is not TOML"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = tmp_path / "chips.toml"
    file.write_text(OWN.replace(old, new, 1))
    with pytest.raises(NarrowsError) as told:
        Chips.load(file)
    assert str(told.value).startswith(str(file))
    assert said in str(told.value)


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(NarrowsError, match=r"none\.toml cannot be read \(No such file"):
        Chips.load(tmp_path / "none.toml")
    (tmp_path / "twice.toml").write_text(OWN + OWN[OWN.index("[[chips]]") :])
    with pytest.raises(NarrowsError, match=r"twice\.toml: there are two chips Mine; remove one"):
        Chips.load(tmp_path / "twice.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(NarrowsError, match=r"bytes\.toml is not TOML"):
        Chips.load(tmp_path / "bytes.toml")


def test_names_of_any_script_and_owning_as_ours(tmp_path: Path) -> None:
    file = tmp_path / "chips.toml"
    file.write_text(OWN[OWN.index("[[chips]]") :].replace("Mine", "芯片"), encoding="utf-8")
    chips = Chips.load(file)
    assert chips.find("芯片").hourly_terms.endswith("written off over 4 years, with 500 W at $0.12 a kWh")
    for name in ("麒麟", "+++"):
        with pytest.raises(UsageError, match="there is no chip"):
            chips.find(name)


def test_what_a_price_holds() -> None:
    kinds = {chip.name: (chip.bought, chip.bare) for chip in CHIPS.all}
    assert kinds["H100"] == (False, False)
    assert kinds["M3-Ultra"] == (True, False)
    assert kinds["EPYC-9755"] == kinds["RTX-4090"] == (True, True)


def test_the_day_of_a_price_is_told() -> None:
    told = CHIPS.find("H200").told()
    assert date.fromisoformat(told["priced"]) == CHIPS.find("H200").priced
    assert told["memory_gb"] == 141
