"""The folder of prepared files: who makes one, who uses one, and which are deleted.

Who makes a file has a lock on it that nobody shares, who uses one has one that all who use it share. The system takes
both away with the process. A file's time of access says when it was last used.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from narrows.checkpoints.directory import FULL

SUFFIX, _UNFINISHED = ".prepared", ".unfinished"
_KEPT = 30 * 24 * 60 * 60
"""Seconds for which a file stays that nobody uses."""


class NoFolderError(Exception):
    """There is no cache folder to write into."""


@contextmanager
def claimed(path: Path) -> Iterator[BinaryIO]:
    """An empty file beside `path`, to be written and renamed; nobody else has it meanwhile. Then it is held (`hold`).

    Waits for a process that does. What a killed one left is taken over, and what it left for other names removed.
    `NoFolderError` if none can be made.
    """
    unfinished = path.with_suffix(_UNFINISHED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in path.parent.glob(f"*{_UNFINISHED}"):
            if other != unfinished:
                _remove_unlocked(other)
        file = _locked(unfinished)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise NoFolderError(f"{path.parent} cannot be written to ({error.strerror})") from None
    with file:
        try:
            file.truncate(0)
            yield file
        finally:
            if _is_at(file, unfinished):  # it was not renamed
                unfinished.unlink()
            hold(file)


def hold(file: BinaryIO) -> None:
    """Keep a prepared file from being deleted for as long as it is open, or a map of it; it counts as used now.

    Where the system allows neither, it is deleted all the same in time, which costs who maps it nothing.
    """
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with suppress(OSError):
        os.utime(file.fileno(), ns=(time.time_ns(), os.fstat(file.fileno()).st_mtime_ns))


def make_room(folder: Path, needed: int) -> None:
    """Delete prepared files that nobody uses, before one of `needed` bytes is written.

    Those that were not used for 30 days; and, the least recently used first, as many as it takes for all together to
    leave half of the disk's room to others. The new one may take more than that half alone. Nothing goes for one that
    cannot fit.
    """
    found = []
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_atime, status.st_size, path))
    taken = sum(size for _, size, _ in found)
    room = shutil.disk_usage(folder).free + taken
    if needed > room:
        return
    for used, size, path in sorted(found):
        if used > time.time() - _KEPT and taken + needed <= room // 2:
            return
        if _remove_unlocked(path):
            taken -= size


def _locked(path: Path) -> BinaryIO:
    """The file, made if need be, under a lock that ends with the file or the process."""
    while True:
        file = path.open("ab+")
        try:
            if _is_locked(file) and _is_at(file, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # who held the lock has renamed or removed what we opened, or was killed


def _is_locked(file: BinaryIO) -> bool:
    """Whether the lock is ours now. If not, whoever had it is waited for: by a shared lock, because who finished the
    file goes on to use it, and has one too."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(file, fcntl.LOCK_SH)
        return False
    return True


def _remove_unlocked(path: Path) -> bool:
    """Remove the file unless somebody makes or uses it, or it is not ours to remove: whether it is gone."""
    try:
        with path.open("rb+") as file:  # as if to write: NFS gives nobody else such a lock
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                path.unlink()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
