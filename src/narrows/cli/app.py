"""The commands and their options, as typer reads them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import narrows
from narrows.cli.complete import complete
from narrows.cli.convert import convert
from narrows.cli.data import data
from narrows.cli.generate import generate
from narrows.cli.inspect import inspect
from narrows.cli.keys import keys
from narrows.cli.options import help_without_command
from narrows.cli.plan import plan
from narrows.cli.serve import serve
from narrows.cli.train import train
from narrows.cli.usage import usage

# What typer raises for a command line that it cannot read. Its versions take it from different packages, so it is
# named by its place above BadParameter; beside the message it has the context, `ctx`.
CommandLineError: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    help="Run, serve, train, inspect and convert DeepSeek-V4 models.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # which would take what stands in brackets for markup
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (complete, generate, serve, inspect, convert, train, usage):
    app.command()(command)
app.add_typer(data, name="data")
app.add_typer(keys, name="keys")
app.add_typer(plan, name="plan")


def _show_version(asked: bool) -> None:
    if asked:
        print(f"narrows {narrows.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Run, serve, train, inspect and convert DeepSeek-V4 models."""
    help_without_command(context)
