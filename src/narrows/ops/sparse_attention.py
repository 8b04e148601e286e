"""Attention over a sliding window, compressed entries and a sink, in one softmax."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from narrows.ops import native
from narrows.ops.dtypes import wide
from narrows.ops.pages import Pages
from narrows.ops.row_format import Plain
from narrows.ops.tiles import Run, Tiles


@dataclass(frozen=True)
class Window:
    """Row n attends to rows first[n] .. last[n] of `storage` [M, c]; at most `size` of them."""

    storage: Tensor
    first: Tensor
    last: Tensor
    size: int


@dataclass(frozen=True)
class Entries:
    """Row n may see the entries below visible[n] (`most` is the largest of these) and, if there is a selection,
    attends to those named in selected[n] (int64 [N, k], -1 for none)."""

    pages: Pages
    visible: Tensor
    most: int
    selected: Tensor | None


# Up to this many times the selection's size, masking all entries of a tile is cheaper than gathering per row, where a
# tile has several.
_DENSE_UP_TO = 8


def sparse_attention(
    q: Tensor, window: Window, entries: Entries | None, sink: Tensor, tiles: Tiles, single_rows: Tiles
) -> Tensor:
    """softmax over [window, entries, sink]; keys are the values; the sink has no value (R §2.3).

    q [N, H, c], sink [H] -> [N, H, c] in q's dtype; scores and sums are float32 at least. `tiles` cuts the rows for
    keys shared by a tile, `single_rows` one row a tile, for keys gathered per row. The gradient computes the
    weights again, so that nothing is kept but the arguments; where it is wanted, segments share no keys.
    """
    storage = None if entries is None else entries.pages.storage
    shapes = replace(window, storage=_shape_of(window.storage))
    entry_shapes = entries and replace(entries, pages=replace(entries.pages, storage=_shape_of(entries.pages.storage)))
    scene = _Scene(shapes, entry_shapes, tiles, single_rows)
    result: Tensor = _SparseAttention.apply(q, window.storage, storage, sink, scene)
    return result


@dataclass(frozen=True)
class _Keys:
    """What the tiles of a group attend to: rows of the window's storage [T, W] and of the entries' [T, E], and
    `blocked` [T, B, W + E + 1]: 0, or -inf where a row does not see a key. The last key is the sink's."""

    window: Tensor
    entries: Tensor | None
    blocked: Tensor
    pages: Pages | None

    def gather(self, window: Tensor, entries: Tensor | None, dtype: torch.dtype) -> Tensor:
        """[T, W + E + 1, c]; the sink's key is 0, and so is its value."""
        keys = [F.embedding(self.window, window).to(dtype)]
        if self.entries is not None and entries is not None and self.pages is not None:
            keys.append(self.pages.read(entries, self.entries, dtype))
        keys.append(window.new_zeros(self.window.shape[0], 1, window.shape[1], dtype=dtype))
        # A key that no row of its tile sees may be another sequence's: what is not a number there must stay there.
        unseen = (self.blocked < 0).all(dim=1)
        return torch.cat(keys, dim=1).masked_fill_(unseen[:, :, None], 0.0)


_Maybe = Tensor | None
_Arguments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, _Maybe, _Maybe, int, _Maybe, _Maybe, Tensor]


