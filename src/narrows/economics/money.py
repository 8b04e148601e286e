"""Exact money: whole picodollars (1e-12 $), in which a millionth of a dollar a million tokens is one a token."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from narrows.errors import UsageError

PICODOLLARS = 10**12
"""In a dollar."""

_DIGITS = 30
"""What a dollar amount may have before its point: more than any, and few enough to compute with at once."""


def picodollars(dollars: Decimal | int | str, name: str = "the amount") -> int:
    """An amount in dollars as picodollars. UsageError, naming it, for what is no exact amount of them from 0 on."""
    if isinstance(dollars, bool) or not isinstance(dollars, Decimal | int | str):
        raise UsageError(f"{name} is {dollars!r}; give dollars as a Decimal, a whole number, or text such as 2.50.")
    try:
        amount = Decimal(dollars)
    except InvalidOperation:
        raise UsageError(f"{name} is {dollars!r}; give dollars, such as 2.50.") from None
    if not amount.is_finite() or amount.adjusted() > _DIGITS or amount < 0:
        raise UsageError(f"{name} is {dollars}; give dollars from 0 on, such as 2.50.")
    numerator, denominator = amount.as_integer_ratio() if amount.adjusted() >= -_DIGITS else (int(bool(amount)), 0)
    if not numerator:
        return 0
    if denominator == 0 or numerator * PICODOLLARS % denominator:
        raise UsageError(f"{name} is {dollars} dollars; give at most 12 decimals.")
    return numerator * PICODOLLARS // denominator


def dollars(amount: int) -> Decimal:
    """Picodollars as dollars, to the last digit."""
    return Decimal((int(amount < 0), tuple(map(int, str(abs(amount)))), -12))


def shown(amount: int) -> str:
    """Picodollars for a reader, exactly: $0.000003625, and $1,234.50 with two decimals at least."""
    return f"{'-' if amount < 0 else ''}${abs(amount) // PICODOLLARS:,}.{_decimals(amount)}"


def plain(amount: int) -> str:
    """Picodollars as dollars for a program, exactly, without signs and commas: 0.000003625, 1234.50."""
    return f"{'-' if amount < 0 else ''}{abs(amount) // PICODOLLARS}.{_decimals(amount)}"


def _decimals(amount: int) -> str:
    """Behind the point, two at least."""
    return f"{abs(amount) % PICODOLLARS:012}".rstrip("0").ljust(2, "0")
