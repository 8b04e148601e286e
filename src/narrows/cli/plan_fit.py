"""`narrows plan fit`: whether chips hold so many users of so long a context, how fast, and what binds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from narrows.cli.configs import config_of
from narrows.cli.plan_shared import (
    LETTERS,
    REACHED,
    ChipFilesOption,
    ContextOption,
    JsonOption,
    PlannedModelOption,
    PlannedPrecisionOption,
    ReachedOption,
    chips_of,
    duration,
    figure,
    giga,
    money,
    parse_chips,
    precision_of,
    reached_of,
    terms_table,
)

if TYPE_CHECKING:
    from rich.table import Table

    from narrows.economics.fit import Fit


def fit(
    chips: Annotated[str, typer.Option("--chips", metavar="CHIPS", help="How many of which, such as 8xH200.")],
    context: ContextOption = "128K",
    users: Annotated[int, typer.Option(metavar="N", help="Users whose requests run at once.")] = 1,
    model: PlannedModelOption = "deepseek-v4-pro",
    layout: Annotated[
        str | None,
        typer.Option(metavar="LAYOUT", help="tp=4,dp=2,pp=1. [default: the fastest that holds all users]"),
    ] = None,
    precision: PlannedPrecisionOption = "official",
    reached: ReachedOption = REACHED,
    chip_file: ChipFilesOption = None,
    explain: Annotated[bool, typer.Option("--explain", help="Also show where every figure comes from.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Whether chips hold a model and its users, how fast these write, and what limits them.

    All users write at once, each behind a context of so many tokens. In a layout, tp chips share every attention, dp
    such groups have users of their own, the experts are spread over both, and pp stages have layers of their own.
    """
    from narrows.cli.output import aside
    from narrows.cli.tables import print_tables
    from narrows.economics.fit import best_fit, possible
    from narrows.economics.layout import Layout
    from narrows.economics.roofline import ROOM, Deployment
    from narrows.economics.units import several, tokens

    config = config_of(model)
    count, chip = parse_chips(chips, chips_of(chip_file))
    part, kept = reached_of(reached), precision_of(precision)
    if layout is None:
        found = possible(config, chip, count, precision=kept, reached=part)
    else:
        chosen = Layout.parse(layout)
        chosen.check(config, chip, count)
        found = [Deployment(config, chip, chosen, kept, part)]
    made = best_fit(found, several(users, "--users"), tokens(context, "--context"))
    if as_json:
        told = {"model": model, "chip": chip.name, "precision": str(kept)} | made.told()
        print(json.dumps(told | ({"explained": [*made.explain()]} if explain else {}), indent=2))
        return
    print(_verdict(model, made))
    for line in made.advice():
        print(line)
    print()
    print_tables(_memory(made), *([_time(made)] if made.step else []))
    if explain:
        print_tables(terms_table(made.explain()))
        aside(f"Of products: {LETTERS}.")
    aside(
        f"Reached: {part:.0%} of the roofline. {ROOM:.0%} of every chip's memory is left to what is computed. A step\n"
        "is as long as the longer of its products and its memory's (weights and history), its links and their\n"
        "latency. Who writes while others' prompts are read waits longer: `narrows plan chips` counts that."
    )


def _verdict(model: str, made: Fit) -> str:
    deployment = made.deployment
    where, one = f"{made.chips}x{deployment.chip.name}", made.chips == 1
    hold, not_hold = ("holds", "does not hold") if one else ("hold", "do not hold")
    what = f"{made.users:,} user{'s' if made.users > 1 else ''} of {made.context:,} tokens"
    idle = f", {made.idle} of them idle" if made.idle else ""
    if made.fits:
        return f"{where} {hold} {model} and {what}, with room for {made.capacity:,}{idle}."
    if deployment.weight_bytes > deployment.memory:
        need = f"{giga(deployment.weight_bytes)} of weights on each, which has {giga(deployment.memory)} for them"
        return f"{where} {not_hold} {model}: {need}."
    return f"{where} {hold} {model} and {made.capacity:,} of {what}{idle}."


def _memory(made: Fit) -> Table:
    from narrows.cli.tables import table

    deployment = made.deployment
    shown = table(f"memory of each of {deployment.layout.chips} chips ({deployment.layout})", "what", "how much")
    left = max(0, deployment.memory - deployment.weight_bytes)
    for name, size in (
        ("all", deployment.chip.memory),
        ("usable", deployment.memory),
        ("weights", deployment.weight_bytes),
        ("left for histories", left),
        ("one user's history", deployment.request_bytes(made.context)),
    ):
        shown.add_row(name, giga(size))
    shown.add_row("users that fit, on all chips", f"{made.capacity:,}")
    return shown


def _time(made: Fit) -> Table:
    from narrows.cli.tables import table
    from narrows.economics.step import SIDES

    step = made.step
    assert step is not None
    shown = table(f"{made.now:,} users write, and no prompt is read", "what", "how much")
    for side in SIDES:
        shown.add_row(f"a step's {side}", duration(step.shown(side)))
    shown.add_row("a step: a token for each", duration(step.seconds))
    shown.add_row("which waits longest for", step.binds)
    shown.add_row("tokens/s each", figure(1 / step.seconds))
    shown.add_row("tokens/s together", figure(made.now / step.seconds))
    shown.add_row("dollars a million written", money(made.dollars_per_million))
    shown.add_row("joules a token", "–" if made.joules is None else figure(made.joules))
    shown.add_row("first token of a prompt so long, alone", duration(made.first_token_seconds))
    return shown
