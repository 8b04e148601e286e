"""`narrows complete` and `narrows generate`, through the console entry point."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.cli.complete import fit, split_at
from narrows.cli.main import main
from narrows.engine.model import load
from narrows.errors import NarrowsError, UsageError


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `narrows` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["narrows", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


def test_a_file_of_the_standard_library_is_completed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "complete", f"{textwrap.__file__}:100", "--max-tokens", "8") == 0
    captured = capsys.readouterr()
    model = load("embedded")
    _, prefix, suffix = split_at(f"{textwrap.__file__}:100")
    prompt, rest = fit(model, prefix, suffix, 8)
    assert captured.out == model.generate(prompt, suffix=rest, max_tokens=8).text + "\n"
    assert "line 100" in captured.err
    assert " tokens · " in captured.err


def test_generate_streams_the_model_s_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "generate", "import os\nimport ", "--max-tokens", "8") == 0
    assert capsys.readouterr().out == load("embedded").generate("import os\nimport ", max_tokens=8).text + "\n"


@given(st.text(max_size=200), st.data())
def test_a_place_splits_a_file_without_losing_anything(text: str, data: st.DataObject) -> None:
    text = text.replace("\r", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda self, encoding: text)
        assert split_at("some.py")[1:] == (text, "")
        lines = text.split("\n")
        line = data.draw(st.integers(1, len(lines)))
        _, before, after = split_at(f"some.py:{line}")
        assert before + after == text
        assert before.split("\n") == lines[:line]
        column = data.draw(st.integers(1, len(lines[line - 1]) + 1))
        _, before, after = split_at(f"some.py:{line}:{column}")
        assert before + after == text
        assert before.endswith(lines[line - 1][: column - 1])


@given(st.text(max_size=3000), st.text(max_size=3000), st.integers(1, 300))
def test_what_is_kept_fits_and_touches_the_place(prefix: str, suffix: str, max_tokens: int) -> None:
    model = load_once()
    kept, rest = fit(model, prefix, suffix, max_tokens)
    assert prefix.endswith(kept)
    assert suffix.startswith(rest)
    used = len(model.tokenizer.encode(kept)) + len(model.tokenizer.encode(rest))
    assert used + max_tokens + 4 <= (model.config.trained_context or 0)


def load_once(cache: list[object] = []) -> object:  # noqa: B006 - the cache is the point
    if not cache:
        cache.append(load("embedded"))
    return cache[0]


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("{file}:9", UsageError, "ends at line 3; there is no line 9"),
        ("{file}:0", UsageError, "ends at line 3; there is no line 0"),
        ("{file}:1:99", UsageError, "line 1 of .* has 5 characters; there is no column 99"),
        ("{file}.txt", NarrowsError, "cannot be read .No such file or directory.; name a text file"),
        ("{folder}", NarrowsError, "cannot be read .Is a directory.; name a text file"),
        ("{latin}", NarrowsError, "is not UTF-8 text .byte 3.; convert it first"),
        ("", UsageError, "no file is named; give FILE, FILE:LINE or FILE:LINE:COLUMN"),
    ],
)
def test_bad_places_are_refused(tmp_path: Path, place: str, error: type[Exception], message: str) -> None:
    file, latin = tmp_path / "some.py", tmp_path / "latin.py"
    file.write_text("a = 1\nb = 2\n")
    latin.write_bytes(b"# a\xe9\n")
    with pytest.raises(error, match=message):
        split_at(place.format(file=file, folder=tmp_path, latin=latin))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("generate", ""), 2),
        (("generate", "x", "--max-tokens", "0"), 2),
        (("generate", "x", "--model", "/nowhere/at/all"), 1),
        (("generate", "x", "--precision", "fp7"), 2),
        (("complete", "/nowhere/at/all.py"), 1),
        (("complete",), 2),
        (("sing",), 2),
    ],
)
def test_errors_are_one_line_with_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int
) -> None:
    assert run(monkeypatch, *arguments) == code
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.strip()
    assert "Traceback" not in captured.err
