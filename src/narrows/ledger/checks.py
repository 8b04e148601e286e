"""What may be written into the ledger's columns."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from narrows.economics.money import shown
from narrows.errors import UsageError

LARGEST = 4 * 10**18
"""The most picodollars of a request, a budget or a key's month: $4,000,000, so that sums of two fit 64 bits."""


def check_text(name: str, value: Any, most: int) -> str:
    """The value. UsageError unless it is text of 1 to `most` characters that every database can hold."""
    if not isinstance(value, str) or not value.strip() or len(value) > most:
        raise UsageError(f"{name} is {_brief(value)}; give text of 1 to {most} characters.")
    if "\0" in value or not value.isprintable():
        raise UsageError(f"{name} is {_brief(value)}; leave out what cannot be printed.")
    return value


def check_money(name: str, value: Any) -> int:
    """The value. UsageError unless it is an amount of picodollars."""
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise UsageError(f"{name} is {value!r} picodollars; give a whole number of them from 0 to {shown(LARGEST)}.")
    return value


def check_count(name: str, value: Any, least: int = 0, most: int = 2**53) -> int:
    """The value. UsageError unless it is a whole number in this range."""
    if type(value) is not int or not least <= value <= most:
        raise UsageError(f"{name} is {value!r}; give a whole number from {least} to {most:,}.")
    return value


def check_moment(name: str, value: Any) -> datetime:
    """The value. UsageError unless it is a time with its zone."""
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise UsageError(f"{name} is {value!r}; give a time with its zone.")
    try:
        value.astimezone(UTC)  # as it is kept
    except OverflowError:
        raise UsageError(f"{name} is {value}, which is no time of the years 1 to 9999 (UTC); choose another.") from None
    return value


def check_seconds(name: str, value: Any) -> float | None:
    """The value. UsageError unless it is None or a duration."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12):
        raise UsageError(f"{name} is {value!r}; give seconds from 0 on.")
    return value


def _brief(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 100 else f"{said[:100]}…"
