"""Where this package keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "NARROWS_CACHE"
"""The environment variable that names another place for all of it."""


def cache_folder(name: str) -> Path:
    """The folder of this name in $NARROWS_CACHE, else in narrows in $XDG_CACHE_HOME or ~/.cache. It need not exist.

    RuntimeError where nobody knows a home.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).absolute() / name
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))  # to be ignored unless it is absolute, says its specification
    return (home if home.is_absolute() else Path.home() / ".cache") / "narrows" / name
