"""`narrows complete` and `narrows generate`, through the console entry point."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import narrows
from narrows.cli.complete import fit, split_at, with_imports
from narrows.cli.main import main
from narrows.engine.context import sources_around
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
        ("{latin}", UsageError, "is not UTF-8 text .byte 3.; convert it first"),
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
        (("complete", os.devnull + "/x"), 2),
        (("complete", sys.executable), 2),
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


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project of four sources, of which `work.py` is at work; more than the embedded model was trained to read."""
    texts = {
        "work.py": "from shop import money\n\n\ndef total(prices):\n    return ",
        "shop/money.py": "CENTS = 100\n",
        "beside.py": "def area(width, height):\n    return width * height\n\n\n" * 40,
        "shop/far/goods.py": "class Good:\n    def __init__(self, name):\n        self.name = name\n\n\n" * 90,
    }
    root = tmp_path / "tree"
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def prompt_of(tree: Path, max_tokens: int = 16, context_tokens: int | None = None, after: str = "") -> list[int]:
    path = tree / "work.py"
    text = path.read_text()
    model = load_once()
    before, after = fit(model, text, after, max_tokens, context_tokens)
    others = sources_around(path, tree)
    return with_imports(model, path, text, before, after, max_tokens, context_tokens, others)[0]


@pytest.mark.parametrize("after", ["", "\n\nprint(total([1]))\n"])
def test_a_tree_stands_before_the_file_the_nearest_last(tree: Path, after: str) -> None:
    tokenizer = load_once().tokenizer
    tokens = prompt_of(tree, context_tokens=32768, after=after)
    text = tokenizer.decode(tokens)
    files = [(tree / name).read_text() for name in ("shop/far/goods.py", "beside.py", "shop/money.py")]
    whole = "".join(f"{file}<｜end▁of▁sentence｜>" for file in files)
    assert text.removeprefix("<｜begin▁of▁sentence｜>").startswith(whole)
    assert after in text
    assert text.endswith((tree / "work.py").read_text())  # suffix first is how the model learned it


@given(st.integers(1, 600), st.integers(0, 3000), st.integers(0, 3000))
@settings(max_examples=scaled(20))
def test_no_more_is_read_than_asked_for(max_tokens: int, more: int, file: int) -> None:
    asked = max_tokens + 20 + more
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("narrows.engine.context.read_source", lambda path: "area = width * height\n" * file)
        model = load_once()
        before, after = fit(model, "x = 1\n" * file or "x", "y = 2\n" * 40, max_tokens, asked)
        path = Path(textwrap.__file__)
        prompt, _ = with_imports(model, path, "", before, after, max_tokens, asked, [Path(inspect.__file__)])
    assert len(prompt) + max_tokens <= asked


def summary(said: str) -> dict[str, int]:
    """The counts of tokens in the last line."""
    last = said.splitlines()[-1]
    found = re.match(r"(?P<written>\d+) tokens? · prompt (?P<prompt>[\d,]+) · reused (?P<reused>[\d,]+) · ", last)
    assert found, last
    assert re.search(r" · first after \d+\.\d\d s · (then \d+ tokens/s · )?cache \d+\.\d\d [kM]B · ", last)
    return {name: int(count.replace(",", "")) for name, count in found.groupdict().items()}


