"""Sums over requests: by key, model and day, as rows and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, TextIO, get_args

from sqlalchemy import BigInteger, ColumnElement, Connection, cast, func, select

from narrows.economics.money import dollars
from narrows.errors import UsageError
from narrows.ledger.tables import keys, requests

Group = Literal["key", "model", "day"]

_COLUMNS: dict[str, tuple[Any, ...]] = {
    "key": (keys.c.name, requests.c.key_id),  # in the order in which they are sorted
    "model": (requests.c.model,),
    "day": (requests.c.day,),
}

_HALF = 10**9
"""Costs are summed in two parts, because a sum of many may need more than the 64 bits of each."""


@dataclass(frozen=True)
class Sum:
    """What the requests of a group took; the group's own fields are None where it is not by these. `cost` is
    picodollars."""

    requests: int
    hit: int
    miss: int
    output: int
    reasoning: int
    cost: int
    key_id: str | None = None
    key_name: str | None = None
    model: str | None = None
    day: date | None = None


def sums(
    connection: Connection,
    by: Sequence[Group],
    since: date | None,
    until: date | None,
    key_id: str | None,
) -> list[Sum]:
    """Over all requests that have ended, from one day (UTC) to another, both included; in the groups' order.

    UsageError for an unknown group.
    """
    for group in by:
        if group not in get_args(Group):
            raise UsageError(f"usage is summed by {', '.join(get_args(Group))}, not by {group!r}.")
    groups = [column for group in dict.fromkeys(by) for column in _COLUMNS[group]]
    tokens = [_sum(requests.c[name]).label(name) for name in ("hit", "miss", "output", "reasoning")]
    costs = [_sum(requests.c.cost // _HALF).label("high"), _sum(requests.c.cost % _HALF).label("low")]
    query = (
        select(*groups, func.count().label("requests"), *tokens, *costs)
        .select_from(requests.join(keys))
        .where(requests.c.state != "open")
        .group_by(*groups)
        .order_by(*groups)
    )
    if since is not None:
        query = query.where(requests.c.day >= since)
    if until is not None:
        query = query.where(requests.c.day <= until)
    if key_id is not None:
        query = query.where(requests.c.key_id == key_id)
    found = []
    for row in connection.execute(query).mappings():
        values = dict(row)
        values["cost"] = (values.pop("high") or 0) * _HALF + (values.pop("low") or 0)
        if "name" in values:
            values["key_name"] = values.pop("name")
        found.append(Sum(**values | {name: values[name] or 0 for name in ("hit", "miss", "output", "reasoning")}))
    return [one for one in found if one.requests]


def total(rows: Iterable[Sum]) -> Sum:
    """All of them in one."""
    counts = ("requests", "hit", "miss", "output", "reasoning", "cost")
    rows = list(rows)
    return Sum(*(sum(getattr(row, count) for row in rows) for count in counts))


def write_csv(rows: Iterable[Sum], by: Sequence[Group], file: TextIO) -> None:
    """A line for every sum, in dollars to the last digit."""
    groups = [field for group in by for field in (("key_id", "key_name") if group == "key" else (group,))]
    writer = csv.writer(file, lineterminator="\n")
    counts = ("requests", "hit", "miss", "output", "reasoning")
    writer.writerow([*groups, *counts, "cost_dollars"])
    for row in rows:
        writer.writerow([getattr(row, field) for field in (*groups, *counts)] + [f"{dollars(row.cost):f}"])


def _sum(column: ColumnElement[Any]) -> ColumnElement[int]:
    return cast(func.sum(column), BigInteger)
