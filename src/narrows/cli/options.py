"""Options that several commands share."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", metavar="MODEL", help="'embedded', a directory, or a hub id (owner/name)."),
]
MaxTokensOption = Annotated[int, typer.Option(metavar="N", help="The most tokens to write.")]
TemperatureOption = Annotated[float, typer.Option(metavar="T", help="0 is greedy; higher is more varied.")]
SeedOption = Annotated[int, typer.Option(metavar="N", help="The same seed gives the same text.")]
DeviceOption = Annotated[str, typer.Option(metavar="DEVICE", help="A PyTorch device: cpu, cuda, mps, ...")]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        metavar="PRECISION",
        help="What to compute in: float32, bf16, and on a CPU fp8 or official; without it, on a CPU, the model's own.",
    ),
]
LedgerOption = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        metavar="URL",
        help="A SQLite file, or postgresql://USER@HOST/NAME. [default: ledger.db in $NARROWS_DATA or the user's data]",
    ),
]


def help_without_command(context: typer.Context) -> None:
    """Show the commands, and end, where none is named."""
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)
