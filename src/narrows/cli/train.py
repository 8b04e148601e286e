"""`narrows train`: a recipe and a corpus to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file; recipes/ has some.")],
    directory: Annotated[
        Path | None,
        typer.Option("--directory", "-d", help="Where the run keeps its state, log, plots and model: runs/NAME."),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="A corpus made by `narrows data build`, instead of the recipe's own.")
    ] = None,
    until: Annotated[
        int | None,
        typer.Option(min=1, metavar="STEP", help="Stop behind this step; the next start goes on from there."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")] = "cpu",
) -> None:
    """Train the model of a recipe. Interrupted at any time and started again, it ends with the same weights."""
    from rich.console import Console

    from narrows.cli.output import aside
    from narrows.corpus.shards import Corpus
    from narrows.errors import UsageError
    from narrows.ops import native
    from narrows.training.allocator import keep_large_allocations
    from narrows.training.loop import Run
    from narrows.training.recipe import Recipe

    read = Recipe.from_file(recipe)
    keep_large_allocations()
    console = Console()
    run = Run(
        read,
        Corpus(corpus or recipe.parent / read.corpus),
        directory or Path("runs") / read.name,
        device,
    )
    if until is not None and until <= run.progress.step:
        raise UsageError(f"{run.directory} has taken {run.progress.step} steps already; name a later one.")
    if run.progress.step:
        console.print(f"{run.directory}: going on behind step {run.progress.step} of {read.steps}", highlight=False)
    if run.device.type == "cpu" and not native.available():
        absence = native.why_none()
        aside(f"training is slower without the kernels ({absence}).")
    run.train(until)
    if run.progress.step < read.steps:
        return
    model, master = run.export()
    console.print(f"{model}: the model as it ships; {master}: its weights in BF16", highlight=False)
