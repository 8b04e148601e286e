"""How much memory this process may use, and what of a mapped file is to be asked for ahead when that is too little."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

FITS = 0.75
"""Of the memory that a process may use, the share up to which a file of weights is thought to stay in it: histories and
other programs want theirs."""

_AHEAD = 1 / 16  # of the memory: what is asked for must still be there when it is used
_UNLIMITED = 1 << 62  # cgroups of version 1 have a number for it, a little below 2^63


def prefetch_bytes(file: int, memory: int, *, wanted: bool | None = None) -> int:
    """How many bytes of a file of this size are to be asked for ahead in this much memory: 0 if the file fits, unless
    it is `wanted` or not."""
    if wanted is None:
        wanted = file > FITS * memory
    return max(1, int(_AHEAD * memory)) if wanted else 0


def usable_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may use: the machine's, or what a control group on its path allows it."""
    return min([_physical(), *_limits(proc, cgroups)])


def _physical() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # a system that does not say sets no limit that we know of
        return _UNLIMITED


def _limits(proc: Path, cgroups: Path) -> Iterator[int]:
    """Of the process's group and all above it; a container may see its own group as the root of all."""
    for line in _read(proc / "self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            root, names = cgroups, ["memory.max", "memory.high"]
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", ["memory.limit_in_bytes"]
        else:
            continue
        parts = Path(path).parts[1:]
        for depth in range(len(parts) + 1):
            for name in names:
                limit = _read(root.joinpath(*parts[:depth], name)).strip()
                if re.fullmatch(r"\d+", limit) and int(limit) < _UNLIMITED:  # not "max"
                    yield int(limit)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
