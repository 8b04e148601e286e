"""Tables of figures, never cut: a terminal that is too narrow wraps them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_WIDEST = 10_000
"""Columns of a terminal that cuts nothing; a table takes no more of them than it needs."""


def table(title: str, *columns: str, left: int = 1) -> Table:
    """An empty table; its first `left` columns are words, the others numbers."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number < left else "right", no_wrap=True)
    return made


def print_tables(*tables: Table) -> None:
    """On standard output, with an empty line between two; brackets in their cells are brackets."""
    from rich.console import Console

    console = Console(width=_WIDEST, markup=False, emoji=False, highlight=False)
    console.print(*tables, sep="\n")
