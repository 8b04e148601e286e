"""What the documents show of `narrows plan` runs, as it stands there."""

from __future__ import annotations

import json
import re
import shlex
from datetime import date
from pathlib import Path

import pytest

from narrows.economics import measure
from narrows.economics.chips import Chips
from narrows.economics.prices import PriceBook
from narrows.model.presets import TINY
from tests.cli.conftest import Plan

ROOT = Path(__file__).parents[2]
PLANNING = ROOT / "docs" / "planning.md"


def blocks(document: Path, language: str = "") -> list[str]:
    """What stands between fences of this language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


COMMANDS = sorted(
    {
        line.split("  #")[0].strip()
        for document in (PLANNING, ROOT / "README.md")
        for block in blocks(document)
        for line in block.splitlines()
        if line.startswith("narrows plan")
    }
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the documents name, as they show them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NARROWS_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(measure, "_READ", 1 << 22)
    monkeypatch.setattr(measure, "_SIDE", 64)
    workload, chips, prices = blocks(PLANNING, "toml")
    Path("prices.toml").write_text(prices, encoding="utf-8")
    Path("workload.toml").write_text(workload, encoding="utf-8")
    Path("chips.toml").write_text(chips, encoding="utf-8")
    Path("my-model").mkdir()
    config = TINY.model_copy(update={"max_position_embeddings": 1 << 20})
    Path("my-model/config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    return tmp_path


def test_there_are_commands_of_every_kind() -> None:
    kinds = {command.split()[2] for command in COMMANDS}
    assert kinds == {"efficiency", "cost", "fit", "chips", "--measure"}
    assert len(COMMANDS) > 12


@pytest.mark.parametrize("command", COMMANDS)
def test_it_runs(plan: Plan, place: Path, command: str) -> None:
    words = ["curves.png" if word == "FILE" else word for word in shlex.split(command)[2:]]
    out, _ = plan(*words)
    assert out.count("\n") > 3


def test_the_files_of_chips_and_prices_are_read(place: Path) -> None:
    assert Chips.load(place / "chips.toml").find("mine").memory == 96 * 10**9
    assert PriceBook.load(place / "prices.toml").price("our-host/v4-pro", date(2026, 11, 2)).output == 1_900_000
