"""Parsed JSON of the kind that is wanted, or a UsageError that names its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from narrows.errors import UsageError


def as_string(data: Any, place: str) -> str:
    """A string."""
    if not isinstance(data, str):
        raise UsageError(f"{place} is {kind_of(data)}; send a string.")
    return data


def as_object(data: Any, place: str) -> Mapping[str, Any]:
    """An object."""
    if not isinstance(data, Mapping):
        raise UsageError(f"{place} is {kind_of(data)}; send an object.")
    return data


def as_list(data: Any, place: str) -> Sequence[Any]:
    """A list."""
    if not isinstance(data, list | tuple):
        raise UsageError(f"{place} is {kind_of(data)}; send a list.")
    return data


def kind_of(data: Any) -> str:
    """What something is, in an error's words."""
    return "missing" if data is None else f"of type {type(data).__name__}"
