"""Segments in one step, for tests of attention: what it is called with, and what it gives."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from narrows.ops.pages import Pages
from narrows.ops.row_format import RowFormat
from narrows.ops.sparse_attention import Entries, Window, sparse_attention
from narrows.ops.tiles import Tiles
from tests.ops.computed import Outcome, normal


@dataclass(frozen=True)
class Segment:
    """Rows of one sequence, the window's rows that it had before, and its entries."""

    q: Tensor
    kv: Tensor
    entries: Tensor
    visible: Tensor
    selected: Tensor
    upper: Tensor

    @property
    def rows(self) -> int:
        return self.q.shape[0]

    @property
    def past(self) -> int:
        return self.kv.shape[0] - self.rows

    def part(self, begin: int, end: int) -> Segment:
        """Some of its rows, those before them as its past."""
        rows = slice(begin, end)
        return Segment(
            self.q[rows],
            self.kv[: self.past + end],
            self.entries,
            self.visible[rows],
            self.selected[rows],
            self.upper[rows],
        )


@dataclass(frozen=True)
class Scene:
    """Segments in one step. Their entries lie in blocks, the last segment's first."""

    segments: list[Segment]
    window: int
    block: int
    select: bool
    sink: Tensor
    tile: int = 64

    def attend(self, q: Tensor, kv: Tensor, storage: Tensor, sink: Tensor, format: RowFormat | None = None) -> Tensor:
        """q [N, H, c], kv [M, c], storage [E, c] -> [N, H, c]."""
        window, most, entries = Window(kv, self.first, self.last, self.window), int(self.visible.max()), None
        if most:
            pages = Pages(storage, self.table * self.block, self.block, format)
            entries = Entries(pages, self.visible, most, self.selected)
        return sparse_attention(q, window, entries, sink, self.cut(self.tile), self.cut(1))

    def cut(self, size: int) -> Tiles:
        return Tiles.cut([segment.rows for segment in self.segments], size, torch.device("cpu"))

    @property
    def last(self) -> Tensor:
        """Every row's own row of the window, [N]."""
        parts, total = [], 0
        for segment in self.segments:
            parts.append(total + segment.past + torch.arange(segment.rows))
            total += segment.kv.shape[0]
        return torch.cat(parts)

    @property
    def first(self) -> Tensor:
        """The first that it sees, [N]."""
        kept = torch.tensor([segment.kv.shape[0] for segment in self.segments])
        rows = torch.tensor([segment.rows for segment in self.segments])
        return torch.maximum(self.last - self.window + 1, (kept.cumsum(0) - kept).repeat_interleave(rows))

    @property
    def visible(self) -> Tensor:
        return torch.cat([segment.visible for segment in self.segments])

    @property
    def selected(self) -> Tensor | None:
        return torch.cat([segment.selected for segment in self.segments]) if self.select else None

    @property
    def table(self) -> Tensor:
        """The numbers of every segment's blocks, [S, n]."""
        return torch.arange(len(self.segments) * self._blocks).flip(0).view(len(self.segments), -1)

    def inputs(self) -> list[Tensor]:
        """q, kv, storage and sink."""
        storage = [
            torch.cat((segment.entries, segment.entries.new_zeros(self._held - len(segment.entries), self.sink_dim)))
            .view(self._blocks, self.block, -1)
            .flip(0)
            .flatten(0, 1)
            for segment in reversed(self.segments)
        ]
        return [
            torch.cat([segment.q for segment in self.segments]),
            torch.cat([segment.kv for segment in self.segments]),
            torch.cat(storage),
            self.sink,
        ]

    def outcome(self, dtype: torch.dtype = torch.float32) -> Outcome:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in self.inputs()]
        result = self.attend(*leaves)
        upper = torch.cat([segment.upper for segment in self.segments]).to(dtype)
        gradients = torch.autograd.grad(result, leaves, upper, allow_unused=True, materialize_grads=True)
        return [result.detach()], list(gradients)

    def alone(self, number: int) -> Scene:
        """One segment, its entries in as many blocks as it needs."""
        return replace(self, segments=[self.segments[number]])

    def of_segment(self, outcome: Outcome, number: int) -> list[Tensor]:
        """What one segment has of results and gradients, the sinks' aside; its entries in their order."""
        (result,), (by_q, by_kv, by_storage, _) = outcome
        parts = []
        for tensor, sizes in (
            (result, [segment.rows for segment in self.segments]),
            (by_q, [segment.rows for segment in self.segments]),
            (by_kv, [segment.kv.shape[0] for segment in self.segments]),
        ):
            parts.append(tensor.split(sizes)[number])
        blocks = by_storage.view(len(self.segments), self._blocks, self.block, -1)[-1 - number].flip(0)
        return [*parts, blocks.flatten(0, 1)[: len(self.segments[number].entries)]]

    @property
    def sink_dim(self) -> int:
        return self.segments[0].q.shape[2]

    @property
    def _blocks(self) -> int:
        return max(1, *(-(-len(segment.entries) // self.block) for segment in self.segments), 0)

    @property
    def _held(self) -> int:
        return self._blocks * self.block


@st.composite
def scenes(draw: st.DrawFn, segments: int = 3, dims: tuple[int, ...] = tuple(range(1, 71))) -> Scene:
    """Entries as in training, one more visible every `ratio` rows; many, few or none."""
    normals = normal(draw(st.integers(0, 2**31)))
    heads, dim = draw(st.sampled_from([1, 2, 3, 4, 5, 17, 70])), draw(st.sampled_from(dims))
    window, ratio, chosen = draw(st.integers(1, 150)), draw(st.sampled_from([1, 2, 4, 999])), draw(st.integers(1, 20))
    made = []
    for _ in range(draw(st.integers(1, segments))):
        rows, past = draw(st.sampled_from([1, 3, 16, 64, 65, 150])), draw(st.sampled_from([0, 1, 40]))
        position = past + torch.arange(rows)
        visible = (position + 1) // ratio
        count = int(visible.max())
        scores = normals(rows, count).masked_fill(torch.arange(count) >= visible[:, None], -math.inf)
        best = scores.topk(min(chosen, count), dim=1)
        selected = torch.where(best.values > -math.inf, best.indices, -1)
        selected = torch.cat((selected, torch.full((rows, chosen - selected.shape[1]), -1)), dim=1)
        upper = normals(rows, heads, dim)
        made.append(
            Segment(
                normals(rows, heads, dim),
                normals(min(past, window - 1) + rows, dim),
                normals(count, dim),
                visible,
                selected,
                upper,
            )
        )
    return Scene(made, window, draw(st.integers(1, 40)), draw(st.booleans()), normals(heads))
