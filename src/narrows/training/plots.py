"""Pictures of a run: its losses, and how evenly its experts are used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def write_plots(directory: Path) -> None:
    """Draw directory/log.jsonl as loss.png and experts.png beside it; nothing where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    records = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    steps = [record for record in records if record.get("loss") is not None]
    if not steps:
        return
    _losses(Figure, steps, records).savefig(directory / "loss.png", dpi=120)
    _experts(Figure, steps).savefig(directory / "experts.png", dpi=120)


def _losses(figure_type: Any, steps: list[dict[str, Any]], records: list[dict[str, Any]]) -> Any:
    """Training losses in nats a token, and bits per byte on held-out text on an axis of its own."""
    figure = figure_type(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    tokens = np.cumsum([record["rows"] for record in steps]) / 1e6
    for key, label in (("loss", "next token"), ("mtp_loss", "MTP: the token after")):
        values = np.array([record[key] for record in steps], dtype=float)
        there = values != 0  # a stage may leave the MTP block alone
        if there.any():
            (line,) = axes.plot(tokens[there], values[there], linewidth=0.6, alpha=0.35)
            axes.plot(tokens[there], _smooth(values[there]), color=line.get_color(), label=label)
    axes.set_xlabel("million tokens")
    axes.set_ylabel("training loss, nats per token")
    at_step = {record["step"]: total for record, total in zip(steps, tokens, strict=True)}
    measured = [
        (at_step.get(record["step"], tokens[-1]), record["held_out_bits_per_byte"])
        for record in records
        if record.get("held_out_bits_per_byte") is not None
    ]
    if measured:
        other = axes.twinx()
        other.plot(*zip(*measured, strict=True), "o-", color="black", markersize=4, label="held out")
        other.set_ylabel("held-out bits per byte (dots)")
    axes.legend(loc="upper right")
    axes.grid(alpha=0.3)
    return figure


def _experts(figure_type: Any, steps: list[dict[str, Any]]) -> Any:
    """Each expert's share of its layer's tokens, times the experts: 1 is even. One row of pixels an expert."""
    figure = figure_type(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    rows = [np.array(record["loads"], dtype=float) for record in steps if record.get("loads")]
    if rows:
        loads = np.stack(rows)  # [steps, layers, experts]
        totals = loads.sum(-1, keepdims=True)
        shares = np.divide(loads * loads.shape[-1], totals, out=np.full_like(loads, np.nan), where=totals > 0)
        picture = axes.imshow(
            shares.reshape(len(rows), -1).T, aspect="auto", vmin=0, vmax=2, cmap="RdBu_r", interpolation="nearest"
        )
        figure.colorbar(picture, ax=axes, label="load, 1 = even")
        for layer in range(1, loads.shape[1]):
            axes.axhline(layer * loads.shape[2] - 0.5, color="black", linewidth=0.8)
        axes.set_yticks((np.arange(loads.shape[1]) + 0.5) * loads.shape[2] - 0.5)
        axes.set_yticklabels([f"router {layer + 1}" for layer in range(loads.shape[1])])
    axes.set_xlabel("step")
    return figure


def _smooth(values: Any) -> Any:
    """Running mean over a fiftieth of the run."""
    width = max(1, len(values) // 50)
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")
