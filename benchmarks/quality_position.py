"""What a model gains from text far before: bits per byte by place in the context, and with the far part cut away."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import quality_bits
from narrows.model.network import Network
from narrows.text.tokenizer import Tokenizer

SHORT_CONTEXT = 128
"""Tokens that are left before each where the far part is cut away; up to SHORT_STRIDE - 1 more, so never fewer."""

SHORT_STRIDE = 32

COUNTED = 256
"""Tokens at the end of a piece that are counted where the context's length is what differs."""


def buckets(length: int) -> list[tuple[int, int]]:
    """Ranges of places that cover 0 to `length`, the first of SHORT_CONTEXT, each later one as long as all before."""
    ends = [0, SHORT_CONTEXT]
    while ends[-1] < length:
        ends.append(2 * ends[-1])
    return [(start, min(end, length)) for start, end in itertools.pairwise(ends) if start < length]


def measure(
    network: Network,
    tokenizer: Tokenizer,
    pieces: Sequence[Any],
    *,
    short: bool,
    progress: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Bits per byte in each of `buckets`, over pieces of equal length (ids without BOS); EOS is read, not counted.

    Every token sees all of its piece before it; with `short`, SHORT_CONTEXT to SHORT_CONTEXT + SHORT_STRIDE - 1 tokens
    (all there are, where these are fewer).
    """
    length = len(pieces[0])
    context = min(length, SHORT_CONTEXT + SHORT_STRIDE) if short else length
    texts = [piece.tolist() for piece in pieces]
    found = quality_bits.nats(
        network, tokenizer, texts, context=context, stride=min(SHORT_STRIDE, context), progress=progress
    )
    tokens = np.stack(pieces)
    counted = torch.from_numpy(tokens != tokenizer.eos_id)
    values = torch.stack(found) * counted
    sizes = torch.tensor([[len(tokenizer.bytes_of(token)) for token in text] for text in texts]) * counted
    return [
        quality_bits.bits(values[:, start:end]) / max(1, int(sizes[:, start:end].sum()))
        for start, end in buckets(length)
    ]


def by_context(
    network: Network,
    tokenizer: Tokenizer,
    pieces: Sequence[Any],
    progress: Callable[[int], None] = lambda done: None,
) -> dict[int, float]:
    """Bits per byte of the last COUNTED tokens of every piece, by how many tokens before them the model is shown.

    The same tokens at every length, so that nothing but the context differs; EOS is read, not counted.
    """
    length = len(pieces[0])
    most = length - COUNTED
    shown = [*itertools.takewhile(lambda tokens: tokens < most, (SHORT_CONTEXT << n for n in range(40))), most]
    ends = np.stack([piece[-COUNTED:] for piece in pieces])
    counted = torch.from_numpy(ends != tokenizer.eos_id)
    sizes = torch.tensor([[len(tokenizer.bytes_of(token)) for token in end] for end in ends.tolist()]) * counted
    found = {}
    for done, before in enumerate(shown, start=1):
        texts = [piece[length - COUNTED - before :].tolist() for piece in pieces]
        window = before + COUNTED
        values = quality_bits.nats(network, tokenizer, texts, context=window, stride=window)
        last = torch.stack([value[-COUNTED:] for value in values]) * counted
        found[before] = quality_bits.bits(last) / max(1, int(sizes.sum()))
        progress(done)
    return found


def table(length: int, curves: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Rows of `buckets`, a column per curve."""
    rows = [
        [f"{start:,} to {end - 1:,}", *(values[number] for values in curves.values())]
        for number, (start, end) in enumerate(buckets(length))
    ]
    return {"columns": ["tokens before, bits per byte", *curves], "rows": rows}


def plot(path: Path, length: int, curves: Mapping[str, Sequence[float]]) -> None:
    """Draw the curves as steps over the place in the context, one doubling as wide as the other."""
    from matplotlib.figure import Figure

    ranges = buckets(length)
    # The first range begins at 0, which a logarithmic axis does not have.
    edges = [ranges[0][1] / 2, *(end for _, end in ranges)]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for label, values in curves.items():
        axes.stairs(values, edges, label=label, baseline=None, linewidth=2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(edges, ["0", *(f"{edge:,.0f}" for edge in edges[1:])])
    axes.set_xlabel("tokens before, in the same package")
    axes.set_ylabel("bits per byte, held-out packages")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(exist_ok=True)
    # Without the date and version that matplotlib would write, equal figures are equal files.
    figure.savefig(path, dpi=120, metadata={"Software": None})
