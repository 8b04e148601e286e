"""`narrows plan` as a planner meets it."""

from __future__ import annotations

import json
import re
from itertools import takewhile
from pathlib import Path

import pytest

from tests.cli.conftest import Plan


def test_the_claim_is_computed(plan: Plan) -> None:
    out, _ = plan("efficiency")
    last = [re.findall(r"[\d.,]+%?", line) for line in out.splitlines() if "1,048,576" in line]
    assert last == [
        ["1,048,576", "1,194.6", "319.4", "26.7%", "120.7", "10.1%"],
        ["1,048,576", "50.4", "5.28", "10.5%", "3.69", "7.3%"],
    ]


def test_json_says_the_same(plan: Plan) -> None:
    told = json.loads(plan("efficiency", "deepseek-v4-pro", "--context", "128K", "--json")[0])
    assert told["against"] == "deepseek-v3.2"
    assert [*told["models"]] == ["deepseek-v3.2", "deepseek-v4-pro"]
    assert told["models"]["deepseek-v4-pro"][-1]["context"] == 131_072
    assert round(told["models"]["deepseek-v4-pro"][-1]["fp8_equivalent_flops"] / 1e9, 1) == 146.5


def test_every_operation_is_explained(plan: Plan) -> None:
    out, aside = plan("efficiency", "tiny", "--against", "small", "--context", "4K", "--explain")
    for name in ("small", "tiny"):
        rows = out[out.index(f"{name}: one token behind 4,095 others") :].splitlines()[4:]
        products = takewhile(str.strip, rows)
        shown = sum(float(re.split(r"\s{2,}", row.strip())[4].replace(",", "")) for row in products)
        total = float(re.findall(r" 4,096 +([\d.,]+) +([\d.,]+)", out)[0][name == "tiny"])
        assert shown == pytest.approx(total, rel=0.02)
    assert "d hidden size" in aside


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_curves_are_drawn(plan: Plan, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"curves.{kind}"
    _, said = plan("efficiency", "--context", "64K", "--plot", str(file))
    assert said == f"{file}: drawn, both against the context\n"
    assert file.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("deepseek-v4-por",), "neither a path nor a preset; presets, the nearest first: deepseek-v4-pro"),
        (("--against", "gpt"), "gpt is neither a path nor a preset"),
        (("--context", "2M"), "2,097,152 tokens lies beyond the model's 1,048,576 positions"),
        (("--context", "0"), "--context is '0'; give a whole number"),
        (("--context", "K"), "--context is 'K'"),
        (("--context", "1e6"), "--context is '1e6'"),
        (("--plot", "/tmp/curves.xyz"), "name a .png, .svg or .pdf file"),
    ],
)
def test_what_cannot_be_planned(plan: Plan, arguments: tuple[str, ...], said: str) -> None:
    _, error = plan("efficiency", *arguments, code=2)
    assert re.fullmatch(r"narrows: .*\n", error)
    assert said in error
