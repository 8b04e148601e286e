"""A picture of what every day cost."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from narrows.economics.money import PICODOLLARS
from narrows.economics.picture import blank, check_picture
from narrows.ledger.usage import Sum

_MOST = 9
"""Groups with a colour of their own; the others share one."""

_TICKS = 16
_FEW_DAYS = 7
"""As wide as fewer are drawn, so that a single day's bar is a bar."""


def plot_usage(rows: Sequence[Sum], file: Path) -> None:
    """Draw sums by key or model and day as one stacked bar a day, in dollars; the costliest groups are named.

    NarrowsError where matplotlib is not installed, UsageError for a kind of picture that it does not draw. OSError.
    """
    check_picture(file)
    costs: dict[str, dict[date, int]] = {}
    for row in rows:
        assert row.day is not None
        name = row.model if row.model is not None else f"{row.key_name} ({row.key_id})"
        costs.setdefault(name, {})[row.day] = row.cost
    names = sorted(costs, key=lambda name: (-sum(costs[name].values()), name))
    first, last = (pick(day for of_day in costs.values() for day in of_day) for pick in (min, max))
    days: list[Any] = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    figure = blank(9, 5)
    axes = figure.add_subplot()
    bottom = [0] * len(days)
    for place, name in enumerate([*names[:_MOST], *(["others"] if names[_MOST:] else [])]):
        together = [name] if place < _MOST else names[_MOST:]
        heights = [sum(costs[one].get(day, 0) for one in together) for day in days]
        # Pixels alone are not exact.
        axes.bar(
            days,
            [height / PICODOLLARS for height in heights],
            bottom=[below / PICODOLLARS for below in bottom],
            width=0.9,
            label=name.replace("$", r"\$").removeprefix("_"),
            color=f"C{place}",
        )
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    axes.set_ylabel("dollars a day (UTC)")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.use_sticky_edges = False  # which would leave the highest bar without air above it
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="plain")
    every = -(-len(days) // _TICKS)
    axes.set_xticks(days[::every], [f"{day:%Y-%m-%d}" for day in days[::every]])
    margin = timedelta(days=max(1, (_FEW_DAYS - len(days)) / 2))
    axes.set_xlim(days[0] - margin, days[-1] + margin)
    figure.legend(loc="outside right upper")
    figure.autofmt_xdate()
    figure.savefig(file, dpi=120)
