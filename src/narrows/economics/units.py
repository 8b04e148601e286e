"""Numbers as planners write them: 128K tokens, 60%, 5000 dollars."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

from narrows.errors import UsageError

HOURS_A_YEAR = 8766

HOURS_A_MONTH = HOURS_A_YEAR / 12

_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20}


def tokens(value: Any, name: str, least: int = 1) -> int:
    """4096, "4,096", "128K", "1.5M": K is 1,024 and M its square, as contexts are counted. UsageError, naming it."""
    if type(value) is int and least <= value < 10**15:
        return value
    text = value.strip().replace(",", "") if isinstance(value, str) else ""
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([KM]?)", text, re.IGNORECASE)
    number = Fraction(found[1]) * _FACTORS[found[2].upper()] if found else Fraction(-1)
    if number < least or number.denominator > 1:
        raise UsageError(f"{name} is {value!r}; give a whole number of tokens from {least}, or so many K or M.")
    return int(number)


def share(value: Any, name: str, *, above: bool = False) -> Fraction:
    """0.6, "0.6", "60%", exactly: from 0 (`above`: from above 0) to 1. UsageError, naming it."""
    number: Fraction | None = None
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(%?)", str(value).strip())
    if found and isinstance(value, int | Decimal | str) and not isinstance(value, bool):
        number = Fraction(found[1]) / (100 if found[2] else 1)
    if number is not None and 1 < number <= 100 and "%" not in str(value):
        raise UsageError(f"{name} is {value!r}; give a share up to 1, or {value}%, if that is meant.")
    if number is None or not (number > 0 if above else number >= 0) or not number <= 1:
        raise UsageError(
            f"{name} is {value!r}; give a share {'above' if above else 'from'} 0, up to 1, such as 0.6 or 60%."
        )
    return number


def several(value: Any, name: str) -> int:
    """A count from 1. UsageError, naming it."""
    if type(value) is not int or not 1 <= value < 10**15:
        raise UsageError(f"{name} is {value!r}; give a whole number from 1.")
    return value


def positive(value: Any, name: str) -> float:
    """A number above 0. UsageError, naming it."""
    known = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if not known or not 0 < value < 10**15:
        raise UsageError(f"{name} is {value!r}; give a number above 0.")
    return float(value)
