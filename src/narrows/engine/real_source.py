"""Real text that no model here was trained on: the standard library's own sources."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from narrows.engine.context import read_source
from narrows.text.tokenizer import Tokenizer

_NOT_OF_IT = {"site-packages", "dist-packages", "test", "tests"}


def library_sources() -> Iterator[str]:
    """The files that are not empty, tests aside, by their names. Always the same on one Python."""
    for path in _files(Path(sysconfig.get_paths()["stdlib"])):
        text = read_source(path)
        if text:
            yield text


def library_samples(tokenizer: Tokenizer, most: int, count: int) -> list[list[int]]:
    """The beginnings of files, at most `most` tokens each, until there are `count` together; fewer if there are no
    more."""
    samples: list[list[int]] = []
    left = count
    for text in library_sources():
        samples.append(tokenizer.encode(text)[: min(most, left)])
        left -= len(samples[-1])
        if not left:
            break
    return samples


def _files(folder: Path) -> Iterator[Path]:
    """One by one: the packages installed beside the library may be many more files than it has."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # not every Python comes with its sources
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _NOT_OF_IT:
                yield from _files(Path(entry.path))
        elif entry.name.endswith(".py"):
            yield Path(entry.path)
