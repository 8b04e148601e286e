"""What no command foresees: streams that cannot be written, early interruptions, words that a terminal would obey."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.cli import streaming
from narrows.cli.complete import complete
from narrows.cli.generate import generate
from narrows.cli.main import main
from narrows.cli.output import aside, counted, visible
from narrows.engine.model import Generation, Model, load
from narrows.errors import NarrowsError, UsageError
from narrows.model.presets import PRESETS

COMMAND = f'"{sys.executable}" -m narrows.cli.main'


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=os.environ | environment)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a place where nothing can be written")
def test_output_that_cannot_be_written() -> None:
    for line, reason in (
        (f"{COMMAND} --version >/dev/full", "No space left on device"),
        (f"{COMMAND} --version >&-", "standard output is closed"),
    ):
        done = shell(line)
        assert done.returncode == 1
        assert re.fullmatch(rf"narrows: .*{reason}.*\n", done.stderr)
    assert shell(f"{COMMAND} sing 2>/dev/full").returncode == 2
    done = shell(f"{COMMAND} generate - <&-")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "the prompt is empty" in done.stderr


def test_a_reader_that_leaves_early_is_no_error() -> None:
    done = shell(f"{{ sleep 0.1; {COMMAND} --help; }} | true")
    assert done.stderr == ""


def test_an_interruption_while_imports_run() -> None:
    """Of the first of them too: it must not take the entry point's own modules long to stand ready."""
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # ignored under some shells' `&`
    wait = f"{heard}; import sys, time; sys.modules['typer'] = None; import narrows.cli.main as door"
    code = f"{wait}\ndoor._run = lambda: (print('ready', flush=True), time.sleep(60))\ndoor.main()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert (process.returncode, said) == (130, b"")


def test_an_encoding_that_lacks_a_character(tmp_path: Path) -> None:
    name = tmp_path / "é\udcff"
    done = subprocess.run(
        [sys.executable, "-m", "narrows.cli.main", "inspect", os.fsencode(name)],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"narrows: ")
    assert b"\\xe9\\udcff is neither a path nor a preset" in done.stderr


def test_a_prompt_that_is_not_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff"), encoding="ascii"))
    with pytest.raises(UsageError, match=r"the prompt is not UTF-8 text \(byte 2\)"):
        generate("-")
    with pytest.raises(UsageError, match=r"the prompt is not UTF-8 text \(character 1\)"):
        generate("a\udcff")


@given(st.text(st.characters(), max_size=40))
def test_what_is_shown_cannot_be_obeyed(text: str) -> None:
    """Printable text stays as it is; of the rest, line feed and tab only, and in one line not even these."""
    shown = visible(text)
    shown.encode()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert len(visible(text, one_line=True).splitlines()) <= 1 or re.search(r"[\u2028\u2029]", text)
    if text.isprintable():
        assert shown == text


