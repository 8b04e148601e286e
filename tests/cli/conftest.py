"""Fixtures of several commands' tests."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from narrows.cli.main import main

Plan = Callable[..., tuple[str, str]]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    """Runs `narrows plan`, and returns what it printed and what it said aside."""

    def run(*arguments: str, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["narrows", "plan", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        assert int(end.value.code or 0) == code, shown.err
        return shown.out, shown.err

    return run