def completed(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`narrows complete`, in a process of its own."""
    command = [sys.executable, "-m", "narrows.cli.main", "complete", *map(str, arguments), "--max-tokens", "16"]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_what_was_read_is_known_to_the_next_process(tree: Path, tmp_path: Path) -> None:
    """All of it to the same request; the files before, also where the file at work has changed."""
    cached = (tree / "work.py", "--context", tree, "--cache", tmp_path / "kept")
    first, second = completed(*cached), completed(*cached)
    plain = completed(tree / "work.py", "--context", tree, "--no-cache")
    assert first.stdout == second.stdout == plain.stdout != "\n"
    prompt = len(prompt_of(tree))
    for done, reused in ((first, 0), (plain, 0), (second, (prompt - 1) // 128 * 128)):
        assert "work.py, line 5, reading 3 other files" in done.stderr
        assert summary(done.stderr) == {"written": 16, "prompt": prompt, "reused": reused}
    (tree / "work.py").write_text((tree / "work.py").read_text() + "sum(price for price in ")
    changed = completed(*cached)
    assert summary(changed.stderr)["reused"] >= 1024
    assert changed.stdout == completed(tree / "work.py", "--context", tree, "--no-cache").stdout


def test_a_loaded_model_keeps_prefixes_too(tmp_path: Path) -> None:
    reused = []
    for _ in range(2):
        model = load("embedded", prefixes=narrows.Prefixes(tmp_path))
        generation = model.stream("x = 1\n" * 100, max_tokens=1)
        "".join(generation)
        reused.append(generation.reused)
        assert (
            model.history_bytes(128) - model.history_bytes(1) == 0 < model.history_bytes(129) - model.history_bytes(128)
        )
    assert reused == [0, (generation.prompt_tokens - 1) // 128 * 128]


def test_prefixes_are_kept_in_the_user_s_cache(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("complete", str(tree / "work.py"), "--max-tokens", "1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # which is to be ignored
    assert run(monkeypatch, *arguments, "--context", str(tree)) == 0
    assert list((tmp_path / "home/.cache/narrows/prefixes").glob("*.prefix"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for options in ((), ("--context", str(tree), "--no-cache")):
        assert run(monkeypatch, *arguments, *options) == 0
    assert not (tmp_path / "xdg/narrows/prefixes").exists()
    assert run(monkeypatch, *arguments, "--context", str(tree)) == 0
    assert list((tmp_path / "xdg/narrows/prefixes").glob("*.prefix"))
    assert (tmp_path / "xdg/narrows/prefixes").stat().st_mode & 0o077 == 0
    monkeypatch.setenv("NARROWS_CACHE", str(tmp_path / "named"))
    assert run(monkeypatch, *arguments, "--context", str(tree)) == 0
    assert list((tmp_path / "named/prefixes").glob("*.prefix"))
    capsys.readouterr()


def test_a_cache_that_cannot_be_is_done_without(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    arguments = ("complete", str(tree / "work.py"), "--context", str(tree), "--max-tokens", "4")
    assert run(monkeypatch, *arguments, "--no-cache") == 0
    text = capsys.readouterr().out
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "folder" and allowed(path, mode))
    for name, why in (("file", "File exists"), ("file/x", "Not a directory"), ("folder", "Permission denied")):
        assert run(monkeypatch, *arguments, "--cache", str(tmp_path / name)) == 0
        said = capsys.readouterr()
        assert said.out == text
        warning = f"what is read is not kept ({tmp_path / name}: {why}); name another place with --cache DIR"
        assert said.err.count(warning) == said.err.count("kept") == 1


def test_a_cache_that_takes_nothing_is_said_once(tree: Path, tmp_path: Path) -> None:
    """Its directory is there, and files cannot be made in it."""
    code = (
        "import pathlib, sys\n"
        "def fail(*_):\n    raise OSError(28, 'No space left on device')\n"
        "pathlib.Path.write_bytes = fail\n"
        "from narrows.cli.main import main\n"
        f"sys.argv = ['narrows', 'complete', '{tree}/work.py', '--context', '{tree}', '--max-tokens', '4']\n"
        "main()\n"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    assert done.stderr.count("takes no more prefixes (No space left on device)") == done.stderr.count("space") == 1
    assert done.stdout.strip()


def test_a_tree_without_sources_is_said_and_done_without(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "latin.py").write_bytes(b"# \xe9\n")
    place = ("complete", str(tree / "beside.py"), "--max-tokens", "4", "--no-cache")
    assert run(monkeypatch, *place[:-1]) == 0
    text = capsys.readouterr().out
    for name, said in (("empty", "holds no other sources; going on without"), ("notes", "adds nothing")):
        assert run(monkeypatch, *place, "--context", str(tmp_path / name)) == 0
        captured = capsys.readouterr()
        assert captured.out == text
        assert f"{tmp_path / name} {said}" in captured.err


def test_what_lies_beyond_the_training_is_said(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("complete", str(tree / "work.py"), "--context", str(tree), "--no-cache", "--max-tokens", "4")
    for options, mentions in (((), 0), (("--context-tokens", "1024"), 0), (("--context-tokens", "4096"), 1)):
        assert run(monkeypatch, *place, *options) == 0
        said = capsys.readouterr().err
        assert said.count("the model was trained for 2,048") == mentions
        assert summary(said)["prompt"] + 4 <= int(dict([options] if options else []).get("--context-tokens", 2048))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--context", "{tree}/work.py"), "{tree}/work.py is no directory; name the folder that holds the sources"),
        (("--context", "{tree}/absent"), "{tree}/absent is no directory; name the folder that holds the sources"),
        (("--context", "n" * 300), "cannot be read (File name too long); name a folder that can"),
        (("--context", "{tree}", "--context-tokens", "0"), "--context-tokens is 0; ask for at least 1"),
        (("--context", "{tree}", "--context-tokens", "-5"), "--context-tokens is -5; ask for at least 1"),
        (("--context-tokens", "100"), "--context-tokens goes with --context; name the folder to read, or leave it out"),
        (("--cache", "{tree}"), "--cache goes with --context"),
        (("--no-cache",), "--no-cache goes with --context"),
        (("--context", "{tree}", "--cache", "x", "--no-cache"), "--cache and --no-cache contradict each other"),
    ],
)
def test_contexts_that_cannot_be_are_refused_before_a_model_is_loaded(
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr("narrows.engine.model.load", lambda *_, **__: pytest.fail("a model was loaded"))
    named = [option.format(tree=tree) for option in options]
    assert run(monkeypatch, "complete", str(tree / "work.py"), *named) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("narrows: ")
    assert message.format(tree=tree) in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--context-tokens", "1048577"),
            "--context-tokens is 1048577 but the model has 1048576 positions; ask for fewer",
        ),
        (("--context-tokens", "64"), "max_tokens 64 leaves no room in a context of 64 tokens; ask for fewer"),
        (("--max-tokens", "2040"), "max_tokens 2040 leaves no room in a context of 2,048 tokens; ask for fewer"),
    ],
)
def test_contexts_that_the_model_cannot_have(
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    place = ("complete", str(tree / "work.py"), "--context", str(tree), "--no-cache")
    assert run(monkeypatch, *place, *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "place", "options", "message"),
    [
        ("", "", (), "is empty; write a first line for the model to go on from"),
        ("", ":1", ("--before-only",), "is empty; write a first line for the model to go on from"),
        ("x = 1\n", ":1:1", ("--before-only",), "nothing stands before that place in .*; write a first line"),
    ],
)
def test_nothing_to_go_on_from_is_refused_before_a_model_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    place: str,
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr("narrows.engine.model.load", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "a.py").write_text(text)
    assert run(monkeypatch, "complete", f"{tmp_path}/a.py{place}", *options) == 2
    assert re.search(message, capsys.readouterr().err)
