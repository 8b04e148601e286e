"""`narrows plan chips`: the cheapest set of chips that meets a target."""

from __future__ import annotations

import json
from collections.abc import Iterable
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
    SpeedOption,
    chips_of,
    duration,
    figure,
    money,
    parse_chips,
    precision_of,
    reached_of,
    terms_table,
)

if TYPE_CHECKING:
    from rich.table import Table

    from narrows.economics.chips import Chip
    from narrows.economics.choose import Choice


_CACHED = "90%"
"""Of the prompts of who works on something for long, such as an agent. An assumption."""


def chips(
    have: Annotated[
        list[str] | None,
        typer.Option(
            "--have", metavar="CHIPS", help="Chips you can get: H100, or 16xH100 at most. [default: all that are known]"
        ),
    ] = None,
    model: PlannedModelOption = "deepseek-v4-pro",
    context: ContextOption = "128K",
    users: Annotated[int, typer.Option(metavar="N", help="Users whose requests run at once.")] = 10,
    output: Annotated[str, typer.Option(metavar="N", help="Tokens of the context that are written.")] = "1K",
    cached: Annotated[
        str, typer.Option(metavar="SHARE", help="The share of prompts that is known: 0.8 or 80%.")
    ] = _CACHED,
    speed: SpeedOption = 20.0,
    first_token: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="The first token of who asks alone, at the latest.")
    ] = None,
    precision: PlannedPrecisionOption = "official",
    reached: ReachedOption = REACHED,
    chip_file: ChipFilesOption = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Show what is known of all chips, with its sources, and nothing else.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also show where prices come from, and the first choice's figures.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """The fewest of every chip that hold all users at the speed asked for, the cheapest first.

    Prompts are read between the steps of those who write. Up to eight nodes of each are tried where no number is
    given.
    """
    from narrows.cli.output import aside
    from narrows.cli.tables import print_tables
    from narrows.economics.choose import Target, choose
    from narrows.economics.serving import Demand
    from narrows.economics.units import positive, several, share, tokens
    from narrows.errors import UsageError

    known = chips_of(chip_file)
    if listed:
        _list(known.all, explain=explain, as_json=as_json)
        return
    stock: dict[str, tuple[int | None, Chip]] = {chip.name: (None, chip) for chip in known.all}
    if have:
        found = [(text, *parse_chips(text, known)) for text in have]
        stock = {chip.name: (count if _has_number(text) else None, chip) for text, count, chip in found}
    whole, written = tokens(context, "--context"), tokens(output, "--output")
    if written > whole:
        raise UsageError(f"--output is {output}, more than the context of {context}; give less.")
    prompt = whole - written
    demand = Demand(prompt, int(prompt * share(cached, "--cached")), written)
    limit = None if first_token is None else positive(first_token, "--first-token")
    target = Target(several(users, "--users"), demand, positive(speed, "--speed"), limit)
    part = reached_of(reached)
    choices = choose(config_of(model), [*stock.values()], target, precision=precision_of(precision), reached=part)
    lines = [*choices[0].explain()] if explain else []
    if as_json:
        told = {"model": model, "choices": [choice.told() for choice in choices]}
        print(json.dumps(told | ({"explained": lines} if explain else {}), indent=2))
        return
    assumed = f" ({cached} unless --cached says otherwise)" if cached == _CACHED else ""
    print(
        f"{users:,} users of {model}, {speed:g} tokens/s or more each while others' prompts are read. Prompts of "
        f"{prompt:,} tokens,\nof which {demand.hit:,} are known{assumed}, and {written:,} tokens written to each.\n"
    )
    print_tables(*_choices(choices))
    if explain:
        print(_sources([choice.chip for choice in choices]))
    if lines:
        print_tables(terms_table(lines))
        aside(f"Of products: {LETTERS}.")
    aside(
        f"Reached: {part:.0%} of the roofline. own: what a bought chip is written off, and its power; bare: without\n"
        "what it needs beside itself, such as a CPU's memory or a card's host, so not to be compared with a rent."
    )


def _list(known: Iterable[Chip], *, explain: bool, as_json: bool) -> None:
    from narrows.cli.tables import print_tables

    if as_json:
        print(json.dumps({"chips": [chip.told() for chip in known]}, indent=2))
        return
    print_tables(_data(known))
    if explain:
        print(_sources(known))


def _has_number(text: str) -> bool:
    import re

    return re.match(r"\s*[0-9]+\s*[x×*]", text, re.IGNORECASE) is not None


def _choices(found: list[Choice]) -> list[Table]:
    from narrows.cli.tables import table

    columns = ("$/hour", "as", "$/month", "tokens/s each", "first token, alone", "$/M written", "binds")
    meets = table("the fewest that do", "chips", "layout", *columns, left=2)
    misses = table("not with these", "chips", "because", left=2)
    for choice in found:
        served = choice.served
        if served is None:
            misses.add_row(choice.chip.name, choice.missed)
            continue
        meets.add_row(
            f"{served.chips}x{choice.chip.name}",
            str(served.deployment.layout),
            money(served.hourly),
            _paid(choice.chip),
            money(served.monthly),
            figure(served.tokens_per_second),
            duration(served.first_token_seconds),
            money(served.dollars_per_million_output),
            served.step.binds if served.step else "–",
        )
    return [one for one in (meets, misses) if one.row_count]


def _data(known: Iterable[Chip]) -> Table:
    from narrows.cli.tables import table

    speeds = ("BF16", "FP8", "FP4")  # TFLOP/s, dense
    columns = ("GB", "GB/s", *speeds, "link", "node", "network", "W", "$/hour", "as")
    title = "TFLOP/s, dense; links to a node's other chips and network to other nodes in GB/s, one direction"
    shown = table(title, "chip", "maker", *columns, "priced", left=2)
    for chip in known:
        told = chip.told()
        shown.add_row(
            chip.name,
            chip.maker,
            figure(chip.memory / 1e9),
            *(
                _or_dash(told[name])
                for name in ("bandwidth_gbs", "bf16_tflops", "fp8_tflops", "fp4_tflops", "link_gbs")
            ),
            f"{chip.node}",
            *(_or_dash(told[name]) for name in ("network_gbs", "watts")),
            money(told["dollars_an_hour"]),
            _paid(chip),
            told["priced"] or "–",
        )
    return shown


def _or_dash(number: float | None) -> str:
    return "–" if number is None else figure(number)


def _paid(chip: Chip) -> str:
    if chip.hourly is None:
        return "–"
    return "rent" if not chip.bought else "own, bare" if chip.bare else "own"


def _sources(known: Iterable[Chip]) -> str:
    """A paragraph a chip: addresses are too long for a table."""
    said = []
    for chip in known:
        lines = [chip.name, f"  figures: {chip.facts}", f"  an hour: {chip.hourly_terms}"]
        lines += [f"  price: {chip.prices}"] if chip.prices else []
        lines += [f"  note: {chip.note}"] if chip.note else []
        said.append("\n".join(lines))
    return "\n".join(said)
