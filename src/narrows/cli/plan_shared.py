"""What the planner's commands share: models and chips by name, options, and figures as text."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from math import floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from narrows.economics.chips import Chip, Chips
    from narrows.model.precision import Precision

REACHED = "50%"
"""Of the roofline, what is assumed unless the planner knows better. We have measured nothing on other chips; what our
own engine reaches on a CPU is in benchmarks/results/roofline.json."""

LETTERS = (
    "d hidden size, H heads of c channels (V3.2: n without RoPE, p with it, v of value), q and l ranks of queries and "
    "latents, g groups of rank r at the output, I index heads of e channels, h streams, E experts of width w, k "
    "of them active, s shared, W the width of dense layers"
)
"""What stands for what in the terms of products."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
ContextOption = Annotated[str, typer.Option("--context", metavar="N", help="Tokens, or so many K (1,024) or M.")]
PlannedModelOption = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="The model: a preset, a folder or a config.json.")
]
PlannedPrecisionOption = Annotated[
    str, typer.Option("--precision", metavar="P", help="How it is kept: official, fp8 or bf16.")
]
ReachedOption = Annotated[
    str,
    typer.Option(
        "--reached", metavar="SHARE", help="How much of the roofline is reached, which depends on the software."
    ),
]
ChipFilesOption = Annotated[
    list[Path] | None,
    typer.Option("--chip-file", metavar="FILE", readable=False, help="Further chips, or other prices: TOML."),
]
SpeedOption = Annotated[
    float, typer.Option("--speed", metavar="N", help="Tokens a second that each user gets at least.")
]


def precision_of(name: str) -> Precision:
    """UsageError for none of three: nobody serves in float32, and data sheets of chips that have products for it count
    others."""
    from narrows.errors import UsageError
    from narrows.model.precision import Precision

    served = (Precision.OFFICIAL, Precision.FP8, Precision.BF16)
    if name not in served:
        raise UsageError(f"--precision is {name!r}; give one of {', '.join(served)}.")
    return Precision(name)


def reached_of(text: str) -> float:
    """A share of the roofline. UsageError."""
    from narrows.economics.units import share

    return float(share(text, "--reached", above=True))


def terms_table(lines: Iterable[tuple[str, str]]) -> Table:
    """What is explained, and how it comes about."""
    from narrows.cli.tables import table

    made = table("where it comes from", "figure", "terms", left=2)
    for name, terms in lines:
        made.add_row(name, terms)
    return made


def machine_file() -> Path:
    """Where this machine's own figures are, once it was measured."""
    from narrows.ledger.location import data_folder

    return data_folder() / "machine.toml"


def chips_of(files: list[Path] | None) -> Chips:
    """All chips that are known here: ours, this machine where it was measured, and those of the user's own files."""
    from narrows.economics.chips import Chips

    own = machine_file()
    return Chips.load(*([own] if own.is_file() else []), *(files or []))


def parse_chips(text: str, known: Chips) -> tuple[int, Chip]:
    """8xH200. UsageError, which says how this machine is measured where it is meant."""
    from narrows.economics.measure import NAME
    from narrows.errors import UsageError

    if text.strip().lower().endswith(NAME) and not machine_file().is_file():
        raise UsageError("this machine has not been measured yet; `narrows plan --measure` does it.")
    return known.parse(text)


def money(dollars: float | Fraction | None) -> str:
    """$22,149 or $0.0351; a dash where nobody knows it."""
    if dollars is None:
        return "–"
    value = float(dollars)
    if value >= 1 or not value:
        return f"${value:,.2f}"
    return f"${value:.{2 - floor(log10(value))}f}"


def figure(value: float) -> str:
    """Three digits, without exponents: 12,345, 67.8, 0.0321."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"


def duration(seconds: float) -> str:
    """In the unit that reads best."""
    for factor, unit in ((1e-3, "ms"), (1.0, "s"), (60.0, "min"), (3600.0, "h")):
        if seconds < 1000 * factor if unit == "ms" else seconds < 120 * factor:
            return f"{figure(seconds / factor)} {unit}"
    return f"{figure(seconds / 86400)} days"


def giga(size: float) -> str:
    """Bytes in GB."""
    return f"{figure(size / 1e9)} GB"
