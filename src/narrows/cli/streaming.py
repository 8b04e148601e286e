"""Text on standard output as it is written; what it took, on standard error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from narrows.engine.model import Generation


def show(generation: Generation) -> None:
    """Print a generation piece by piece, then a line with tokens and tokens/s."""
    start = time.perf_counter()
    first = None
    for piece in generation:
        first = first or time.perf_counter()
        sys.stdout.write(piece)
        sys.stdout.flush()
    end = time.perf_counter()
    sys.stdout.write("\n")
    sys.stdout.flush()
    count = len(generation.token_ids)
    parts = [f"{count} tokens"]
    if first is not None and count > 1:
        parts += [f"first after {first - start:.2f} s", f"then {(count - 1) / max(end - first, 1e-9):.0f} tokens/s"]
    ending = {"stop": "the model ended here", "length": "stopped at the limit"}[generation.finish_reason]
    Console(stderr=True).print(" · ".join([*parts, ending]), style="dim", highlight=False)
