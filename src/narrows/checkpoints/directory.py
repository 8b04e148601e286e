"""A new directory that is complete or absent, whatever happens while it is written."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from narrows.checkpoints.paths import exists, is_folder
from narrows.errors import NarrowsError, UsageError

FULL = {errno.ENOSPC, errno.EDQUOT}
"""The errors of a disk without room."""


def check_new(destination: Path, needed: int) -> None:
    """Raise unless `destination` can become a new directory of `needed` bytes, and what is missing above it too.

    UsageError if it exists already or what is above it is no folder; NarrowsError if the disk has no room or forbids
    writing.
    """
    if exists(destination) or os.path.islink(destination):
        raise UsageError(f"{destination} exists already; remove it or choose another name.")
    parent = destination.absolute().parent
    while not exists(parent) and not os.path.islink(parent):
        parent = parent.parent
    if not is_folder(parent):
        raise UsageError(f"{parent} is not a folder, so {destination} cannot be made; choose another name.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise NarrowsError(f"{parent} cannot be written to; choose a folder that you may write to.")
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise NarrowsError(
            f"{destination} needs {needed:,} bytes, but its disk has {free:,} free; make room or choose another disk."
        )


@contextmanager
def new_directory(destination: Path) -> Iterator[Path]:
    """Write into the directory that this yields; it becomes `destination` when the block ends without an error.

    Until then it is a hidden sibling, `.NAME.partial-…`, which is removed on errors; what a killed process left of one
    is removed by the next that writes the same destination. Everything is flushed to the disk before the renaming.
    Folders above it are made, and stay. OSErrors, the block's included, become NarrowsErrors that name the destination.
    """
    parent = destination.absolute().parent
    partial, lock = None, None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _locked(parent):
            _remove_leftovers(parent, destination.name)
            partial = parent / f".{destination.name}.partial-{secrets.token_hex(4)}"
            partial.mkdir()
            lock = os.open(partial, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield partial
        for folder, _, files in os.walk(partial):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                flush(path)
        os.rename(partial, destination)
        flush(parent)
    except OSError as error:
        raise _explained(destination, error) from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _explained(destination: Path, error: OSError) -> NarrowsError:
    if error.errno in FULL:
        return NarrowsError(f"{destination} was not written: the disk is full; make room or choose another disk.")
    if error.errno == errno.EFBIG:
        return NarrowsError(
            f"{destination} was not written: a file of it is larger than may be here; raise the limit (ulimit -f) or "
            "choose another disk."
        )
    if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
        return UsageError(f"{destination} exists already; remove it or choose another name.")
    where = f"{error.filename}: " if error.filename else ""
    return NarrowsError(f"{destination} was not written ({where}{error.strerror or error}); nothing is left of it.")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Nobody else makes or removes partial directories in here meanwhile."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_leftovers(parent: Path, name: str) -> None:
    """Remove partial directories whose writer is gone: the system took its lock with it."""
    for partial in parent.glob(f".{glob.escape(name)}.partial-*"):
        try:
            handle = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:
            continue  # it was finished and renamed this moment
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # someone is writing it now
        finally:
            os.close(handle)
        shutil.rmtree(partial, ignore_errors=True)


def flush(path: str | Path) -> None:
    """Have the system write a file, or a folder's names, to the disk now. OSError if it cannot."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
