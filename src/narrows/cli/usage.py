"""`narrows usage`: what the server's keys have used, and what it cost."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from narrows.cli.options import LedgerOption

if TYPE_CHECKING:
    from rich.table import Table

    from narrows.ledger.usage import Sum

_DAYS = ["%Y-%m-%d"]


def usage(
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="GROUP", help="key, model or day; give several for their combinations. [default: key]"),
    ] = None,
    since: Annotated[
        datetime | None, typer.Option("--from", formats=_DAYS, metavar="DAY", help="The first day (UTC).")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option("--to", formats=_DAYS, metavar="DAY", help="The last day (UTC), included.")
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="ID", help="Of one key alone.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values instead of a table.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            readable=False,  # that is checked here, in our own words
            help="Also draw the cost of every day, by key or model, into a PNG, SVG or PDF file. Needs matplotlib.",
        ),
    ] = None,
    ledger: LedgerOption = None,
) -> None:
    """Sum the requests that have ended: tokens by kind, and dollars to the last digit."""
    from narrows.cli.output import aside
    from narrows.cli.tables import print_tables
    from narrows.ledger.ledger import Ledger
    from narrows.ledger.plot import plot_usage
    from narrows.ledger.usage import write_csv

    groups: Any = tuple(dict.fromkeys(by or ["key"]))  # checked where they are used
    within: dict[str, Any] = {
        "since": since.date() if since else None,
        "until": until.date() if until else None,
        "key_id": key,
    }
    with Ledger.open(ledger, create=False) as opened:
        rows = opened.usage(groups, **within)
        daily = opened.usage(("model" if "model" in groups else "key", "day"), **within) if plot and rows else []
        where = opened.where
    if as_csv:
        write_csv(rows, groups, sys.stdout)
    elif rows:
        print_tables(_table(rows, groups))
    if not rows:
        aside(f"{where} has no requests that ended then.")
        return
    if plot:
        plot_usage(daily, plot)
        aside(f"{plot}: cost by day")


def _table(rows: Sequence[Sum], groups: Sequence[str]) -> Table:
    from narrows.cli.tables import table
    from narrows.economics.money import shown
    from narrows.ledger.usage import total

    columns = [column for group in groups for column in (("key", "name") if group == "key" else (group,))]
    counts = ("requests", "tokens in", "of them cached", "tokens out", "of them reasoning", "cost")
    made = table("usage", *columns, *counts, left=len(columns))

    def add(words: Sequence[str], row: Sum, **style: Any) -> None:
        numbers = (row.requests, row.hit + row.miss, row.hit, row.output, row.reasoning)
        made.add_row(*words, *(f"{number:,}" for number in numbers), shown(row.cost), **style)

    for row in rows:
        names = {"key": (row.key_id, row.key_name), "model": (row.model,), "day": (row.day,)}
        add([str(name) for group in groups for name in names[group]], row)
    if len(rows) > 1:
        made.add_section()
        add(["total", *[""] * (len(columns) - 1)], total(rows), style="bold")
    return made
