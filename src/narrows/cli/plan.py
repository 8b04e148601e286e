"""`narrows plan`: what a workload costs and on which chips, computed from configurations alone."""

from __future__ import annotations

from typing import Annotated

import typer

from narrows.cli.options import help_without_command
from narrows.cli.plan_chips import chips
from narrows.cli.plan_cost import cost
from narrows.cli.plan_efficiency import efficiency
from narrows.cli.plan_fit import fit

plan = typer.Typer(help="Compute what models cost, without their weights.", rich_markup_mode=None)
for command in (efficiency, cost, fit, chips):
    plan.command()(command)


@plan.callback(invoke_without_command=True)
def _plan(
    context: typer.Context,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure this machine, so that it can be named as the chip this-machine.")
    ] = False,
) -> None:
    """Compute what models cost, without their weights."""
    if not measure:
        return help_without_command(context)
    _measure()
    if context.invoked_subcommand is None:
        raise typer.Exit
    return None


def _measure() -> None:
    from datetime import UTC, datetime

    from narrows.cli.output import aside
    from narrows.cli.plan_shared import machine_file
    from narrows.cli.tables import print_tables, table
    from narrows.economics.measure import NAME, measure
    from narrows.errors import NarrowsError

    aside("measuring memory and products: a few seconds, and slower figures while anything else runs")
    found = measure()
    file = machine_file()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.write_text(found.toml(datetime.now(UTC).date().isoformat()), encoding="utf-8")
    except OSError as error:
        raise NarrowsError(f"{file} cannot be written ({error.strerror}); name a folder in $NARROWS_DATA.") from None
    made = table(NAME, "threads", "memory, GB", "GB/s read", "BF16 GFLOP/s", left=0)
    made.add_row(
        str(found.threads),
        f"{found.memory / 1e9:,.1f}",
        f"{found.bandwidth / 1e9:,.1f}",
        f"{found.products / 1e9:,.0f}",
    )
    print_tables(made)
    aside(f"kept in {file}; what it costs is yours to add there")
