"""`narrows keys` and `narrows usage`: a ledger as its host meets it."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from narrows.cli.main import main
from narrows.economics.money import picodollars
from narrows.economics.prices import Tokens
from narrows.ledger.errors import KeyRefused
from narrows.ledger.ledger import Ledger
from narrows.ledger.location import default_file
from narrows.ledger.requests import Usage


class Command:
    """Runs `narrows …` on a ledger in an empty data folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path, code: int = 0) -> tuple[str, str]:
        """What it prints as its result, and beside it."""
        self.monkeypatch.setattr(sys, "argv", ["narrows", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        shown = self.capsys.readouterr()
        assert int(end.value.code or 0) == code, shown.err
        return shown.out, shown.err


@pytest.fixture
def narrows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    monkeypatch.setenv("NARROWS_DATA", str(tmp_path / "data"))
    return Command(monkeypatch, capsys)


def test_a_key_from_its_making_to_its_end(narrows: Command) -> None:
    options = ("--budget", "2.50", "--expires", "30d", "--concurrency", "3", "--requests-per-minute", "6000")
    secret, said = narrows("keys", "create", "[red]me", *options)
    assert re.fullmatch(r"nrw_[0-9A-Za-z]{43}\n", secret)  # alone, so that it can go into a variable
    secret = secret.strip()
    with Ledger.open() as ledger:
        key = ledger.authenticate(secret, "inference")
    assert (key.name, key.budget, key.concurrency) == ("[red]me", 25 * 10**11, 3)
    assert key.expires is not None
    assert timedelta(days=29.9) < key.expires - datetime.now(UTC) < timedelta(days=30)
    assert f"key {key.id} for [red]me: inference, $2.50 a month, until {key.expires:%Y-%m-%d}" in said
    assert "Copy its secret now: it is not shown again." in said
    narrows("keys", "create", "boss", "--scope", "admin", "--scope", "inference", "--expires", "2999-01-01")
    listed, said = narrows("keys", "list")
    assert said == ""
    assert secret not in listed
    first, second = (line for line in listed.splitlines() if " active " in line)
    assert re.search(rf"{key.id} +\[red\]me +active +inference .* 6,000 +- +3 +\$2.50 +\$0.00 +\$0.00", first)
    assert re.search(r"boss +active +admin inference .* 2999-01-01 00:00 +- +- +- +- ", second)
    for amount, said in (("7", "$7.00"), ("none", "any amount")):
        assert narrows("keys", "budget", key.id, amount)[0] == f"key {key.id} for [red]me may spend {said} a month\n"
    shown, _ = narrows("keys", "revoke", key.id)
    assert shown.startswith(f"key {key.id} for [red]me is revoked since 20")
    assert narrows("keys", "revoke", key.id)[0] == shown
    assert re.search(rf"{key.id} .* revoked ", narrows("keys", "list")[0])
    with Ledger.open() as ledger, pytest.raises(KeyRefused, match="was revoked"):
        ledger.authenticate(secret)


def test_the_ledger_lies_where_data_lie(narrows: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    narrows("keys", "create", "me")
    assert (tmp_path / "data/ledger.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("NARROWS_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert default_file() == tmp_path / "share/narrows/ledger.db"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert default_file() == Path.home() / ".local/share/narrows/ledger.db"
    (tmp_path / "file").touch()
    monkeypatch.setenv("NARROWS_DATA", str(tmp_path / "file/data"))
    assert "cannot be made (Not a directory); name another folder in $NARROWS_DATA" in narrows("usage", code=1)[1]


def test_reading_makes_no_ledger(narrows: Command, tmp_path: Path) -> None:
    for command in (("keys", "list"), ("keys", "revoke", "x"), ("usage",), ("usage", "--ledger", tmp_path / "typo.db")):
        assert "there is no ledger at" in narrows(*command, code=2)[1]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("keys", "create", "x", "--expires", "tomorrow"), "--expires is 'tomorrow'; give a date"),
        (("keys", "create", "x", "--expires", "2020-01-01"), "which is past; choose a time to come"),
        (("keys", "create", "x", "--budget", "lots"), "the budget is 'lots'; give dollars, such as 2.50"),
        (("keys", "create", "x", "--budget", "1e9"), r"budget is 1\d+ picodollars; .* to \$4,000,000.00"),
        (("keys", "create", "x", "--scope", "root"), "choose from inference, metrics, admin"),
        (("keys", "create", "x", "--concurrency", "0"), "concurrency is 0"),
        (("keys", "create", " "), "the key's name is ' '"),
        (("keys", "create", "x", "--ledger", "mysql://h/x"), "mysql is not supported"),
        (("keys", "revoke", "nobody"), "no key has the id 'nobody'; narrows keys list shows them"),
        (("keys", "budget", "nobody", "1"), "no key has the id 'nobody'; narrows keys list shows them"),
        (("keys", "budget", "nobody", "much"), "the budget is 'much'; give dollars"),
        (("usage", "--by", "hour"), "by key, model, day, not by 'hour'"),
        (("usage", "--from", "2026-02-01", "--to", "2026-01-01"), "name the earlier day first"),
        (("usage", "--from", "yesterday"), "'--from'.*see narrows usage --help"),
        (("keys",), "Usage: narrows keys"),
    ],
)
def test_what_cannot_be_right(narrows: Command, arguments: tuple[str, ...], said: str) -> None:
    Ledger.open().close()
    shown, error = narrows(*arguments, code=2)
    assert shown == ""
    assert re.search(said, error)
    with Ledger.open() as ledger:
        assert ledger.keys() == []


@pytest.fixture
def used(narrows: Command) -> dict[str, Any]:
    """A ledger in which two keys used two models on three days."""
    now = [datetime(2026, 5, 1, tzinfo=UTC)]
    with Ledger.open(clock=lambda: now[0]) as ledger:
        keys = [ledger.create_key(name)[0] for name in ("[red]", "_$b$")]
        for number in range(12):
            usage = Usage(Tokens(1000 * number, number, 7), 10**9 * number + 1, reasoning=2)
            options: Any = {"request_id": f"r{number}", "endpoint": "/", "worst_case": 10**12}
            reservation = ledger.reserve(keys[number % 2], model=f"m{number % 3}", **options)
            ledger.settle(reservation, usage)
            now[0] += timedelta(hours=6)
    return {"keys": keys, "cost": 10**9 * 66 + 12}


def test_usage_as_a_table_is_whole(narrows: Command, used: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        shown.append(narrows("usage", "--by", "key", "--by", "day")[0])
    assert shown[0] == shown[1]
    assert "…" not in shown[0]
    assert re.search(rf"{used['keys'][0].id} +\[red\] +2026-05-01 +2 +2,002 +2,000 +14 +4 +\$0.002000000002", shown[0])
    assert re.search(r"total +12 +66,066 +66,000 +84 +24 +\$0.066000000012", shown[0])
    lines = [
        line.split()
        for line in narrows("usage", "--by", "day", "--from", "2026-05-02", "--to", "2026-05-02")[0].splitlines()
    ]
    assert ["2026-05-02", "4", "22,022", "22,000", "28", "8", "$0.022000000004"] in lines
    assert not any("total" in line for line in lines)
    assert "has no requests that ended then" in narrows("usage", "--key", "nobody")[1]


def test_usage_as_csv_adds_up(narrows: Command, used: dict[str, Any]) -> None:
    for groups in (["key"], ["model", "day"], ["day", "key", "model"]):
        shown, said = narrows("usage", "--csv", *(word for group in groups for word in ("--by", group)))
        rows = list(csv.DictReader(io.StringIO(shown)))
        assert said == ""
        assert sum(picodollars(row["cost_dollars"]) for row in rows) == used["cost"]
        assert sum(int(row["requests"]) for row in rows) == 12
    assert narrows("usage", "--csv", "--key", "nobody")[0].count("\n") == 1


def test_usage_as_a_picture(narrows: Command, used: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    for name, begins in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        narrows("usage", "--by", "model", "--plot", tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begins)
    narrows("usage", "--plot", tmp_path / "keys.svg")
    assert "name a .png, .svg or .pdf file" in narrows("usage", "--plot", tmp_path / "a.doc", code=2)[1]
    said = narrows("usage", "--plot", tmp_path / "nowhere/a.png", code=1)[1]
    assert said.endswith("a.png failed (No such file or directory); check the disk, the path and its permissions.\n")


def test_a_picture_without_matplotlib(
    narrows: Command, used: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install matplotlib" in narrows("usage", "--plot", tmp_path / "a.png", code=1)[1]


def test_a_picture_of_many_groups(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    from narrows.ledger.plot import plot_usage
    from narrows.ledger.usage import Sum

    day = datetime(2026, 5, 1, tzinfo=UTC).date()
    for costs in ([0], range(30)):
        rows = [Sum(1, 0, 0, 0, 0, 10**12 * cost, model=f"model-{cost}", day=day) for cost in costs]
        plot_usage(rows, tmp_path / "many.svg")
    assert (tmp_path / "many.svg").read_text().count("<!-- model-") == 9
    assert "<!-- others -->" in (tmp_path / "many.svg").read_text()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("cli.app", ["sqlalchemy", "alembic", "torch", "pydantic", "rich.table"]),
        ("ledger.ledger", ["alembic", "torch", "psycopg"]),
    ],
)
def test_what_is_slow_is_imported_when_it_is_needed(module: str, absent: list[str]) -> None:
    code = f"import sys, narrows.{module}; print([name for name in {absent} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
