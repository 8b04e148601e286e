"""Chip: what a chip can do and costs; the data file of them, with sources, and this machine among them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from narrows.economics.money import PICODOLLARS, picodollars
from narrows.economics.toml_file import read_toml, shipped_toml, tables_of
from narrows.economics.units import HOURS_A_YEAR
from narrows.economics.work import Kind
from narrows.errors import NarrowsError, UsageError

_REQUIRED = ("name", "maker", "kind", "memory_gb", "bandwidth_gbs", "bf16_tflops", "node", "facts")
_NUMBERS = (
    *("memory_gb", "bandwidth_gbs", "bf16_tflops", "fp8_tflops", "fp4_tflops"),
    *("link_gbs", "network_gbs", "watts", "hourly", "price"),
)
_TEXTS = ("name", "maker", "facts", "prices", "note")
_OTHERS = ("priced", "links", "bare")
KINDS = ("gpu", "npu", "soc", "cpu")

_SMALLEST, _LARGEST = Decimal("1e-6"), Decimal(10) ** 9
"""Less and more than any figure here, and near enough to compute with."""

MOST_CHIPS = 100_000


@dataclass(frozen=True)
class Owned:
    """What owning assumes: years over which a bought chip is written off, and what its power costs."""

    years: Decimal
    dollars_per_kwh: Decimal
    source: str = ""


@dataclass(frozen=True)
class Chip:
    """One chip. Bytes, bytes a second and operations a second, dense, sums in float32; `link` to the chips of its node
    and `network` to other nodes are one direction's. `links`: of how many it is made where each goes to one other chip,
    so that few chips have few of them. `hourly`, picodollars, is a rent or, where it is `bought`, what it is written
    off and its power; None where nobody knows a price; `bare`: what it needs beside itself is not in it.

    `rates` lacks what the hardware does not multiply: `rate` tells what is done instead.
    """

    name: str
    maker: str
    kind: str
    memory: int
    bandwidth: float
    rates: Mapping[Kind, float]
    node: int
    link: float | None = None
    links: int = 1
    network: float | None = None
    watts: float | None = None
    hourly: int | None = None
    bought: bool = False
    bare: bool = False
    hourly_terms: str = ""
    priced: date | None = None
    facts: str = ""
    prices: str = ""
    note: str = ""

    def rate(self, kind: Kind) -> float:
        """Operations a second of products of this kind: at the rate of the next wider one where it has none such."""
        narrower: tuple[Kind, ...] = ("fp4", "fp8", "bf16")
        wider = narrower[narrower.index(kind) :]
        return next(self.rates[one] for one in wider if one in self.rates)

    def link_of(self, chips: int) -> float | None:
        """Bytes a second that each of so many chips of a node sends to the others together."""
        if self.link is None or self.links == 1:
            return self.link
        return self.link * min(chips - 1, self.links) / self.links

    def told(self) -> dict[str, Any]:
        """As JSON, in the units of its file."""
        tera: dict[str, float | None] = {}
        for kind in ("bf16", "fp8", "fp4"):
            tera[f"{kind}_tflops"] = self.rates[kind] / 1e12 if kind in self.rates else None
        return {
            "name": self.name,
            "maker": self.maker,
            "kind": self.kind,
            "memory_gb": self.memory / 1e9,
            "bandwidth_gbs": self.bandwidth / 1e9,
            **tera,
            "link_gbs": None if self.link is None else self.link / 1e9,
            "node": self.node,
            "network_gbs": None if self.network is None else self.network / 1e9,
            "watts": self.watts,
            "dollars_an_hour": None if self.hourly is None else self.hourly / PICODOLLARS,
            "bought": self.bought,
            "bare": self.bare,
            "hour": self.hourly_terms,
            "priced": None if self.priced is None else self.priced.isoformat(),
            "facts": self.facts,
            "prices": self.prices,
            "note": self.note,
        }


class Chips:
    """Chips by name."""

    def __init__(self, chips: Sequence[Chip]) -> None:
        """UsageError for two of one name."""
        self._chips: dict[str, Chip] = {}
        for chip in chips:
            if self._chips.setdefault(_plain(chip.name), chip) is not chip:
                raise UsageError(f"there are two chips {chip.name}; remove one.")

    @classmethod
    def load(cls, *paths: Path) -> Self:
        """The chips that ship with the package and those of these files, which take the place of others so named.

        NarrowsError, naming file, chip and field, for a file that cannot be read or understood.
        """
        shipped = shipped_toml("chips.toml")
        owned = _owned(shipped["owned"], None)
        found = {_plain(chip.name): chip for chip in _read(shipped, "chips.toml")}
        for path in paths:
            theirs = _read(read_toml(path, "chips"), str(path), owned)
            try:
                cls(theirs)
            except UsageError as error:
                raise NarrowsError(f"{path}: {error}") from None
            found |= {_plain(chip.name): chip for chip in theirs}
        return cls(list(found.values()))

    @property
    def all(self) -> tuple[Chip, ...]:
        """In the order of their files."""
        return tuple(self._chips.values())

    def find(self, name: str) -> Chip:
        """By its name, however it is spelt: rtx4090, RTX 4090. UsageError, naming the nearest."""
        if _plain(name) in self._chips:
            return self._chips[_plain(name)]
        near = get_close_matches(_plain(name), self._chips, n=3, cutoff=0.4) or self._chips
        named = ", ".join(self._chips[one].name for one in near)
        raise UsageError(f"there is no chip {name!r} here; the nearest: {named}. A file of your own can name others.")

    def parse(self, text: str) -> tuple[int, Chip]:
        """8xH200: how many of which. UsageError."""
        found = re.fullmatch(r"(?:([0-9]{1,6})\s*[x×*])?\s*(\S.*)", text.strip(), re.IGNORECASE)
        if "," in text or "+" in text[:-1]:
            raise UsageError(f"the chips are {text!r}; name one kind, for sets of several kinds cannot be planned.")
        count = int(found[1] or 1) if found else 0
        if found is None or not 1 <= count <= MOST_CHIPS:
            raise UsageError(
                f"the chips are {text!r}; say how many of which, such as 8xH200, from 1 to {MOST_CHIPS:,}."
            )
        return count, self.find(found[2])


def _plain(name: str) -> str:
    """A name as it is compared: letters and digits, of any script."""
    return re.sub(r"[\W_]", "", name.casefold())


def _read(raw: dict[str, Any], source: str, owned: Owned | None = None) -> list[Chip]:
    """The chips of a file, which may leave out what owning assumes where `owned` says it."""
    tables = tables_of(raw, "chips", "owned")
    if tables is None:
        raise NarrowsError(f"{source} is no list of chips; let it hold tables [[chips]], [owned], and nothing else.")
    try:
        owning = _owned(raw.get("owned"), owned)
    except UsageError as error:
        raise NarrowsError(f"{source}: owned: {error}") from None
    chips = []
    for number, table in enumerate(tables, start=1):
        name = table.get("name")
        where = name if isinstance(name, str) and name else f"chip {number}"
        try:
            chips.append(_chip(table, owning))
        except UsageError as error:
            raise NarrowsError(f"{source}: {where}: {error}") from None
    return chips


def _owned(table: Any, otherwise: Owned | None) -> Owned:
    if table is None and otherwise is not None:
        return otherwise
    names = {field.name for field in fields(Owned)}
    if not isinstance(table, dict) or not {"years", "dollars_per_kwh"} <= table.keys() <= names:
        raise UsageError("give years, dollars_per_kwh, perhaps source, and nothing else.")
    numbers = {name: _number(name, table[name]) for name in ("years", "dollars_per_kwh")}
    return Owned(**numbers, source=str(table.get("source", "")))


def _chip(table: Mapping[str, Any], owned: Owned) -> Chip:
    for field in _REQUIRED:
        if field not in table:
            raise UsageError(f"the field {field} is missing; add it.")
    for field in table:
        if field not in (*_REQUIRED, *_NUMBERS, *_TEXTS, *_OTHERS):
            raise UsageError(f"the field {field} is not known here; remove it.")
    if isinstance(table["name"], str) and not _plain(table["name"]):
        raise UsageError(f"name is {table['name']!r}; give letters or digits.")
    for field in _TEXTS:
        if field in table and (not isinstance(table[field], str) or not table[field].strip()):
            raise UsageError(f"{field} is {table[field]!r}; give text.")
    if table["kind"] not in KINDS:
        raise UsageError(f"kind is {table['kind']!r}; give one of {', '.join(KINDS)}.")
    node, links, bare = table["node"], table.get("links", 1), table.get("bare", False)
    if type(node) is not int or not 1 <= node <= MOST_CHIPS:
        raise UsageError(f"node is {node!r}; give how many chips a node has, from 1.")
    if type(links) is not int or not 1 <= links <= MOST_CHIPS:
        raise UsageError(f"links is {links!r}; give how many of them make up link_gbs, from 1.")
    if type(bare) is not bool:
        raise UsageError(f"bare is {bare!r}; give true or false.")
    priced = table.get("priced")
    if priced is not None and (not isinstance(priced, date) or isinstance(priced, datetime)):
        raise UsageError(f"priced is {priced!r}; give a date such as 2026-04-24.")
    number = {field: _number(field, table[field]) for field in _NUMBERS if field in table}
    rates: dict[Kind, float] = {"bf16": _tera(number["bf16_tflops"])}
    for kind in ("fp8", "fp4"):
        if f"{kind}_tflops" in number:
            rates[kind] = _tera(number[f"{kind}_tflops"])
    hourly, terms = _hourly(number, owned)
    return Chip(
        name=table["name"],
        maker=table["maker"],
        kind=table["kind"],
        memory=int(number["memory_gb"] * 10**9),
        bandwidth=float(number["bandwidth_gbs"]) * 1e9,
        rates=rates,
        node=node,
        link=_giga(number.get("link_gbs")),
        links=links,
        network=_giga(number.get("network_gbs")),
        watts=float(number["watts"]) if "watts" in number else None,
        hourly=hourly,
        bought="price" in number,
        bare=bare,
        hourly_terms=terms,
        priced=priced,
        facts=table["facts"],
        prices=table.get("prices", ""),
        note=table.get("note", ""),
    )


def _hourly(number: Mapping[str, Decimal], owned: Owned) -> tuple[int | None, str]:
    """Picodollars an hour, and how they come about."""
    if "hourly" in number and "price" in number:
        raise UsageError("it has both hourly and price; give what it rents for, or what it is bought for.")
    if "hourly" in number:
        return picodollars(number["hourly"], "hourly"), f"rented at ${number['hourly']} an hour"
    if "price" not in number:
        return None, "no price known"
    power = number.get("watts", Decimal(0)) / 1000 * owned.dollars_per_kwh
    hour = number["price"] / (owned.years * HOURS_A_YEAR) + power
    terms = (
        f"bought for ${number['price']:,} and written off over {owned.years} years, with "
        f"{number.get('watts', 0)} W at ${owned.dollars_per_kwh} a kWh"
    )
    return int(hour * PICODOLLARS), terms


def _number(field: str, value: Any) -> Decimal:
    known = isinstance(value, int | Decimal) and not isinstance(value, bool) and Decimal(value).is_finite()
    if not known or not 0 < value <= _LARGEST:
        raise UsageError(f"{field} is {value}; give a number above 0.")
    if value < _SMALLEST:
        raise UsageError(f"{field} is {value}; give a number from {_SMALLEST:f}.")
    return Decimal(value)


def _tera(number: Decimal) -> float:
    return float(number) * 1e12


def _giga(number: Decimal | None) -> float | None:
    return None if number is None else float(number) * 1e9
