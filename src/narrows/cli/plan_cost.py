"""`narrows plan cost`: a month's bill at different models' prices, and beside it the cost of hosting one."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from narrows.cli.configs import config_of
from narrows.cli.plan_shared import (
    LETTERS,
    REACHED,
    ChipFilesOption,
    JsonOption,
    PlannedPrecisionOption,
    ReachedOption,
    SpeedOption,
    chips_of,
    figure,
    money,
    parse_chips,
    precision_of,
    reached_of,
    terms_table,
)
from narrows.economics.money import PICODOLLARS, shown
from narrows.economics.units import HOURS_A_MONTH
from narrows.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from narrows.economics.plan import Hosted, MonthlyPlan
    from narrows.economics.prices import Entry, PriceBook
    from narrows.economics.workload import Requests

    _Within = tuple[PriceBook, date, list[str]]

_SET = "8xH200"
"""The smallest usual set that holds V4-Pro."""

_SHAPE = ("0", "1000", "0")
"""Of a bill's requests, unless it is said: tokens that they read and write, and think beyond that."""

_KINDS = ("known", "read", "written")


def cost(
    workload: Annotated[
        Path | None,
        typer.Option(metavar="FILE", readable=False, help="A month's requests, a TOML file (see docs/planning.md)."),
    ] = None,
    monthly_bill: Annotated[
        str | None, typer.Option(metavar="DOLLARS", help="Instead of a workload: what a month costs with --from.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="MODEL", help="The model that is compared with, or paid now.")
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="MODEL", help="Models to compare; may be repeated. [default: all with a price]"),
    ] = None,
    prompt: Annotated[
        str, typer.Option(metavar="N", help="Of a bill: tokens that a request reads, for every --output it writes.")
    ] = _SHAPE[0],
    output: Annotated[str, typer.Option(metavar="N", help="Of a bill: tokens that a request writes.")] = _SHAPE[1],
    cached: Annotated[
        str | None, typer.Option(metavar="SHARE", help="The share of prompts that is known: 0.8 or 80%.")
    ] = None,
    effort: Annotated[
        str | None, typer.Option(metavar="EFFORT", help="Of a workload: none, high or max, for all its requests.")
    ] = None,
    reasoning: Annotated[
        str, typer.Option(metavar="N", help="Of a bill: tokens of thinking that --to writes and --from does not.")
    ] = _SHAPE[2],
    on: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], metavar="DAY", help="The day of prices. [default: today]")
    ] = None,
    prices: Annotated[
        Path | None, typer.Option(metavar="FILE", readable=False, help="A price book of your own, TOML.")
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option("--chips", metavar="CHIPS", help="Chips to host --to on; may be repeated. [default: 8xH200]"),
    ] = None,
    chip_file: ChipFilesOption = None,
    speed: SpeedOption = 20.0,
    hours: Annotated[
        float, typer.Option(metavar="N", help="Hours of a month in which requests come; chips cost all of them.")
    ] = HOURS_A_MONTH,
    precision: PlannedPrecisionOption = "official",
    reached: ReachedOption = REACHED,
    explain: Annotated[bool, typer.Option("--explain", help="Also show how every figure comes about.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What a month costs with every model, at each of its prices, and from when on hosting is cheaper.

    A bill alone says nothing of what it was paid for: as it stands all of it is taken for written tokens; --prompt,
    --output and --cached say otherwise.
    """
    from narrows.cli.output import aside
    from narrows.cli.tables import print_tables
    from narrows.economics.plan import hosting
    from narrows.economics.prices import OTHERWISE, PriceBook
    from narrows.economics.units import positive

    if (workload is None) == (monthly_bill is None):
        raise UsageError("give either --workload FILE or --monthly-bill DOLLARS.")
    book = PriceBook.load(prices)
    names = list(dict.fromkeys(book.resolve(name) for name in to or [name for name in book.names if name != OTHERWISE]))
    within = (book, on.date() if on else datetime.now(UTC).date(), names)
    if workload is not None:
        if (prompt, output, reasoning) != _SHAPE:
            raise UsageError("--prompt, --output and --reasoning are a bill's; a workload's file says them.")
        made = _of_workload(workload, cached, effort, source, within)
    else:
        if effort is not None:
            raise UsageError("--effort is a workload's; of a bill, --reasoning says how much is thought.")
        if cached is not None and prompt == _SHAPE[0]:
            raise UsageError("--cached is a share of what requests read, which is nothing; give --prompt.")
        made = _of_bill(str(monthly_bill), (prompt, output, reasoning), cached or "0", source, within)
    known = chips_of(chip_file)
    sets = [parse_chips(text, known) for text in host or [_SET]]
    least, part = positive(speed, "--speed"), reached_of(reached)
    models = [(name, config_of(name)) for name in made.models if _has_config(name)]
    kept, busy = precision_of(precision), positive(hours, "--hours")
    if busy > HOURS_A_MONTH:
        raise UsageError(f"--hours is {hours:g}, and a month has {HOURS_A_MONTH}; give fewer.")
    hosted = hosting(made, models, sets, speed=least, precision=kept, reached=part, hours=busy)
    lines = [*made.explain(), *(line for one in hosted if one.served for line in one.explain())] if explain else []
    if as_json:
        told = made.told() | {"hosting": [one.told() for one in hosted]}
        print(json.dumps(told | ({"explained": lines} if explain else {}), indent=2))
        return
    tokens = ", ".join(f"{count:,.0f} {kind}" for count, kind in zip(made.tokens, _KINDS, strict=True))
    print(f"A month: {figure(float(made.requests))} requests, tokens: {tokens}.\n")
    print_tables(
        _bills(made), *_efforts(made), *_hosting(hosted, made, least), *([terms_table(lines)] if lines else [])
    )
    if lines:
        aside(f"Of products: {LETTERS}.")
    if monthly_bill is not None and prompt == _SHAPE[0]:
        aside("All of the bill is taken for written tokens; --prompt, --cached and --output say otherwise.")
    if hosted:
        aside(
            f"Hosting: {part:.0%} of the roofline, {least:g} tokens/s or more for every request, and as many at once "
            f"as fit\nand as that allows, through {busy:g} hours of a month. Chips cost what they do whether or not "
            "anybody asks."
        )


def _of_workload(
    file: Path, cached: str | None, effort: str | None, source: str | None, within: _Within
) -> MonthlyPlan:
    from narrows.economics.plan import of_workload
    from narrows.economics.units import share
    from narrows.economics.workload import load

    requests = load(file)
    if effort is not None:
        requests = [_with_effort(one, effort) for one in requests]
    if cached is not None:
        requests = [one.reading(share(cached, "--cached")) for one in requests]
    return of_workload(requests, *within, source)


def _of_bill(
    dollars: str, shape: tuple[str, str, str], cached: str, source: str | None, within: _Within
) -> MonthlyPlan:
    from narrows.economics.bill import amount
    from narrows.economics.plan import of_bill
    from narrows.economics.units import share, tokens
    from narrows.economics.workload import Requests

    if source is None:
        raise UsageError("a bill is paid to somebody; name the model with --from.")
    names = ("--prompt", "--output", "--reasoning")
    read, written, thought = (tokens(text, name, least=0) for text, name in zip(shape, names, strict=True))
    each = Requests("requests", 1, read, written, share(cached, "--cached"))
    return of_bill(amount(dollars, "--monthly-bill"), each, thought, *within, source)


def _with_effort(one: Requests, effort: str) -> Requests:
    try:
        return one.at(effort)
    except UsageError as error:
        raise UsageError(f"{one.name}: {error}") from None


def _has_config(name: str) -> bool:
    from narrows.economics.models import known

    return known(name) is not None


def _bills(made: MonthlyPlan) -> Table:
    from narrows.cli.tables import table

    made_table = table("dollars a month", "model", "price of", *_KINDS, "together", "times less", left=2)
    for one in made.bills:
        compared = made.reference is not None and one is not made.reference and one.total
        times = figure(float(made.reference.total / one.total)) if compared and made.reference else "–"
        parts = (_dollars(part) for part in (one.hit, one.miss, one.output, one.total))
        made_table.add_row(one.entry.model, _dated(one.entry, made), *parts, times)
    return made_table


def _efforts(made: MonthlyPlan) -> list[Table]:
    from narrows.cli.tables import table

    if not made.by_effort:
        return []
    made_table = table("dollars a month, by how much is thought", "model", "price of", *made.by_effort, left=2)
    for place, one in enumerate(made.bills):
        cells = [_dollars(bills[place].total) for bills in made.by_effort.values()]
        made_table.add_row(one.entry.model, _dated(one.entry, made), *cells)
    return [made_table]


def _hosting(hosted: list[Hosted], made: MonthlyPlan, speed: float) -> list[Table]:
    from narrows.cli.tables import table

    columns = ("$/month", "at once", "most requests", "$/M read", "$/M written", "this month's")
    sets = table("hosting it", "model", "chips", "layout", *columns, left=3)
    compared = ("hosting", "is cheaper than", "at its price of", "from requests/month", "of the most")
    even = table("break-even", *compared, left=3)
    others = table("not hosted", "model", "chips", "because", left=3)
    for one in hosted:
        served, where = one.served, f"{one.count}x{one.chip.name}"
        if served is None:
            others.add_row(one.model, where, one.missed)
            continue
        used = float(made.requests) / served.most_a_month
        sets.add_row(
            *(one.model, where, str(served.deployment.layout), money(served.monthly), f"{served.at_once:,}"),
            figure(served.most_a_month),
            money(served.dollars_per_million_input),
            money(served.dollars_per_million_output),
            f"{used:.1%} of the most" if used <= 1 else _sets(ceil(used), served.monthly),
        )
        for entry, found in one.even:
            if found is not None:
                part = found.at / found.most
                share = f"{part:.1%}" if found.reachable else f"never at {speed:g} tokens/s: {part:.3g} × the most"
                than = (f"{one.model} on {where}", entry.model, _dated(entry, made))
                even.add_row(*than, figure(found.at), share)
    return [one for one in (sets, even, others) if one.row_count]


def _sets(count: int, monthly: float | None) -> str:
    price = "" if monthly is None else f", ${count * monthly:,.0f}"
    return f"{count:,} sets{price}"


def _dated(entry: Entry, made: MonthlyPlan) -> str:
    """From when on a price holds or, where another followed, until when it did."""
    later = [one.entry.since for one in made.bills if one.entry.model == entry.model and one.entry.since > entry.since]
    return f"{entry.since} to {min(later)}" if later else f"{entry.since} on"


def _dollars(amount: Fraction) -> str:
    """To the cent, and below it exactly."""
    cents = round(amount * 100 / PICODOLLARS)
    return f"${cents // 100:,}.{cents % 100:02}" if cents or not amount else shown(ceil(amount))
