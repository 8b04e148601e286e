"""`narrows complete` and `narrows generate`, through the console entry point."""

from __future__ import annotations

import inspect
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import narrows
from narrows.cli.complete import fit, split_at, with_imports
from narrows.cli.main import main
from narrows.engine.model import load
from narrows.errors import NarrowsError, UsageError
from tests.draws import scaled


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
    path, prefix, suffix = split_at(f"{textwrap.__file__}:100")
    before, after = fit(model, prefix, suffix, 8)
    prompt, _ = with_imports(model, path, prefix + suffix, before, after, 8)
    assert captured.out == model.generate(prompt, max_tokens=8).text + "\n"
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


@given(st.integers(1, 2500), st.integers(1, 300), st.sampled_from([0, 400, 4000]))
@settings(max_examples=scaled(20))
def test_the_prefix_fills_its_room_to_within_a_line(line: int, max_tokens: int, after: int) -> None:
    """Of real code, which has lines enough: one more line of it would not have fitted."""
    model = load_once()
    text = Path(inspect.__file__).read_text(encoding="utf-8")
    prefix = "".join(text.splitlines(keepends=True)[:line])
    kept, rest = fit(model, prefix, text[len(prefix) : len(prefix) + after], max_tokens)
    if kept == prefix:
        return
    (dropped, _, _) = prefix.removesuffix(kept).rpartition("\n")
    one_more = dropped.rpartition("\n")[2] + "\n" + kept
    assert prefix.endswith(one_more)
    used = len(model.tokenizer.encode(one_more)) + len(model.tokenizer.encode(rest))
    assert used + max_tokens + 4 > (model.config.trained_context or 0)


def load_once(cache: list[object] = []) -> object:  # noqa: B006 - the cache is the point
    if not cache:
        cache.append(load("embedded"))
    return cache[0]


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("{file}:9", UsageError, "ends at line 3; there is no line 9"),
        ("{file}:0", UsageError, "ends at line 3; there is no line 0"),
        ("{file}:-1", UsageError, "ends at line 3; there is no line -1"),
        ("{file}:" + "9" * 5000, NarrowsError, "cannot be read"),
        ("{file}:1:99", UsageError, "line 1 of .* has 5 characters; there is no column 99"),
        ("{file}.txt", UsageError, "cannot be read .No such file or directory.; name a text file"),
        ("{folder}", UsageError, "cannot be read .Is a directory.; name a text file"),
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


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"narrows {narrows.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("generate", ""), 2),
        (("generate", "x", "--max-tokens", "0"), 2),
        (("generate", "x", "--model", "/nowhere/at/all"), 2),
        (("generate", "x", "--precision", "fp7"), 2),
        (("generate", "x", "--device", "foo"), 2),
        (("generate", "x", "--device", "meta"), 2),
        (("generate", "x", "--seed", "9" * 30), 2),
        (("generate", "x", "--model", "a--b/c"), 2),
        (("complete", "/nowhere/at/all.py"), 2),
        (("complete",), 2),
        (("sing",), 2),
        (("generate", "x", "--max-tokens", "many"), 2),
        (("generate", "x", "--loud"), 2),
        (("generate", "x", "--model", ""), 2),
        (("generate", "x", "--model", "n" * 300), 1),
        (("complete", "n" * 300), 1),
        (("complete", f"{textwrap.__file__}:-1"), 2),
        (("complete", f"{textwrap.__file__}:1", "--temperature", "nan"), 2),
        (("generate", "\udcff"), 2),
        (("inspect", "n" * 300), 1),
    ],
)
def test_errors_are_one_line_with_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int
) -> None:
    assert run(monkeypatch, *arguments) == code
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.startswith("narrows: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("suffix", ["", "\n\nprint(area)\n"])
def test_imported_files_stand_before_the_file_and_fill_the_room_that_is_left(tmp_path: Path, suffix: str) -> None:
    model = load("embedded")
    (tmp_path / "shapes.py").write_text("def area(width, height):\n    return width * height\n" * 200)
    (tmp_path / "units.py").write_text("METRE = 1.0\n")
    file = tmp_path / "plan.py"
    prefix = "import shapes, units\n\narea = "
    before, after = fit(model, prefix, suffix, 32)
    prompt, files = with_imports(model, file, prefix + suffix, before, after, 32)
    assert files == 1  # the nearest alone fills it
    assert len(prompt) == (model.config.trained_context or 0) - 32
    text = model.tokenizer.decode(prompt)
    assert "return width * height\n<｜end▁of▁sentence｜>" in text
    assert "METRE" not in text
    assert text.index("width * height") < text.index("import shapes")
    (tmp_path / "shapes.py").write_text("def area(width, height): ...\n")
    text = model.tokenizer.decode(with_imports(model, file, prefix + suffix, before, after, 32)[0])
    assert text.index("METRE") < text.index("def area") < text.index("import shapes")


def test_before_only_reads_nothing_behind_the_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    written = []
    for rest in ("", "\nprint(area)\n"):
        (tmp_path / "plan.py").write_text(f"def area(width, height):{rest}")
        place = f"{tmp_path}/plan.py:1"
        assert run(monkeypatch, "complete", "--before-only", place, "--max-tokens", "12") == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1] != ""
