"""The corpus: the source files of the standard library of the interpreter that runs this script.

They are Python, they are on every machine that can run this recipe, and their licence (PSF-2.0, with a few files
under permissive notices of their own) lets anyone train on them. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# Folders that hold something else than hand-written library code: third-party packages, tests, tables of characters,
# build settings, and programs that happen to be shipped along.
EXCLUDED_FOLDERS = frozenset(
    {"site-packages", "test", "tests", "idle_test", "__pycache__", "encodings", "pydoc_data", "idlelib", "turtledemo"}
)
# Tables written out as Python, and texts that are encoded on purpose.
EXCLUDED_FILES = frozenset({"html/entities.py", "stringprep.py", "this.py"})
EXCLUDED_PREFIXES = ("_sysconfigdata", "config-")

# Never trained on: what the loss is measured on. Small modules of different kinds, whole files.
HELD_OUT = frozenset(
    {
        "bisect.py",
        "colorsys.py",
        "csv.py",
        "fractions.py",
        "graphlib.py",
        "heapq.py",
        "json/encoder.py",
        "queue.py",
        "shelve.py",
        "textwrap.py",
    }
)


@dataclass(frozen=True)
class SourceFile:
    """One file of the corpus: its path below the library's folder (with `/`), its text, and the text's SHA-256."""

    path: str
    text: str
    sha256: str


def standard_library() -> Path:
    """The folder that holds the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def read_corpus(library: Path) -> list[SourceFile]:
    """Every wanted file below `library` in the order of its path; of equal files only the first."""
    sources: list[SourceFile] = []
    seen: set[str] = set()
    for file in sorted(library.rglob("*.py"), key=lambda file: file.relative_to(library).as_posix()):
        path = file.relative_to(library).as_posix()
        if not is_wanted(path):
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a handful of old files declare another encoding
            continue
        digest = hashlib.sha256(text.encode()).hexdigest()
        if text.strip() and digest not in seen:
            seen.add(digest)
            sources.append(SourceFile(path, text, digest))
    return sources


def is_wanted(path: str) -> bool:
    """Whether the file at `path` (relative, with `/`) belongs to the corpus."""
    folders = path.split("/")[:-1]
    return (
        EXCLUDED_FOLDERS.isdisjoint(folders) and path not in EXCLUDED_FILES and not path.startswith(EXCLUDED_PREFIXES)
    )


def write_manifest(sources: list[SourceFile], destination: Path) -> None:
    """Record what the corpus was, so that anyone can tell whether theirs is the same."""
    manifest = {
        "origin": f"standard library of {platform.python_implementation()} {platform.python_version()}",
        "licence": "PSF-2.0",
        "files": len(sources),
        "bytes": sum(len(source.text.encode()) for source in sources),
        "held_out": sorted(HELD_OUT),
        "sha256": {source.path: source.sha256 for source in sources},
    }
    destination.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