@dataclass(frozen=True)
class _Scene:
    """Who attends to what; the same in forward and backward. Storages are shapes here: data are the function's own."""

    window: Window
    entries: Entries | None
    tiles: Tiles
    single_rows: Tiles

    @property
    def per_row(self) -> bool:
        """Whether keys are gathered for every row; kernels find out tile by tile what a tile's rows share."""
        entries = self.entries
        if entries is None or entries.selected is None:
            return False
        alone = all(run.rows.shape[1] == 1 for run in self.tiles.runs)  # nobody to share all entries with: decoding
        return alone or entries.most > _DENSE_UP_TO * entries.selected.shape[1]

    @property
    def cut(self) -> Tiles:
        return self.single_rows if self.per_row else self.tiles

    def native_serves(self, q: Tensor, window: Tensor, entries: Tensor | None, *others: Tensor) -> bool:
        """Kernels read entries where they are stored: a cache that holds anything but float32 would have to be
        converted as a whole."""
        cached = None if self.entries is None else self.entries.pages.format
        if cached is not None and cached != Plain(q.shape[-1], torch.float32):
            return False
        return native.serves(q, window, entries, *others)

    def arguments(self, q: Tensor, window: Tensor, entries: Tensor | None, sink: Tensor) -> _Arguments:
        """What both kernels take, but for results and the gradient of the output."""
        pages = None if self.entries is None else self.entries.pages
        visible = None if self.entries is None else self.entries.visible.contiguous()
        selected = None if self.entries is None else self.entries.selected
        return (
            native.plain(q),
            native.plain(window),
            self.window.first.contiguous(),
            self.window.last.contiguous(),
            self.tiles.spans,
            None if entries is None else native.plain(entries),
            None if pages is None else pages.table.contiguous(),
            1 if pages is None else pages.block,
            visible,
            None if selected is None else selected.contiguous(),
            native.plain(sink),
        )

    def groups(self, shape: torch.Size, dtype: torch.dtype) -> Iterator[tuple[Run, _Keys]]:
        """Groups of tiles within the element budget, and their keys, for queries of `shape` [N, H, c]."""
        _, heads, dim = shape
        selected = None if self.entries is None else self.entries.selected
        extra = 1
        if self.entries is not None:
            extra += selected.shape[1] if self.per_row and selected is not None else self.entries.most
        for run in self.cut.groups(lambda size: (self._width(size) + extra) * max(size * heads, dim)):
            yield run, self._keys(run, dtype)

    def _width(self, size: int) -> int:
        """Window keys of a tile of `size` rows."""
        return min(self.window.size + size - 1, self.window.storage.shape[0])

    def _keys(self, run: Run, dtype: torch.dtype) -> _Keys:
        rows, window, entries = run.rows, self.window, self.entries
        width = self._width(rows.shape[1])
        start = window.first[rows[:, 0]].clamp(max=window.storage.shape[0] - width)
        offset = torch.arange(width, device=rows.device)
        first, last = (bound[rows] - start[:, None] for bound in (window.first, window.last))
        # What is negative is blocked: numbers cost less than a bool for every score.
        room = [torch.minimum(offset.to(dtype) - first.to(dtype)[..., None], last.to(dtype)[..., None] - offset)]
        entry_rows = None
        if entries is not None:
            if self.per_row and entries.selected is not None:
                chosen = entries.selected[rows[:, 0]]
                entry_rows = entries.pages.rows(run.segment[:, None], chosen.clamp(min=0))
                room.append(chosen.to(dtype)[:, None])
            else:
                number = torch.arange(entries.most, device=rows.device)
                entry_rows = entries.pages.rows(run.segment[:, None], number)
                room.append((entries.visible[rows] - 1).to(dtype)[..., None] - number)
                if entries.selected is not None:
                    named = _named(entries.selected[rows], entries.most)
                    room[1] = torch.minimum(room[1], named.to(dtype).sub_(1))
        room.append(room[0].new_zeros(*rows.shape, 1))
        # 0 stays 0, the rest overflows to -inf.
        largest = torch.finfo(dtype).max
        blocked = torch.cat(room, dim=-1).clamp_(max=0).mul_(largest).mul_(largest)
        return _Keys(start[:, None] + offset, entry_rows, blocked, None if entries is None else entries.pages)


