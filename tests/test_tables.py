"""A recorded result becomes a table that says what was recorded, and a document that drifts from it is found."""

import json
import re
import string
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import record as recording
from benchmarks.record import record
from benchmarks.tables import cell, main, rewrite
from narrows.errors import NarrowsError

NAMES = st.text(string.ascii_lowercase + string.digits + "-_", min_size=1, max_size=12).filter(lambda n: n[0].isalnum())
# A cell is one line, and a backslash in one would be Markdown's, not ours.
WORDS = st.text("a|", min_size=1) | st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters="\\"), min_size=1
)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), WORDS)
PROSE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r<"), max_size=40)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, list[Any]]:
    columns = draw(st.lists(WORDS, min_size=1, max_size=4))
    row = st.lists(VALUES, min_size=len(columns), max_size=len(columns))
    return {"columns": columns, "rows": draw(st.lists(row, max_size=4))}


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A repository's root of our own; what `record` writes goes there."""
    root = tmp_path_factory.mktemp("repository")
    (root / "benchmarks").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "ROOT", root)
        patch.setattr(recording, "RESULTS", root / "benchmarks" / "results")
        patch.setenv("GIT_CEILING_DIRECTORIES", str(root.parent))
        yield root


def document(root: Path, name: str, before: str = "Before.", after: str = "After.") -> Path:
    """The only document under `root`: an empty place for the figures `name`, between two texts."""
    path = root / "README.md"
    path.write_text(f"{before}\n<!-- figures:{name} -->\n<!-- /figures -->\n{after}", encoding="utf-8", newline="\n")
    return path


def read_back(lines: list[str]) -> list[list[str]]:
    """The cells of a Markdown table, where a pipe divides unless a backslash stands before it."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| ")]
    return [[text.strip().replace("\\|", "|") for text in row] for row in rows]


@given(name=NAMES, table=tables(), before=PROSE, after=PROSE)
def test_a_table_shows_what_was_recorded_and_nothing_else_changes(
    root: Path, name: str, table: dict[str, list[Any]], before: str, after: str
) -> None:
    record(name, {"table": table}, notes="One run.")
    path = document(root, name, before, after)
    assert main([], root) == 0
    written = path.read_bytes().decode()
    assert written.startswith(f"{before}\n<!-- figures:{name} -->\n")
    assert written.endswith(f"\n<!-- /figures -->\n{after}")

    body = written[len(before) :][: -len(after) or None].split("\n")
    shown = read_back(body)
    assert shown[0] == table["columns"]
    assert shown[2:] == [[cell(value) for value in row] for row in table["rows"]]

    assert main(["--check"], root) == 0
    assert main([], root) == 0
    assert path.read_bytes().decode() == written


@given(table=tables(), data=st.data())
def test_check_finds_any_changed_line(root: Path, table: dict[str, list[Any]], data: st.DataObject) -> None:
    record("speed", {"table": table, "caption": "Tokens a second."})
    path = document(root, "speed")
    main([], root)
    lines = path.read_text(encoding="utf-8").split("\n")
    inside = data.draw(st.integers(2, len(lines) - 3))
    lines[inside] += data.draw(st.text(string.ascii_letters + " 0123456789", min_size=1, max_size=5))
    path.write_text("\n".join(lines), encoding="utf-8", newline="\n")
    tampered = path.read_bytes()

    assert main(["--check"], root) == 1
    assert path.read_bytes() == tampered


def test_the_message_names_document_result_and_remedy(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record("speed", {"table": {"columns": ["a"], "rows": [[1]]}})
    document(root, "speed")
    assert main(["--check"], root) == 1
    error = capsys.readouterr().err
    assert error == "README.md: the table of 'speed' differs from benchmarks/results/speed.json: run make tables\n"


@given(name=NAMES)
def test_a_result_that_nobody_measured_is_named(name: str) -> None:
    with pytest.raises(NarrowsError, match=rf"README\.md:2: there is no result '{name}' \(there are: none\)"):
        rewrite(f"\n<!-- figures:{name} -->\n<!-- /figures -->", "README.md", Path("nowhere"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- figures:speed -->\n| 1 |", r"README\.md: the figures of 'speed' are never closed"),
        ("<!-- figures:speed -->\n<!-- figures:speed -->", r"README\.md:2: the figures of 'speed' are still open"),
        ("text\n<!-- /figures -->", r"README\.md:2: no figures are open here"),
    ],
)
def test_markers_that_do_not_pair_are_named(root: Path, text: str, message: str) -> None:
    path = record("speed", {"table": {"columns": ["a"], "rows": [[1]]}})
    with pytest.raises(NarrowsError, match=message):
        rewrite(text, "README.md", path.parent)


def test_a_result_without_a_table_is_named(root: Path) -> None:
    path = record("plain", {"seconds": 1.5})
    with pytest.raises(NarrowsError, match=r"plain\.json: figures\.table is missing, and README\.md:1 shows it"):
        rewrite("<!-- figures:plain -->\n<!-- /figures -->", "README.md", path.parent)


@pytest.mark.parametrize("figures", [{"loss": float("nan")}, {"rows": {1, 2}}])
def test_figures_that_json_cannot_hold_are_refused_and_nothing_is_written(root: Path, figures: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="figures of 'refused' are not plain JSON"):
        record("refused", figures)
    assert not (recording.RESULTS / "refused.json").exists()


@pytest.mark.parametrize("name", ["", "../escape", "With Space", "-flag"])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="choose a plain one"):
        record(name, {})


def test_a_record_knows_its_commit_and_whether_files_differ_from_it(root: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        done = subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit_and_dirty() -> tuple[str | None, bool | None]:
        result = json.loads(record("where", {}).read_text(encoding="utf-8"))
        return result["commit"], result["dirty"]

    assert commit_and_dirty() == (None, None)
    git("init", "--quiet")
    (root / "code.py").write_text("x = 1\n")
    git("add", "code.py")
    git("commit", "--quiet", "--message", "Begin")
    (root / "README.md").unlink(missing_ok=True)
    assert commit_and_dirty() == (git("rev-parse", "HEAD"), False)
    (root / "code.py").write_text("x = 2\n")
    assert commit_and_dirty() == (git("rev-parse", "HEAD"), True)
