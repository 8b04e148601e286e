"""PriceBook: what a token costs, by model and date; the one place that prices come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime
from decimal import Decimal
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Self

from narrows.economics.money import picodollars
from narrows.economics.toml_file import read_toml, shipped_toml, tables_of
from narrows.errors import NarrowsError, UsageError

Tier = Literal["default", "priority"]
"""How soon a request is served, and at which price."""

MILLION = 1_000_000

OTHERWISE = "self-hosted"
"""Under which a served model is billed that has no price under its own name; nobody's offer elsewhere."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of one request, by what they cost: prompt tokens that were known already (`hit`), the other prompt tokens
    (`miss`), and what was written, reasoning included (`output`)."""

    hit: int = 0
    miss: int = 0
    output: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            count = getattr(self, field.name)
            if type(count) is not int or count < 0:
                raise UsageError(f"{field.name} tokens are {count!r}; give a whole number from 0 on.")


@dataclass(frozen=True)
class Price:
    """Picodollars for one token of each kind; the tier `priority` costs `priority` times as much.

    UsageError for a multiple that would leave a fraction of a picodollar.
    """

    hit: int
    miss: int
    output: int
    priority: Fraction = Fraction(2)

    def __post_init__(self) -> None:
        for field in ("hit", "miss", "output"):
            if getattr(self, field) * self.priority.numerator % self.priority.denominator:
                raise UsageError(
                    f"priority {self.priority} times the price of {field} has more than 6 decimals a million tokens; "
                    "round one of them."
                )

    def cost(self, tokens: Tokens, tier: Tier = "default") -> int:
        """Picodollars for so many tokens, exactly."""
        amount = tokens.hit * self.hit + tokens.miss * self.miss + tokens.output * self.output
        if tier == "default":
            return amount
        return amount * self.priority.numerator // self.priority.denominator


@dataclass(frozen=True)
class Entry:
    """A model's price from a date on, and who says so."""

    model: str
    since: date
    price: Price
    source: str


class PriceBook:
    """Dated prices of models."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        """UsageError for two prices of one model from the same date."""
        self._entries: dict[str, list[Entry]] = {}
        for entry in sorted(entries, key=lambda entry: (entry.model, entry.since)):
            known = self._entries.setdefault(entry.model, [])
            if known and known[-1].since == entry.since:
                raise UsageError(f"{entry.model} has two prices from {entry.since}; remove one.")
            known.append(entry)

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """The prices that ship with the package; those of a model that the file at `path` names are that file's alone.

        NarrowsError, naming file, model and field, for one that cannot be read or understood.
        """
        own = _read(shipped_toml("prices.toml"), "prices.toml")
        if path is None:
            return cls(own)
        theirs = _read(read_toml(path, "a price book"), str(path))
        named = {entry.model for entry in theirs}
        try:
            return cls([*(entry for entry in own if entry.model not in named), *theirs])
        except UsageError as error:
            raise NarrowsError(f"{path}: {error}") from None

    @property
    def names(self) -> tuple[str, ...]:
        """Of all models that have a price."""
        return tuple(self._entries)

    def entry(self, model: str, on: date) -> Entry:
        """What holds for this model on that day.

        UsageError for an unknown model, naming the nearest ones, and for a day before its first price.
        """
        if model not in self._entries:
            raise self._unknown(model)
        held = self.known(model, on)
        if held is None:
            first = self._entries[model][0].since
            raise UsageError(f"{model} has no price on {on}; its first one holds from {first} on.")
        return held

    def history(self, model: str) -> tuple[Entry, ...]:
        """All that held or hold for this model, oldest first. UsageError for an unknown one, naming the nearest."""
        if model not in self._entries:
            raise self._unknown(model)
        return tuple(self._entries[model])

    def resolve(self, name: str) -> str:
        """The model that a name, or its end, means: v4-pro, opus-4.8. UsageError where none or several do."""
        if name in self._entries:
            return name
        ending = [model for model in self._entries if name and model.endswith(f"-{name}")]
        if len(ending) > 1:
            raise UsageError(f"{name} may be any of {', '.join(ending)}; name one.")
        if not ending:
            raise self._unknown(name)
        return ending[0]

    def _unknown(self, model: str) -> UsageError:
        ends = {name.partition("-")[2]: name for name in self.names} | {name: name for name in self.names}
        near = dict.fromkeys(ends[end] for end in get_close_matches(model, ends, n=3, cutoff=0.5)) or self.names
        return UsageError(
            f"{model or 'a model without a name'} has no price; the nearest names that have one: {', '.join(near)}."
        )

    def known(self, model: str, on: date) -> Entry | None:
        """The same, and None where there is none."""
        return next((entry for entry in reversed(self._entries.get(model, [])) if entry.since <= on), None)

    def price(self, model: str, on: date) -> Price:
        """The same without its date and source."""
        return self.entry(model, on).price


def _read(raw: dict[str, Any], source: str) -> list[Entry]:
    """The entries of a file. NarrowsError, naming `source`, where they are not those of prices."""
    tables = tables_of(raw, "prices")
    if tables is None:
        raise NarrowsError(f"{source} is no price book; let it hold tables [[prices]] and nothing else.")
    entries = []
    for number, table in enumerate(tables, start=1):
        name = table.get("model")
        where = name if isinstance(name, str) and name else f"entry {number}"
        try:
            entries.append(_entry(table))
        except UsageError as error:
            raise NarrowsError(f"{source}: {where}: {error}") from None
    return entries


_REQUIRED = ("model", "from", "hit", "miss", "output", "source")


def _entry(table: Mapping[str, Any]) -> Entry:
    for field in _REQUIRED:
        if field not in table:
            raise UsageError(f"the field {field} is missing; add it.")
    for field in table:
        if field not in (*_REQUIRED, "priority"):
            raise UsageError(f"the field {field} is not known here; remove it.")
    for field in ("model", "source"):
        if not isinstance(table[field], str) or not table[field].strip():
            raise UsageError(f"{field} is {table[field]!r}; give text.")
    since = table["from"]
    if not isinstance(since, date) or isinstance(since, datetime):
        raise UsageError(f"from is {since!r}; give a date such as 2026-04-24.")
    hit, miss, output = (_per_token(field, table[field]) for field in ("hit", "miss", "output"))
    return Entry(table["model"], since, Price(hit, miss, output, _multiple(table.get("priority", 2))), table["source"])


def _per_token(field: str, value: Any) -> int:
    """Picodollars for a token, of dollars for a million."""
    million = picodollars(value, field)
    if million % MILLION:
        raise UsageError(f"{field} is {value} dollars a million tokens; give at most 6 decimals.")
    return million // MILLION


def _multiple(value: Any) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not 1 <= value <= 1000:
        raise UsageError(f"priority is {value}; give how many times the price it costs, from 1 to 1000.")
    return Fraction(value)
