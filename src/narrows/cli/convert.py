"""`narrows convert`: a checkpoint in another precision or layout."""

from __future__ import annotations

import time
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from narrows.cli.output import aside, counted
from narrows.errors import NarrowsError

if TYPE_CHECKING:
    from narrows.model.config import ModelConfig
    from narrows.model.precision import Precision

PrecisionName = Literal["float32", "bf16", "fp8", "official"]
LayoutName = Literal["official", "transformers"]

# What the standard library's reading may take: seconds with a small model, minutes with one of this size.
_MEASURED_TOKENS, _MEASURED_CONTEXT = 8192, 2048
_MEASURED_BYTES = 2_000_000_000


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="'embedded', or a folder with a model of any layout.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write; it must not exist.")],
    precision: Annotated[
        PrecisionName,
        typer.Option(help="fp8: FP8 matrices; official: as the published models, FP4 experts and FP8 matrices."),
    ],
    layout: Annotated[
        LayoutName, typer.Option(help="Whose tensor names to write; transformers reads both.")
    ] = "official",
    no_measure: Annotated[bool, typer.Option("--no-measure", help="Do not run the model that was written.")] = False,
) -> None:
    """Write a checkpoint in another precision or layout, one tensor at a time. DST is complete or absent afterwards.

    Then the model that was written reads a little of Python's standard library, and so does SRC in BF16: its loss, and
    how far its predictions are from SRC's, tell what the precision costs.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from narrows.checkpoints.checkpoint import Checkpoint
    from narrows.checkpoints.directory import check_new
    from narrows.checkpoints.hub import local
    from narrows.checkpoints.write import Layout, Plan, write_checkpoint
    from narrows.model.precision import Precision

    started = time.monotonic()
    folder = local(source)
    checkpoint = Checkpoint(folder)
    plan = Plan(checkpoint, Precision(precision), Layout(layout))
    check_new(destination, plan.bytes)
    if checkpoint.mtp_absent:
        aside(f"{source} has no MTP weights (mtp.*), so {destination} gets none.")
    elif plan.config.num_nextn_predict_layers < checkpoint.config.num_nextn_predict_layers:
        aside("The transformers layout has no MTP block: mtp.* is left out.")
    _mention_tokenizer(folder, plan.config)
    description = TextColumn("{task.description}", markup=False)
    columns = (description, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(destination.name, total=plan.bytes)
        try:
            written = write_checkpoint(
                checkpoint,
                plan,
                destination,
                companions=folder,
                progress=lambda size: progress.advance(task, size),
            )
        except BaseException:
            progress.update(task, visible=False)  # what follows is the one line that says why
            progress.live.transient = True
            raise
    print(
        f"{destination}: {written.bytes:,} bytes in {counted(written.shards, 'shard')}, "
        f"{time.monotonic() - started:.1f} s; {_rounding(written.worst_error, written.worst_tensor)}."
    )
    if not no_measure:
        parameters = sum(prod(shape) for shape in checkpoint.shapes.values())
        try:
            print(_measured(folder, destination, Precision(precision), parameters))
        except NarrowsError as error:
            aside(f"Its loss was not measured: {error}")


def _mention_tokenizer(folder: Path, config: ModelConfig) -> None:
    """It goes along as it is; that nothing will load it is better known now."""
    from narrows.checkpoints.paths import exists
    from narrows.text.tokenizer import Tokenizer

    if not exists(folder / "tokenizer.json"):
        return
    try:
        Tokenizer.from_directory(folder).check_fits(config, str(folder))
    except NarrowsError as error:
        aside(f"The tokenizer is copied as it is, though {error}")


def _measured(source: Path, destination: Path, precision: Precision, parameters: int) -> str:
    """What the model in `destination` loses, in a sentence. NarrowsError where that cannot, or should not, be known."""
    from narrows.checkpoints.checkpoint import read_config
    from narrows.checkpoints.load import load_reference
    from narrows.checkpoints.paths import exists
    from narrows.engine.divergence import Predictions, compare
    from narrows.engine.real_source import library_samples
    from narrows.model.precision import Precision
    from narrows.text.tokenizer import Tokenizer

    if not exists(destination / "tokenizer.json"):
        raise NarrowsError(f"{source} has no tokenizer.json; add one to know.")
    if 4 * parameters > _MEASURED_BYTES:
        raise NarrowsError(
            f"it takes {4 * parameters / 1e9:.1f} GB in float32, more than the {_MEASURED_BYTES / 1e9:.0f} up to which "
            "that is done; run an evaluation of your own."
        )
    tokenizer = Tokenizer.from_directory(destination)
    config = read_config(destination)
    tokenizer.check_fits(config, str(destination))
    context = min(config.trained_context or _MEASURED_CONTEXT, config.max_position_embeddings)
    texts = library_samples(tokenizer, min(context, _MEASURED_CONTEXT), _MEASURED_TOKENS)
    if not texts:
        raise NarrowsError("this Python comes without the sources of its standard library; install them to know.")
    before = Predictions(load_reference(source, Precision.BF16), tokenizer, texts)
    after = Predictions(load_reference(destination, precision), tokenizer, texts)
    found = compare(before, after, tokenizer, texts)
    return (
        f"{found.tokens:,} tokens of the standard library: {found.bits_per_byte:.4f} bits per byte, KL divergence to "
        f"BF16 {found.divergence:.2g} nats a token."
    )


def _rounding(error: float, tensor: str | None) -> str:
    if tensor is None:
        return "nothing was rounded"
    return f"worst relative rounding error {error:.2%} ({tensor})"
