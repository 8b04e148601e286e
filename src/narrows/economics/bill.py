"""What a month's tokens cost at the prices of different models, and what a bill becomes at another model's."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from narrows.economics.money import picodollars
from narrows.economics.prices import Entry, Tokens
from narrows.errors import UsageError


@dataclass(frozen=True)
class Bill:
    """Picodollars of a month at one dated price, by kind of token."""

    entry: Entry
    hit: Fraction
    miss: Fraction
    output: Fraction

    @property
    def total(self) -> Fraction:
        return self.hit + self.miss + self.output


def bill(tokens: Tokens, entry: Entry, times: Fraction = Fraction(1)) -> Bill:
    """Of so many tokens, so many times."""
    price = entry.price
    return Bill(
        entry,
        hit=times * tokens.hit * price.hit,
        miss=times * tokens.miss * price.miss,
        output=times * tokens.output * price.output,
    )


def requests_for(amount: int, each: Tokens, entry: Entry) -> Fraction:
    """How many requests of such tokens a bill of so many picodollars has paid. UsageError for one of nothing."""
    if amount < 1:
        raise UsageError("the bill is of nothing; give dollars above 0.")
    cost = entry.price.cost(each)
    if not cost:
        raise UsageError(f"such requests cost nothing with {entry.model}; give tokens that are paid.")
    return Fraction(amount, cost)


def amount(dollars: str, name: str) -> int:
    """A bill in picodollars. UsageError, naming it, for what is not above 0."""
    found = picodollars(dollars.removeprefix("$").replace(",", ""), name)
    if not found:
        raise UsageError(f"{name} is {dollars}; give dollars above 0.")
    return found