def test_markup_and_control_characters_in_names_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Brackets, emoji codes, tabs and long lines appear as they are; escape sequences as text."""
    file = tmp_path / "[red]a[" / ("long" * 30 + ":smile:.py")
    file.parent.mkdir()
    file.write_text("\tx = ':smile:'  # [bold]\x1b[31m" + "." * 200)
    complete(str(file), max_tokens=1)
    captured = capsys.readouterr()
    head, code, summary = captured.err.splitlines()
    assert head == f"{file}, line 1"
    assert code == "\tx = ':smile:'  # [bold]\\x1b[31m" + "." * 200  # and the summary begins a line of its own
    assert re.match(r"[01] tokens? · ", summary)
    assert "1 tokens" not in summary


def test_counts_agree_with_their_nouns() -> None:
    assert [counted(number, "token") for number in (0, 1, 2, 1000)] == [
        "0 tokens",
        "1 token",
        "2 tokens",
        "1,000 tokens",
    ]


class Bytes:
    """A model whose histories all have so many."""

    def history_bytes(self, tokens: int) -> int:
        return 12_400_000


MODEL: Any = Bytes()


class Pieces:
    """A generation of these pieces of text, which may end in an error."""

    def __init__(self, *pieces: str, error: Exception | None = None) -> None:
        self.pieces, self.error = pieces, error
        self.token_ids, self.finish_reason = list(range(len(pieces))), "stop"
        self.prompt_tokens, self.reused = 1, 0

    def __iter__(self) -> Iterator[str]:
        yield from self.pieces
        if self.error:
            raise self.error


def test_an_error_begins_a_line_and_white_space_is_no_proposal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NarrowsError):
        streaming.show(Pieces("half a ", error=NarrowsError("broken.")), MODEL)  # type: ignore[arg-type]
    assert capsys.readouterr().out == "half a \n"
    for pieces in ((), (" ", "\n")):
        streaming.show(Pieces(*pieces), MODEL)  # type: ignore[arg-type]
        assert "proposes nothing" in capsys.readouterr().err
    streaming.show(Pieces(" ", "x"), MODEL)  # type: ignore[arg-type]
    assert "proposes nothing" not in capsys.readouterr().err


def test_a_terminal_is_not_commanded_by_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    streaming.show(Pieces("a\x1b[2J"), MODEL)  # type: ignore[arg-type]
    assert capsys.readouterr().out == "a\x1b[2J\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    streaming.show(Pieces("a\x1b[2J"), MODEL)  # type: ignore[arg-type]
    assert capsys.readouterr().out == "a\\x1b[2J\n"


class Long(Pieces):
    """A generation whose prompt is read in four steps, the first of them known from before."""

    def __init__(self, *pieces: str, prompt_tokens: int, error: Exception | None = None) -> None:
        super().__init__(*pieces, error=error)
        self.prompt_tokens, self.reused = prompt_tokens, prompt_tokens // 4
        self.on_prefill: Callable[[int], None] | None = None

    def __iter__(self) -> Iterator[str]:
        for quarter in range(1, 5):
            if self.on_prefill:
                self.on_prefill(self.prompt_tokens * quarter // 4)
        yield from super().__iter__()


@pytest.mark.parametrize(
    ("tokens", "terminal", "shown"), [(2048, True, True), (2047, True, False), (9999, False, False)]
)
def test_a_long_prompt_shows_on_a_terminal_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tokens: int, terminal: bool, shown: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    streaming.show(Long("a", prompt_tokens=tokens), MODEL, "lead\n")  # type: ignore[arg-type]
    captured = capsys.readouterr()
    assert captured.out == "a\n"
    bar, _, rest = captured.err.partition("lead")
    assert (f"{tokens:,} of {tokens:,} tokens" in bar, "tokens/s" in bar, "left" in bar) == (shown, shown, shown)
    assert ("\x1b[2K" in bar) == shown  # which takes the bar away
    assert f"1 token · prompt {tokens:,} · reused {tokens // 4:,} · first after " in rest
    assert " s · cache 12.40 MB · the model ended here" in rest
    monkeypatch.setenv("TERM", "dumb")
    streaming.show(Long("a", prompt_tokens=tokens), MODEL, "lead\n")  # type: ignore[arg-type]
    assert capsys.readouterr().err.startswith("lead")


def test_a_bar_ends_with_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(NarrowsError):
        streaming.show(Long(prompt_tokens=5000, error=NarrowsError("broken.")), MODEL)  # type: ignore[arg-type]
    captured = capsys.readouterr()
    assert captured.out == "\n"
    assert captured.err.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"temperature": float("nan")}, {"seed": -1}])
def test_options_are_checked_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, float]
) -> None:
    monkeypatch.setattr("narrows.engine.model.load", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "a.py").write_text("x = 1\n")
    for command, argument in ((complete, str(tmp_path / "a.py")), (generate, "x")):
        with pytest.raises(UsageError):
            command(argument, **options)  # type: ignore[operator]


def test_the_trained_context_is_mentioned_once_where_it_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    model = load("embedded")
    trained = model.config.trained_context
    assert trained is not None
    generated: list[int] = []

    def stream(self: Model, prompt: str, **options: int) -> Generation:
        generated.append(options["max_tokens"])
        return Pieces("x")  # type: ignore[return-value]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "stream", stream)
        for max_tokens, mentions in ((8, 0), (trained, 1)):
            generate("import os", max_tokens=max_tokens)
            assert capsys.readouterr().err.count(f"was trained for {trained:,}") == mentions
    assert generated == [8, trained]


def test_help_says_what_is_meant(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("generate", "complete", "inspect", "convert"):
        monkeypatch.setattr(sys, "argv", ["narrows", command, "--help"])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        shown = capsys.readouterr().out
        assert "<bool>" not in shown
        assert shown.startswith(f"Usage: narrows {command} ")
        assert "on a CPU fp8 or official" in " ".join(shown.split()) or command in ("inspect", "convert")


def test_tables_are_whole_wherever_they_go(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setattr(sys, "argv", ["narrows", "inspect", "tiny"])
        with pytest.raises(SystemExit):
            main()
        shown.append(capsys.readouterr().out)
    assert "tiny" in PRESETS
    assert shown[0] == shown[1]
    assert "…" not in shown[0]


def test_asides_are_plain_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    aside("[red]:smile:\x1b")
    assert capsys.readouterr().err == "[red]:smile:\\x1b\n"
