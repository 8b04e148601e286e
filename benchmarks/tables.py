"""Writes the tables in the repository's documents from the benchmarks' results, and checks that they still agree.

A document marks a table's place with two comments, each alone on its line, and the table of
``benchmarks/results/NAME.json`` stands between them::

    <!-- figures:NAME -->
    <!-- /figures -->

``python -m benchmarks.tables`` writes all tables anew; with ``--check`` it writes nothing and fails where one drifted.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from narrows.errors import NarrowsError

ROOT = Path(__file__).resolve().parents[1]

OPENING = re.compile(r"<!--\s*figures:\s*(.*?)\s*-->\s*")
CLOSING = re.compile(r"<!--\s*/figures\s*-->\s*")


def rewrite(text: str, document: str, results: Path) -> tuple[str, list[str]]:
    """The text with every table written anew, and the names of the tables that were not as they should be.

    `document` is what errors call the text, `results` the folder of the JSON files. Raises NarrowsError for a table
    without results and for markers that do not pair.
    """
    written: list[str] = []
    drifted: list[str] = []
    name: str | None = None
    table: list[str] = []
    standing: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{document}:{number}"
        if opening := OPENING.fullmatch(line):
            if name is not None:
                raise NarrowsError(f"{where}: the figures of {name!r} are still open: add <!-- /figures --> above")
            name, standing = opening[1], []
            table = render(_load(name, where, results))
            written += [line, *table]
        elif CLOSING.fullmatch(line):
            if name is None:
                raise NarrowsError(f"{where}: no figures are open here: remove this line or add its <!-- figures:… -->")
            if table != standing:
                drifted.append(name)
            written.append(line)
            name = None
        elif name is None:
            written.append(line)
        else:
            standing.append(line)
    if name is not None:
        raise NarrowsError(f"{document}: the figures of {name!r} are never closed: add <!-- /figures --> after them")
    return "\n".join(written), drifted


def _load(name: str, where: str, results: Path) -> Mapping[str, Any]:
    path = results / f"{name}.json"
    try:
        result: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in results.glob("*.json"))) or "none"
        raise NarrowsError(f"{where}: there is no result {name!r} (there are: {known}): measure it first") from None
    except ValueError as error:
        raise NarrowsError(f"{path}: this is not JSON ({error}): run the benchmark again") from error
    if "table" not in result.get("figures", {}):
        raise NarrowsError(f"{path}: figures.table is missing, and {where} shows it: record one in the benchmark")
    return result


def render(result: Mapping[str, Any]) -> list[str]:
    """A recorded result as lines of Markdown: caption, table, notes, and where and when it was measured."""
    figures = result["figures"]
    columns, rows = figures["table"]["columns"], figures["table"]["rows"]
    lines = ["", figures["caption"]] if "caption" in figures else []
    lines += ["", _row(columns), _row(_rule([row[i] for row in rows]) for i in range(len(columns)))]
    lines += [_row(cell(value) for value in row) for row in rows]
    lines += ["", f"{result['notes']} {_origin(result)}".strip(), ""]
    return "\n".join(lines).split("\n")  # a caption may have several lines


def cell(value: object) -> str:
    """One value as it reads best: three significant digits or all whole ones; text as it stands."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        case _:
            return str(value)


def _row(cells: Iterator[str] | Sequence[str]) -> str:
    escaped = (text.replace("|", r"\|") for text in cells)
    return f"| {' | '.join(escaped)} |"


def _rule(column: Sequence[object]) -> str:
    numeric = all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in column)
    return "---:" if numeric else "---"


def _origin(result: Mapping[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    commit = f"commit {result['commit'][:10]}" if result["commit"] else "an unknown commit"
    if result["dirty"]:
        commit += " with uncommitted changes"
    chips = [f"{machine['cpu']} ({machine['logical_cores']} cores, {machine['memory_gib']:.0f} GiB)"]
    chips += [machine["accelerator"]] if machine["accelerator"] else []
    packages = ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))
    threads = f"{machine['torch_threads']} thread{'s' if machine['torch_threads'] != 1 else ''}"
    return f"Measured {result['date'][:10]} at {commit} on {' with '.join(chips)}; {packages}, {threads}."


def documents(root: Path) -> Iterator[Path]:
    """Every Markdown file under `root`, hidden folders left out (environments and caches live there)."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, file) for file in sorted(files) if file.endswith(".md"))


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """The command: 0 when all tables are right (or now written), 1 with one line per trouble otherwise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description="Writes the documents' tables.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a table drifted")
    check: bool = parser.parse_args(arguments).check
    troubles = []
    for path in documents(root):
        document = path.relative_to(root).as_posix()
        try:
            text, drifted = rewrite(path.read_text(encoding="utf-8"), document, root / "benchmarks" / "results")
        except NarrowsError as error:
            troubles.append(str(error))
            continue
        if check:
            troubles += [
                f"{document}: the table of {name!r} differs from benchmarks/results/{name}.json: run make tables"
                for name in drifted
            ]
        elif drifted:
            path.write_text(text, encoding="utf-8", newline="\n")
            print(f"{document}: wrote {', '.join(drifted)}")
    for trouble in troubles:
        print(trouble, file=sys.stderr)
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
