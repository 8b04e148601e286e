"""Pictures: which kinds are drawn, and an empty one to draw on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from narrows.errors import NarrowsError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS = (".png", ".svg", ".pdf")


def check_picture(file: Path) -> None:
    """UsageError for a kind of picture that is not drawn."""
    if file.suffix.lower() not in _KINDS:
        raise UsageError(f"{file} cannot be drawn; name a .png, .svg or .pdf file.")


def blank(width: float, height: float) -> Figure:
    """A figure of so many inches. NarrowsError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NarrowsError("a plot needs matplotlib, which is not installed; pip install matplotlib.") from None
    return Figure(figsize=(width, height), layout="constrained")
