"""`narrows convert`: a checkpoint in another precision or layout."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

PrecisionName = Literal["float32", "bf16", "fp8", "official"]
LayoutName = Literal["official", "transformers"]


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder with a model, of any layout.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write; it must not exist.")],
    precision: Annotated[
        PrecisionName,
        typer.Option(help="fp8: FP8 matrices; official: as the published models, FP4 experts and FP8 matrices."),
    ],
    layout: Annotated[
        LayoutName, typer.Option(help="Whose tensor names to write; transformers reads both.")
    ] = "official",
) -> None:
    """Write a checkpoint in another precision or layout, one tensor at a time. DST is complete or absent afterwards."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from narrows.checkpoints.checkpoint import Checkpoint
    from narrows.checkpoints.directory import check_new
    from narrows.checkpoints.write import Layout, Plan, write_checkpoint
    from narrows.model.precision import Precision

    started = time.monotonic()
    checkpoint = Checkpoint(source)
    plan = Plan(checkpoint, Precision(precision), Layout(layout))
    check_new(destination, plan.bytes)
    if checkpoint.mtp_absent:
        print(f"{source} has no MTP weights (mtp.*), so {destination} gets none.", file=sys.stderr)
    elif plan.config.num_nextn_predict_layers < checkpoint.config.num_nextn_predict_layers:
        print("The transformers layout has no MTP block: mtp.* is left out.", file=sys.stderr)
    description = TextColumn("{task.description}", markup=False)
    columns = (description, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(destination.name, total=plan.bytes)
        written = write_checkpoint(
            checkpoint,
            plan,
            destination,
            companions=source,
            progress=lambda size: progress.advance(task, size),
        )
    print(
        f"{destination}: {written.bytes:,} bytes in {written.shards} {'shard' if written.shards == 1 else 'shards'}, "
        f"{time.monotonic() - started:.1f} s; {_loss(written.worst_error, written.worst_tensor)}."
    )


def _loss(error: float, tensor: str | None) -> str:
    if tensor is None:
        return "nothing was rounded"
    return f"worst relative rounding error {error:.2%} ({tensor})"
