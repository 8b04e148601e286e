"""TOML files of planners, with their numbers exact."""

from __future__ import annotations

import tomllib
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any

from narrows.errors import NarrowsError


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """A file's tables, fractions as Decimal. NarrowsError, naming it and what it should be, where it cannot be read or
    is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except OSError as error:
        raise NarrowsError(f"{path} cannot be read ({error.strerror}); give {what}, a TOML file.") from None
    except ValueError as error:
        raise NarrowsError(f"{path} is not TOML ({error}); correct it.") from None


def shipped_toml(name: str) -> dict[str, Any]:
    """The tables of the file of this name that ships with the package."""
    text = files("narrows.economics").joinpath(name).read_text(encoding="utf-8")
    return tomllib.loads(text, parse_float=Decimal)


def tables_of(raw: dict[str, Any], name: str, *others: str) -> list[dict[str, Any]] | None:
    """The tables [[name]] of a file that holds these and perhaps `others`; None where it holds anything else."""
    tables = raw.get(name)
    known = raw.keys() <= {name, *others} and isinstance(tables, list) and all(isinstance(one, dict) for one in tables)
    return tables if known else None
