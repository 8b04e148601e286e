"""`narrows plan cost`, `fit`, `chips` and `--measure` as a planner meets them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from narrows.economics import measure
from narrows.economics.chips import Chips
from tests.cli.conftest import Plan
from tests.economics.test_plan import AGENTS


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nobody's own measurement of this machine."""
    monkeypatch.setenv("NARROWS_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def workload(tmp_path: Path) -> str:
    file = tmp_path / "workload.toml"
    file.write_text(AGENTS)
    return str(file)


BILL = ("cost", "--monthly-bill", "10000", "--from", "opus-4.8", "--to", "v4-pro")


def test_the_bill_becomes_1392(plan: Plan) -> None:
    out, aside = plan(*BILL)
    rows = [line.split() for line in out.splitlines() if line.strip().startswith("deepseek-v4-pro   2026")]
    assert [(row[1], row[-2], row[-1]) for row in rows] == [
        ("2026-04-24", "$1,392.00", "7.18"),
        ("2026-04-27", "$348.00", "28.7"),
    ]
    assert "8xH200" in out
    assert "50% of the roofline" in aside
    told = json.loads(plan(*BILL, "--json")[0])
    assert [bill["total"] for bill in told["bills"]] == ["10000.00", "1392.00", "348.00"]
    hosted = told["hosting"][0]
    paid, today = hosted["break_even"]
    assert (paid["instead_of"], today["price_since"]) == ("claude-opus-4.8", "2026-04-27")
    assert paid["requests_a_month"] == pytest.approx(hosted["dollars_a_month"] / (10_000 / 400_000))
    assert today["requests_a_month"] == pytest.approx(hosted["dollars_a_month"] / (348 / 400_000))


def test_what_a_bill_was_paid_for_changes_it(plan: Plan) -> None:
    told = json.loads(plan(*BILL, "--prompt", "10K", "--cached", "90%", "--reasoning", "500", "--json")[0])
    opus, launch, _ = (float(bill["total"]) for bill in told["bills"])
    hit, miss = int(10_240 * 0.9), 10_240 - int(10_240 * 0.9)
    each = (hit * 0.5 + miss * 5 + 1000 * 25) / 1e6
    assert told["requests"] == pytest.approx(10_000 / each)
    assert opus == pytest.approx(10_000)
    assert launch == pytest.approx(10_000 / each * (hit * 0.145 + miss * 1.74 + 1500 * 3.48) / 1e6)


def test_a_workload_with_every_model(plan: Plan, workload: str) -> None:
    out, _ = plan("cost", "--workload", workload, "--from", "opus-4.8", "--explain")
    for name in ("claude-opus-4.8", "deepseek-v4-flash", "deepseek-v4-pro"):
        assert re.search(rf"^ {re.escape(name)} +2026", out, re.MULTILINE)
    assert "self-hosted" not in out
    assert "by how much is thought" in out
    assert re.search(r"written × \$0\.000025 \(https://", out)
    assert re.search(r"deepseek-v4-pro on 8xH200: a step of \d+: weights: routed experts", out)
    told = {
        effort: json.loads(plan("cost", "--workload", workload, "--effort", effort, "--json")[0])
        for effort in ("none", "high", "max")
    }
    written = [told[effort]["tokens"]["output"] for effort in ("none", "high", "max")]
    assert written == [152_188 * output for output in (600, 2100, 9600)]
    known = json.loads(plan("cost", "--workload", workload, "--cached", "1", "--json")[0])["tokens"]
    assert (known["miss"], known["hit"]) == (0, 152_188 * 32_768)


def test_users_that_fit_and_those_that_do_not(plan: Plan) -> None:
    out, _ = plan("fit", "--chips", "8xH200", "--context", "1M", "--users", "50")
    held = re.match(
        r"8xH200 hold deepseek-v4-pro and (\d+) of 50 users of 1,048,576 tokens\.\n(\d+)xH200 would hold", out
    )
    assert held
    assert 15 < int(held[1]) < 30
    users = int(re.findall(r"(\d+) users write, and no prompt is read", out)[0])
    each, together = (float(re.findall(rf"tokens/s {name} +([\d.]+)", out)[0]) for name in ("each", "together"))
    assert users == int(held[1])
    assert together == pytest.approx(users * each, rel=0.02)
    out, _ = plan("fit", "--chips", "8xH200", "--context", "1M", "--users", "4", "--explain")
    assert "hold deepseek-v4-pro and 4 users of 1,048,576 tokens, with room for " in out
    assert re.search(r"^ first token, alone +[\d.]+ s = ", out, re.MULTILINE)
    told = json.loads(plan("fit", "--chips", "8xH200", "--context", "1M", "--users", "4", "--json", "--explain")[0])
    step = told["step"]
    memory = step["weights_seconds"] + step["history_seconds"]
    longest = max(step["products_seconds"], memory)
    assert step["seconds"] == pytest.approx(longest + step["links_seconds"] + step["latency_seconds"])
    assert any(name.startswith("a step of 4: links") for name, _ in told["explained"])
    out, _ = plan("fit", "--chips", "H100", "--model", "v4-pro")
    assert re.match(r"1xH100 does not hold v4-pro: 8\d\d GB of weights on each, which has 72 GB for them\.\n", out)


def test_a_layout_that_is_given_is_taken(plan: Plan) -> None:
    told = json.loads(plan("fit", "--chips", "8xH200", "--layout", "tp=4,dp=2", "--reached", "1", "--json")[0])
    assert (told["layout"], told["reached"]) == ("tp=4,dp=2,pp=1", 1)
    out, _ = plan("fit", "--chips", "8xH200", "--layout", "tp=8", "--users", "64")
    assert re.search(r"^In the layout tp=\d,dp=\d,pp=\d they would hold all 64 users\.$", out, re.MULTILINE)


FIT = ("fit", "--chips", "8xB200", "--model", "v4-flash", "--users", "8", "--json")
CHOICES = ("chips", "--have", "16xH200", "--model", "v4-flash", "--users", "100", "--json")
COST = ("cost", "--monthly-bill", "100000", "--from", "opus-4.8", "--to", "v4-flash", "--prompt", "8K", "--json")


def seconds(told: Any) -> float:
    found: float = told["step"]["seconds"]
    return found


def hourly(told: Any) -> float:
    found: float = told["choices"][0].get("dollars_an_hour", 1e9)
    return found


def served(told: Any) -> float:
    found: float = told["hosting"][0]["most_requests_a_month"]
    return found


@pytest.mark.parametrize(
    ("asked", "option", "of", "more"),
    [
        (FIT, ("--reached", "25%"), seconds, True),
        (FIT, ("--reached", "100%"), seconds, False),
        (FIT, ("--precision", "bf16"), seconds, True),
        (FIT, ("--context", "1M"), seconds, True),
        (FIT, ("--model", "v4-pro"), seconds, True),
        (FIT, ("--layout", "pp=8"), seconds, True),
        (CHOICES, ("--precision", "bf16"), hourly, True),
        (CHOICES, ("--cached", "0"), hourly, True),
        (CHOICES, ("--first-token", "0.05"), hourly, True),
        (CHOICES, ("--speed", "60"), hourly, True),
        (CHOICES, ("--context", "1M"), hourly, True),
        (CHOICES, ("--reached", "100%"), hourly, False),
        (CHOICES, ("--output", "8K"), hourly, False),  # prompts come more seldom
        (COST, ("--speed", "60"), served, False),
        (COST, ("--reached", "100%"), served, True),
        (COST, ("--precision", "bf16"), served, False),
        (COST, ("--cached", "90%"), served, True),
        (COST, ("--reasoning", "2000"), served, False),
        (COST, ("--chips", "4xH200"), served, False),
        (COST, ("--hours", "200"), served, False),
    ],
)
def test_every_option_counts(plan: Plan, asked: tuple[str, ...], option: tuple[str, ...], of: Any, more: bool) -> None:
    before, after = (of(json.loads(plan(*arguments)[0])) for arguments in (asked, (*asked, *option)))
    assert after > before if more else after < before


def test_the_tables_say_what_json_says(plan: Plan) -> None:
    asked = (*COST[:-1], "--cached", "50%")
    out, told = plan(*asked)[0], json.loads(plan(*asked, "--json")[0])
    hosted = told["hosting"][0]
    row = next(line for line in out.splitlines() if line.startswith(" deepseek-v4-flash   8xH200"))
    cells = re.split(r"\s{2,}", row.strip())
    read, written = hosted["dollars_per_million_input"], hosted["dollars_per_million_output"]
    assert cells[2] == hosted["layout"]
    assert [float(cell.strip("$")) for cell in cells[-3:-1]] == pytest.approx([read, written], rel=0.01)
    used = told["requests"] / hosted["most_requests_a_month"]
    assert cells[-1] == f"{used:.1%} of the most"
    many = plan("cost", "--monthly-bill", "100000000", *asked[3:])[0]
    row = next(line for line in many.splitlines() if line.startswith(" deepseek-v4-flash   8xH200"))
    sets = math.ceil(1000 * used)
    assert row.strip().endswith(f"{sets:,} sets, ${sets * hosted['dollars_a_month']:,.0f}")


def test_who_pays_a_model_sees_it_hosted(plan: Plan) -> None:
    out, _ = plan("cost", "--monthly-bill", "1000000", "--from", "v4-pro", "--to", "v4-flash", "--speed", "60")
    assert re.search(r"^ deepseek-v4-pro +8xH200 +tp=", out, re.MULTILINE)
    assert re.search(r"never at 60 tokens/s: [\d.]+ × the most", out)
    early, _ = plan(*BILL, "--on", "2026-06-01")
    assert early.splitlines()[3:] == plan(*BILL)[0].splitlines()[3:]  # the same prices held then
    first = json.loads(plan(*BILL[:3], "--from", "v4-pro", "--to", "v4-flash", "--on", "2026-04-25", "--json")[0])
    assert [bill["price_since"] for bill in first["bills"]] == ["2026-04-24", "2026-04-24"]


def test_requests_that_take_nothing_and_bills_of_any_size(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text('[[requests]]\ncount = 1\nprompt = 1000\ncached = "100%"\noutput = 0\n')
    _, error = plan("cost", "--workload", str(file), code=2)
    assert error == "narrows: such requests take nothing: their prompts are known and they write nothing.\n"
    file.write_text("[[requests]]\ncount = 100\nprompt = 1000\noutput = 0\n")
    assert "8xH200" in plan("cost", "--workload", str(file), "--to", "v4-pro")[0]
    out, _ = plan("cost", "--monthly-bill", "1e30", "--from", "opus-4.8", "--to", "v4-pro")
    assert "$1,000,000,000,000,000,000,000,000,000,000.00" in out
    out, _ = plan("cost", "--monthly-bill", "0.000000000001", "--from", "opus-4.8", "--to", "v4-pro")
    assert "$0.000000000001" in out


def test_the_cheapest_chips(plan: Plan) -> None:
    asked = ("chips", "--users", "10", "--model", "v4-flash", "--json")
    found = json.loads(plan(*asked)[0])["choices"]
    assert {choice["chip"] for choice in found} == {chip.name for chip in Chips.load().all}
    prices = [choice["dollars_an_hour"] for choice in found if choice.get("dollars_an_hour") is not None]
    assert prices == sorted(prices)
    assert len(prices) > 4
    limited = json.loads(plan(*asked, "--have", "2xH200", "--have", "H100")[0])["choices"]
    assert {choice["chip"] for choice in limited} == {"H200", "H100"}
    assert all(choice.get("chips", 0) <= 2 for choice in limited if choice["chip"] == "H200")
    out, _ = plan("chips", "--model", "v4-flash", "--explain")
    assert re.search(r"^H100\n  figures: https://\S+\n  an hour: rented at \$", out, re.MULTILINE)


def test_all_chips_are_listed_with_their_sources(plan: Plan) -> None:
    out, _ = plan("chips", "--list", "--explain")
    for chip in Chips.load().all:
        assert re.search(rf"^ {re.escape(chip.name)} ", out, re.MULTILINE)
        assert chip.facts in out
    told = json.loads(plan("chips", "--list", "--json")[0])["chips"]
    assert [chip["name"] for chip in told] == [chip.name for chip in Chips.load().all]


def test_this_machine_is_measured_and_then_known(
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
) -> None:
    _, error = plan("fit", "--chips", "this-machine", "--model", "tiny", code=2)
    assert error == "narrows: this machine has not been measured yet; `narrows plan --measure` does it.\n"
    monkeypatch.setattr(measure, "_READ", 1 << 22)
    monkeypatch.setattr(measure, "_SIDE", 64)
    out, aside = plan("--measure")
    assert out.startswith("this-machine ")
    assert str(data / "machine.toml") in aside
    chip = Chips.load(data / "machine.toml").find("this-machine")
    assert chip.bandwidth > 1e6
    assert chip.rate("fp4") == chip.rate("bf16") > 1e6
    out, _ = plan("fit", "--chips", "this-machine", "--model", "tiny", "--context", "1000", "--json")
    told = json.loads(out)
    assert told["fits"]
    assert told["step"]["joules_per_output"] is None
    assert told["step"]["dollars_per_million_output"] is None
    assert "this-machine" in plan("chips", "--list")[0]


_BEYOND = "2,097,152 tokens lies beyond the model's 1,048,576 positions"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("cost",), "give either --workload FILE or --monthly-bill DOLLARS"),
        ((*BILL, "--workload", "w.toml"), "give either --workload FILE or --monthly-bill DOLLARS"),
        (("cost", "--monthly-bill", "100"), "a bill is paid to somebody; name the model with --from"),
        (("cost", "--monthly-bill", "0", "--from", "opus-4.8"), "--monthly-bill is 0; give dollars above 0"),
        (("cost", "--monthly-bill", "-3", "--from", "opus-4.8"), "--monthly-bill is -3; give dollars from 0 on"),
        (("cost", "--monthly-bill", "10 EUR", "--from", "opus-4.8"), "--monthly-bill is '10 EUR'; give dollars"),
        ((*BILL, "--to", "v5-pro"), "v5-pro has no price; the nearest names that have one: deepseek-v4-pro"),
        (
            (*BILL, "--prompt", "1K", "--cached", "80"),
            "--cached is '80'; give a share up to 1, or 80%, if that is meant",
        ),
        ((*BILL, "--cached", "80%"), "--cached is a share of what requests read, which is nothing; give --prompt"),
        ((*BILL, "--hours", "800"), "--hours is 800, and a month has 730.5; give fewer"),
        ((*BILL, "--hours", "0"), "--hours is 0.0; give a number above 0"),
        (("efficiency", "--plot", "folder"), "folder cannot be drawn; name a .png, .svg or .pdf file"),
        ((*BILL, "--effort", "max"), "--effort is a workload's; of a bill, --reasoning says how much is thought"),
        ((*BILL, "--on", "2026-04-25"), "claude-opus-4.8 has no price on 2026-04-25"),
        ((*BILL, "--output", "0"), "such requests read and write nothing; give --prompt or --output above 0"),
        ((*BILL, "--chips", "8xH300"), "there is no chip 'H300' here; the nearest: "),
        ((*BILL, "--speed", "0"), "--speed is 0.0; give a number above 0"),
        ((*BILL, "--reached", "0"), "--reached is '0'; give a share above 0"),
        ((*BILL, "--precision", "int8"), "--precision is 'int8'; give one of official, fp8, bf16"),
        (("cost", "--workload", "{workload}", "--output", "5"), "are a bill's; a workload's file says them"),
        (
            ("cost", "--workload", "{workload}", "--effort", "low"),
            "agents: effort is 'low'; give one of none, high",
        ),
        (
            ("fit", "--chips", "8xH200", "--model", "v5"),
            "v5 is neither a path nor a preset; presets, the",
        ),
        (
            ("fit", "--chips", "8xH200", "--context", "2M"),
            _BEYOND,
        ),
        (("fit", "--chips", "8xH200", "--users", "0"), "--users is 0; give a whole number from 1"),
        (("fit", "--chips", "8xH200", "--layout", "tp=3"), "the layout tp=3,dp=1,pp=1 cannot be: it has 3 × 1 × 1 = 3"),
        (("fit", "--chips", "3xH200", "--layout", "tp=3"), "tp=3 does not divide the 128 query heads"),
        (("fit", "--chips", "67xH200"), "do not divide the 384 routed experts"),
        (("fit", "--chips", "8xM3-Ultra"), "the model cannot be spread over 8 M3-Ultra: no network is known of"),
        (("fit", "--chips", "8xH200", "--model", "v3.2", "--context", "1M"), "the model's 163,840 positions"),
        (("fit", "--chips", "8xH200", "--precision", "float32"), "give one of official, fp8, bf16"),
        (("chips", "--have", "this-machine"), "this machine has not been measured yet"),
        (("fit", "--chips", "many"), "there is no chip 'many' here"),
        (("fit", "--chips", "8xH200", "--chip-file", "none.toml"), "none.toml cannot be read"),
        (("chips", "--output", "2K", "--context", "1K"), "--output is 2K, more than the context of 1K; give less"),
        (("chips", "--first-token", "-1"), "--first-token is -1.0; give a number above 0"),
        (("chips", "--context", "2M"), _BEYOND),
    ],
)
def test_what_cannot_be_planned(plan: Plan, workload: str, arguments: tuple[str, ...], said: str) -> None:
    placed = [argument.format(workload=workload) for argument in arguments]
    code = 1 if "none.toml" in arguments else 2
    out, error = plan(*placed, code=code)
    assert out == ""
    assert re.fullmatch(r"narrows: .*\n", error)
    assert said in error


@pytest.mark.parametrize("price", ["0", "-2.5"])
def test_prices_that_are_none(plan: Plan, tmp_path: Path, price: str) -> None:
    """Of chips, and of tokens."""
    file = tmp_path / "own.toml"
    texts = "".join(f'{field} = "x"\n' for field in ("name", "maker", "facts"))
    numbers = "".join(f"{field} = 9\n" for field in ("memory_gb", "bandwidth_gbs", "bf16_tflops"))
    file.write_text(f'[[chips]]\nkind = "gpu"\nnode = 1\n{texts}{numbers}hourly = {price}\n')
    _, error = plan("fit", "--chips", "x", "--chip-file", str(file), code=1)
    assert error == f"narrows: {file}: x: hourly is {price}; give a number above 0.\n"
    if price == "0":
        return
    file.write_text(f'[[prices]]\nmodel = "m"\nfrom = 2026-01-01\nhit = 0\nmiss = 0\noutput = {price}\nsource = "x"\n')
    _, error = plan(*BILL, "--prices", str(file), code=1)
    assert error == f"narrows: {file}: m: output is {price}; give dollars from 0 on, such as 2.50.\n"
