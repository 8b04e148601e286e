"""Where this package keeps what it cannot make again, the ledger first of all."""

from __future__ import annotations

import os
from pathlib import Path

from narrows.checkpoints.paths import is_folder
from narrows.errors import NarrowsError

VARIABLE = "NARROWS_DATA"
"""The environment variable that names another folder for it."""


def data_folder() -> Path:
    """$NARROWS_DATA, else narrows in $XDG_DATA_HOME or ~/.local/share. It need not exist."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).absolute()
    home = Path(os.environ.get("XDG_DATA_HOME", ""))  # to be ignored unless it is absolute, says its specification
    try:
        return (home if home.is_absolute() else Path.home() / ".local/share") / "narrows"
    except RuntimeError:
        raise NarrowsError(f"nobody knows a home folder here; name one for the ledger in ${VARIABLE}.") from None


def default_file() -> Path:
    """The ledger where none is named: a SQLite file in the data folder, which is made for the user alone."""
    folder = data_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        if not is_folder(folder):
            raise NarrowsError(
                f"{folder} cannot be made ({error.strerror}); name another folder in ${VARIABLE}."
            ) from None
    return folder / "ledger.db"
