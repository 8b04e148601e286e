"""What a completion may read beside its own file: the files that it imports and a tree of sources, nearest last."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from narrows.corpus.imports import imported_paths
from narrows.errors import UsageError
from narrows.text.tokenizer import Tokenizer

_LARGEST = 1 << 20  # bytes; a larger file is data
_CACHES = {"__pycache__", "node_modules"}
_OUTPUTS = {"_build", "build", "dist", "target"}
_MARKS = {"pyvenv.cfg", "CACHEDIR.TAG"}  # files that virtual environments and caches have


def imported_files(path: Path, text: str) -> list[Path]:
    """The files beside `path` that `text`, its content, imports: those it names itself first, then what these import.

    Looked for in the package around the file, or in its folder where there is none. Files that are no UTF-8, too large
    or unreadable are passed over; so is what does not parse, for a file at work is often unfinished.
    """
    root = _root(path)
    start = path.absolute().relative_to(root).as_posix()
    names = _Files(root, start)
    seen = {start}
    found: list[str] = []
    waiting = list(imported_paths(start, _imports(text), names))
    while waiting:
        following: list[str] = []
        for name in waiting:
            if name not in seen:
                seen.add(name)
                found.append(name)
                content = read_source(root / name)
                following += imported_paths(name, _imports(content or ""), names)
        waiting = following
    return [root / name for name in found]


def sources_around(path: Path, tree: Path) -> list[Path]:
    """The Python sources in the folder `tree` and files with the suffix of `path`, the nearest first: by the number of
    steps between their folder and that of `path`, those as far by their path.

    Left out are `path` itself, links (what they lead to in the tree stands there under its own name), what is hidden,
    virtual environments, caches and build outputs. UsageError where `tree` is no folder or cannot be read.
    """
    root, place = Path(os.path.realpath(tree)), Path(os.path.realpath(path))
    suffixes = {".py", ".pyi", path.suffix} - {""}
    found: list[tuple[int, str, Path]] = []
    try:
        for folder, names in _folders(root):
            steps = _steps(folder, place.parent)
            for name in names:
                file = folder / name
                if file.suffix in suffixes and file != place:
                    found.append((steps, file.relative_to(root).as_posix(), file))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{tree} is no directory; name the folder that holds the sources.") from None
    except OSError as error:
        raise UsageError(f"{tree} cannot be read ({error.strerror}); name a folder that can.") from None
    return [file for _, _, file in sorted(found)]


def texts_of(files: Iterable[Path], path: Path) -> Iterator[str]:
    """The texts of `files` in their order: each file once, whatever names it has, and never that of `path`.

    What is empty, no UTF-8, too large or unreadable is passed over.
    """
    seen = {_identity(path)}
    for file in files:
        identity = _identity(file)
        if identity not in seen:
            seen.add(identity)
            if text := read_source(file):
                yield text


def context_tokens(tokenizer: Tokenizer, texts: Iterable[str], room: int, step: int = 1) -> list[int]:
    """`texts`, the nearest first, as training put files before a file: the nearest last, EOS behind each.

    At most `room` tokens: of the first that does not fit, the end, cut to a whole number of `step` tokens. Where that
    is more than one, what a prompt begins with seldom moves when a text or the room becomes a little larger.
    """
    pieces: list[list[int]] = []
    left = room
    for text in texts:
        if left <= 0:
            break
        piece = [*tokenizer.encode(text), tokenizer.eos_id]
        if len(piece) > left:
            pieces.append(piece[len(piece) - left // step * step :])
            break
        pieces.append(piece)
        left -= len(piece)
    return [token for piece in reversed(pieces) for token in piece]


def read_source(path: Path) -> str | None:
    """A file's text; None for one that is no UTF-8 text, too large or unreadable."""
    try:
        return path.read_text(encoding="utf-8") if path.stat().st_size <= _LARGEST else None
    except (OSError, ValueError):
        return None


def _identity(path: Path) -> tuple[int, int] | None:
    """What all names of a file share; None for one that is out of reach."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """The folders from `root` on that may hold sources, with the names of their files; OSError if `root` has none."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as listed:
                entries = [entry for entry in listed if not entry.name.startswith(".")]
            files = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
            inner = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            if folder == root:
                raise
            continue
        if folder == root or not _is_made(folder.name, files):
            yield folder, files
            waiting += [folder / name for name in inner]


def _is_made(name: str, files: list[str]) -> bool:
    """Whether a folder was filled by a tool. One that is called like a build's output may be a package all the same."""
    return name in _CACHES or not _MARKS.isdisjoint(files) or (name in _OUTPUTS and "__init__.py" not in files)


def _steps(one: Path, other: Path) -> int:
    """Steps up and down from one folder to the other."""
    shared = 0
    for part, its in zip(one.parts, other.parts, strict=False):
        if part != its:
            break
        shared += 1
    return len(one.parts) + len(other.parts) - 2 * shared


def _root(path: Path) -> Path:
    """The folder from which the package around a file is imported; the file's own folder if it is in none."""
    folder = path.absolute().parent
    while (folder / "__init__.py").exists() and folder.parent != folder:
        folder = folder.parent
    return folder


class _Files:
    """The files that may be imported from `root` by the one at `start`: of a package, those of that package."""

    def __init__(self, root: Path, start: str) -> None:
        top, inside, _ = start.partition("/")
        self._root, self._within = root, top + inside if inside else ""

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and name.startswith(self._within) and (self._root / name).is_file()
        except OSError:
            return False


def _imports(text: str) -> ast.Module:
    """The import statements of a text; where the whole does not parse, those of its lines that do."""
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        pass
    statements: list[ast.stmt] = []
    for match in re.finditer(r"^[ \t]*((?:from|import)[ \t][^\n(]*(?:\([^)]*\))?)", text, re.MULTILINE):
        try:
            statements += ast.parse(match[1]).body
        except (SyntaxError, ValueError):
            continue
    return ast.Module(statements, [])
