"""Text on standard output as it is written; how far its prompt is and what it took, on standard error."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from narrows.cli.inspect import short
from narrows.cli.output import aside, counted, visible

if TYPE_CHECKING:
    from narrows.engine.model import Generation, Model

# Tokens of a prompt from which on its progress is shown.
_LONG = 2048


def show(generation: Generation, model: Model, lead: str = "") -> None:
    """Print a generation piece by piece, then a line with what it took.

    `lead`: what it goes on from, for standard error, once the prompt is read.
    """
    start = time.perf_counter()
    first = None
    blank = True
    on_terminal = sys.stdout.isatty()  # elsewhere every character goes out as it is
    pieces = iter(generation)
    try:
        with _prefill_shown(generation):
            piece = next(pieces, None)
        # The text goes on in the same line only where it appears on the same screen.
        if lead:
            aside(lead, end="" if on_terminal or lead.endswith("\n") else "\n")
        while piece is not None:
            first = first or time.perf_counter()
            blank = blank and piece.isspace()
            sys.stdout.write(visible(piece) if on_terminal else piece)
            sys.stdout.flush()
            piece = next(pieces, None)
    finally:  # whatever is said next, of an error too, begins a line
        sys.stdout.write("\n")
        sys.stdout.flush()
    end = time.perf_counter()
    count = len(generation.token_ids)
    parts = [counted(count, "token"), f"prompt {generation.prompt_tokens:,}", f"reused {generation.reused:,}"]
    parts.append(f"first after {(first or end) - start:.2f} s")
    if first is not None and count > 1:
        parts.append(f"then {(count - 1) / max(end - first, 1e-9):.0f} tokens/s")
    parts.append(f"cache {short(model.history_bytes(generation.prompt_tokens + count))}")
    ending = {"stop": "the model ended here", "length": "stopped at the limit"}[generation.finish_reason]
    if blank:
        ending += " and proposes nothing" if generation.finish_reason == "stop" else " with white space alone"
    aside(" · ".join([*parts, ending]))


def mention_context(model: Model, tokens: int) -> None:
    """Say so where a text may reach beyond what the model was trained for."""
    trained = model.config.trained_context
    if trained is not None and tokens > trained:
        aside(f"this may reach {tokens:,} tokens; the model was trained for {trained:,}, and knows little beyond.")


@contextmanager
def _prefill_shown(generation: Generation) -> Iterator[None]:
    """A bar for as long as the prompt is read, on a terminal, if there is much to read."""
    total = generation.prompt_tokens
    if total < _LONG or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("reading"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} tokens"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total, speed="")
        start = time.perf_counter()

        def advance(tokens: int) -> None:
            computed = tokens - generation.reused
            progress.update(task, completed=tokens, speed=f"{computed / (time.perf_counter() - start):,.0f} tokens/s")
            if tokens == total:
                progress.stop()

        generation.on_prefill = advance
        yield
