"""Pictures of what tokens cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from narrows.economics.efficiency import Cost
from narrows.economics.picture import blank, check_picture


def plot_efficiency(curves: Mapping[str, Sequence[Cost]], file: Path) -> None:
    """Draw operations a token and bytes of history against the context, a line a model.

    NarrowsError where matplotlib is not installed, UsageError for a kind of picture that it does not draw. OSError.
    """
    check_picture(file)
    figure = blank(11, 4.5)
    work, kept = figure.subplots(1, 2)
    for name, costs in curves.items():
        contexts = [cost.context for cost in costs]
        work.plot(contexts, [float(cost.flops) / 1e9 for cost in costs], label=name)
        kept.plot(contexts, [cost.bytes / 1e9 for cost in costs], label=name)
    for axes, title in ((work, "GFLOPs a decoded token (FP8-equivalent)"), (kept, "GB of history a request")):
        axes.set_title(title)
        axes.set_xlabel("context, tokens")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        _thousands(axes)
        axes.legend()
    figure.savefig(file, dpi=120)


def _thousands(axes: Any) -> None:
    most = axes.dataLim.x1
    ticks = [most * part / 4 for part in range(5)]
    axes.set_xticks(ticks, [f"{tick / 1024:,.0f}K" for tick in ticks])
    axes.set_xlim(left=0)