class _SparseAttention(torch.autograd.Function):
    """Scores are by far the largest tensor here: they exist for one group of tiles at a time, in backward anew."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, window: Tensor, entries: Tensor | None, sink: Tensor, scene: _Scene) -> Tensor:
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(q, window, entries, sink)
            ctx.scene = scene
        if scene.native_serves(q, window, entries, sink):
            result = native.result_like(q)
            native.kernels.attention(*scene.arguments(q, window, entries, sink), result)
            return result.to(q.dtype)
        out = []
        for run, plan in scene.groups(q.shape, wide(q.dtype)):
            queries, keys = _queries(q, run), plan.gather(window, entries, wide(q.dtype))
            values = torch.bmm(_weights(queries, keys, plan.blocked, sink), keys)
            out.append(values.view(*run.rows.shape, *q.shape[1:]).to(q.dtype))
        return scene.cut.untile(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor, None]:
        q, window, entries, sink = ctx.saved_tensors
        scene: _Scene = ctx.scene
        dtype = wide(q.dtype)
        if scene.native_serves(q, window, entries, sink, gradient):
            by_q, by_window, by_sink = map(native.result_like, (q, window, sink))
            by_entries = None if entries is None else native.result_like(entries)
            native.kernels.attention_gradient(
                *scene.arguments(q, window, entries, sink), native.plain(gradient), by_q, by_window, by_entries, by_sink
            )
            return _as_given(by_q, by_window, by_entries, by_sink, ctx.saved_tensors)
        tiled = []
        by_window = torch.zeros_like(window, dtype=dtype)
        by_entries = None if entries is None else torch.zeros_like(entries, dtype=dtype)
        by_sink = torch.zeros_like(sink, dtype=dtype)
        for run, plan in scene.groups(q.shape, dtype):
            queries, keys = _queries(q, run), plan.gather(window, entries, dtype)
            weights = _weights(queries, keys, plan.blocked, sink)
            upper = _tiled(gradient, run)
            upper.view(*run.rows.shape, -1).mul_(run.real[:, :, None])
            by_scores = torch.bmm(upper, keys.mT)
            by_scores.sub_(torch.linalg.vecdot(by_scores, weights)[..., None]).mul_(weights)
            by_keys = torch.bmm(weights.mT, upper).baddbmm_(by_scores.mT, queries)
            tiled.append(torch.bmm(by_scores, keys).mul_(q.shape[-1] ** -0.5).view(*run.rows.shape, *q.shape[1:]))
            by_sink += by_scores[..., -1].view(-1, sink.shape[0]).sum(0)
            width = plan.window.shape[1]
            by_window.index_add_(0, plan.window.flatten(), by_keys[:, :width].flatten(0, 1))
            if by_entries is not None and plan.entries is not None:
                by_entries.index_add_(0, plan.entries.flatten(), by_keys[:, width:-1].flatten(0, 1))
        by_q = scene.cut.untile(tiled)
        return _as_given(by_q, by_window, by_entries, by_sink, ctx.saved_tensors)


def _as_given(
    by_q: Tensor, by_window: Tensor, by_entries: Tensor | None, by_sink: Tensor, given: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, None]:
    """The gradients in the dtypes of what they belong to."""
    q, window, entries, sink = given
    return (
        by_q.to(q.dtype),
        by_window.to(window.dtype),
        None if by_entries is None else by_entries.to(entries.dtype),
        by_sink.to(sink.dtype),
        None,
    )


def _weights(queries: Tensor, keys: Tensor, blocked: Tensor, sink: Tensor) -> Tensor:
    """queries [T, B·H, c], keys [T, K, c], the last of them the sink's, blocked [T, B, K] -> softmax [T, B·H, K]."""
    weights = torch.bmm(queries, keys.mT)
    scores = weights.view(*blocked.shape[:2], -1, blocked.shape[-1])
    scores += blocked[:, :, None]
    scores[..., -1] = sink
    return torch.softmax(weights, dim=-1, out=weights)


def _queries(q: Tensor, run: Run) -> Tensor:
    return _tiled(q, run).mul_(q.shape[-1] ** -0.5)


def _tiled(rows: Tensor, run: Run) -> Tensor:
    """Rows [N, H, c] of a run's tiles: a new tensor [T, B·H, c], float32 at least."""
    tiled = F.embedding(run.rows, rows.flatten(1)).to(wide(rows.dtype))
    return tiled.view(run.rows.shape[0], -1, rows.shape[-1])


def _shape_of(storage: Tensor) -> Tensor:
    return torch.empty_like(storage, device="meta")


def _named(selected: Tensor, entries: int) -> Tensor:
    """bool [..., entries]: which entries `selected` [..., k] names; -1 names none."""
    mask = torch.zeros((*selected.shape[:-1], entries + 1), dtype=torch.bool, device=selected.device)
    return mask.scatter_(-1, torch.where(selected < 0, entries, selected), True)[..., :entries]
