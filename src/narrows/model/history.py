"""Where a forward step finds the past. History is asked, never reached into.

It keeps, per layer, *recent rows* (the last few rows of window KV and of the compressors' inputs) and *entries*
(compressed KV and index keys). What a layer reads is what the history stores, in prefill as in decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from narrows.model.config import LayerKind, ModelConfig
from narrows.model.precision import Precision, cache_formats
from narrows.model.segments import Growth, PackedRows, Recent, Segment, tail_rows
from narrows.ops.dtypes import wide
from narrows.ops.pages import Pages
from narrows.ops.row_format import Plain, RowFormat

Key = tuple[int, str]
"""Layer number, and what of that layer: "window", "compressor", "indexer" (and "entries", "keys")."""


class History(Protocol):
    """What a forward step asks for."""

    def begin(self, segments: Sequence[Segment]) -> None:
        """Check that a step's segments continue what is stored; ValueError if not."""

    def extend_recent(self, layer: int, name: str, rows: Tensor, recent: Recent, step: PackedRows) -> Tensor:
        """Store `rows` [N, f]; return [recent.total, f]: every segment's kept past rows, then its new ones."""

    def extend_entries(self, layer: int, name: str, new: Tensor, growth: Growth, step: PackedRows) -> Pages:
        """Store the entries [n, f] that the step adds; return all entries."""

    def commit(self, segments: Sequence[Segment]) -> None:
        """All layers are done: the step's tokens now belong to the past."""


@dataclass(frozen=True)
class RecentRows:
    """Of one sequence and layer: at most `rows` past rows."""

    rows: int
    format: RowFormat
    ratio: int | None = None
    """Of a compressor's inputs, the tokens that make an entry; None for the window."""
    overlap: bool = False

    def needed(self, past: int) -> int:
        """How many of the last rows a sequence of `past` tokens still needs."""
        return min(past, self.rows) if self.ratio is None else tail_rows(past, self.ratio, self.overlap)

    def capacity(self, rollback: int) -> int:
        """Rows that a ring must hold for `rollback` tokens to be taken back at once. The one beyond is for a step of
        one row, which may so be stored before the past is read."""
        return self.rows + rollback + 1


@dataclass(frozen=True)
class EntryRows:
    """Of one sequence and layer: an entry for every `ratio` tokens."""

    ratio: int
    format: RowFormat


@dataclass(frozen=True)
class Layout:
    """What a history keeps of every sequence, and how."""

    recent: dict[Key, RecentRows]
    entries: dict[Key, EntryRows]

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        layer_types: tuple[LayerKind, ...] | None = None,
        *,
        dtype: torch.dtype,
        precision: Precision | None = None,
    ) -> Layout:
        """For layers of these kinds; the network's own if none are given. `precision`: the cache's; None: that of
        `dtype`, the network's. ValueError for one that the config's widths do not allow."""
        entry, key = cache_formats(config, dtype, precision)
        exact = wide(dtype)
        recent: dict[Key, RecentRows] = {}
        entries: dict[Key, EntryRows] = {}
        for layer, kind in enumerate(config.layer_types if layer_types is None else layer_types):
            recent[layer, "window"] = RecentRows(config.sliding_window - 1, entry)
            if kind is LayerKind.HCA:
                ratio = config.hca_ratio
                recent[layer, "compressor"] = RecentRows(ratio - 1, Plain(2 * config.head_dim, exact), ratio)
                entries[layer, "compressor"] = EntryRows(ratio, entry)
            elif kind is LayerKind.CSA:
                ratio = config.csa_ratio
                for name, features, stored in (
                    ("compressor", config.head_dim, entry),
                    ("indexer", config.index_head_dim, key),
                ):
                    recent[layer, name] = RecentRows(2 * ratio - 1, Plain(4 * features, exact), ratio, overlap=True)
                    entries[layer, name] = EntryRows(ratio, stored)
        return cls(recent, entries)


class BatchHistory:
    """No past, and nothing kept: the history of a training batch. It differentiates."""

    def begin(self, segments: Sequence[Segment]) -> None:
        if any(segment.past for segment in segments):
            raise ValueError("a segment with a past needs a history")

    def extend_recent(self, layer: int, name: str, rows: Tensor, recent: Recent, step: PackedRows) -> Tensor:
        return rows

    def extend_entries(self, layer: int, name: str, new: Tensor, growth: Growth, step: PackedRows) -> Pages:
        return Pages(new, growth.first_new[:, None], max(growth.most, 1))

    def commit(self, segments: Sequence[Segment]) -> None:
        pass


@dataclass(frozen=True)
class Snapshot:
    """A slot's history at one moment; shares no memory with it."""

    length: int
    undoable: int
    recent: dict[Key, Tensor]
    entries: dict[Key, Tensor]


def ring_rows(ring: Tensor, end: int, count: int) -> list[Tensor]:
    """Of a ring [capacity, width], the rows of the last `count` tokens before token `end`: views, one or two, the
    oldest rows first."""
    start = (end - count) % ring.shape[0]
    before_the_seam = ring[start : start + count]
    behind = count - before_the_seam.shape[0]
    return [before_the_seam, ring[:behind]] if behind else [before_the_seam]


def fill_ring(ring: Tensor, end: int, rows: Tensor) -> None:
    """Store the rows of the last tokens before token `end`, as many of the last as the ring [capacity, width] holds."""
    if rows.shape[0] > ring.shape[0]:
        rows = rows[-ring.shape[0] :]
    before_the_seam, *behind = ring_rows(ring, end, rows.shape[0])
    if behind:
        behind[0].copy_(rows[before_the_seam.shape[0] :])
        rows = rows[: before_the_seam.shape[0]]
    before_the_seam.copy_(rows)


class SlotHistory:
    """What histories with a slot a sequence share: the slots' lengths, and their recent rows.

    Public, for what computes a step in the same memory:

    - `layout`: what is kept of every layer, and in which format.
    - `recent[key]` [slots, capacity, width]: a ring per slot. The row of token p lies at p % capacity; the capacity is
      `layout.recent[key].capacity(rollback)`. Rows of other tokens than those still needed mean nothing.
    """

    def __init__(self, layout: Layout, slots: int, device: torch.device | str, rollback: int) -> None:
        """`rollback`: how many tokens `roll_back` may take back at once."""
        self.layout, self.slots, self.rollback = layout, slots, rollback
        self._lengths = [0] * slots
        self._undoable = [0] * slots
        self._unfinished: set[int] = set()
        self.recent = {
            key: torch.zeros(slots, kept.capacity(rollback), kept.format.width, dtype=kept.format.dtype, device=device)
            for key, kept in layout.recent.items()
        }

    def begin(self, segments: Sequence[Segment]) -> None:
        slots = [segment.slot for segment in segments]
        if len(set(slots)) != len(slots):
            raise ValueError("two segments of one step share a slot")
        for segment in segments:
            if segment.past != self.length(segment.slot):
                raise ValueError(
                    f"the segment says {segment.past} past tokens, but slot {segment.slot} holds "
                    f"{self.length(segment.slot)}"
                )
        # From here layer after layer moves on: a slot whose step ends before `commit` holds neither state.
        self._unfinished.update(slots)

    def withdraw(self, segments: Sequence[Segment]) -> None:
        """The step that has begun came to nothing before it stored anything: its slots hold what they held."""
        self._unfinished.difference_update(segment.slot for segment in segments)

    def extend_recent(self, layer: int, name: str, rows: Tensor, recent: Recent, step: PackedRows) -> Tensor:
        slots, stored = self.recent[layer, name], self.layout.recent[layer, name].format
        rings = [slots[segment.slot] for segment in step.segments]
        new_rows = stored.encode(rows.detach()).split([segment.rows for segment in step.segments])
        parts = []
        for segment, ring, kept, new in zip(step.segments, rings, recent.kept, new_rows, strict=True):
            parts += [*ring_rows(ring, segment.past, kept), new]
        together = torch.cat(parts)  # before anything is stored: new rows may take the place of those just read
        for segment, ring, new in zip(step.segments, rings, new_rows, strict=True):
            fill_ring(ring, segment.past + segment.rows, new)
        return stored.decode(together, rows.dtype)

    def commit(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            self._unfinished.discard(segment.slot)
            self._lengths[segment.slot] += segment.rows
            self._undoable[segment.slot] = min(self._undoable[segment.slot] + segment.rows, self.rollback)

    def length(self, slot: int = 0) -> int:
        """Tokens that the slot holds. ValueError, as from all that follows, when a step in the slot did not end."""
        self._check(slot)
        if slot in self._unfinished:
            raise ValueError(f"a step in slot {slot} failed before its end; reset or restore the slot")
        return self._lengths[slot]

    def segment(self, rows: int, slot: int = 0) -> Segment:
        """The segment that continues this slot by `rows` tokens."""
        return Segment(rows, self.length(slot), slot)

    def roll_back(self, slot: int, tokens: int) -> None:
        """Take the slot's last `tokens` tokens back; ValueError beyond what is still kept for it."""
        length = self.length(slot)
        if not 0 <= tokens <= self._undoable[slot]:
            raise ValueError(f"cannot roll back {tokens} of {length} tokens; {self._undoable[slot]} can be taken back")
        self._lengths[slot] = length - tokens
        self._undoable[slot] -= tokens

    def _check(self, slot: int) -> None:
        if not 0 <= slot < self.slots:
            raise ValueError(f"there is no slot {slot}; this history has {self.slots}")


class ContiguousHistory(SlotHistory):
    """A slot a sequence; each slot's entries in one growing piece. Simple, for one or a few sequences, without grad.

    `config`, or the layout itself for a network of another kind, says what is kept; `rollback`: how many tokens
    `roll_back` may take back at once.
    """

    def __init__(
        self,
        config: ModelConfig | Layout,
        *,
        slots: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        rollback: int = 0,
        precision: Precision | None = None,
    ) -> None:
        layout = config if isinstance(config, Layout) else Layout.of(config, dtype=dtype, precision=precision)
        super().__init__(layout, slots, device, rollback)
        self._entries = {
            key: torch.zeros(slots, 16, kept.format.width, dtype=kept.format.dtype, device=device)
            for key, kept in layout.entries.items()
        }
        self._ratio = {key: kept.ratio for key, kept in layout.entries.items()}

    # -- what a step asks -----------------------------------------------------------------------------------------

    def extend_entries(self, layer: int, name: str, new: Tensor, growth: Growth, step: PackedRows) -> Pages:
        pool, stored = self._entries[layer, name], self.layout.entries[layer, name].format
        new = stored.encode(new.detach())
        if growth.most > pool.shape[1]:
            grown = pool.new_zeros(self.slots, max(growth.most, 2 * pool.shape[1]), pool.shape[2])
            grown[:, : pool.shape[1]] = pool
            self._entries[layer, name] = pool = grown
        start = 0
        for segment, before, count in zip(step.segments, growth.before, growth.new, strict=True):
            pool[segment.slot, before : before + count] = new[start : start + count]
            start += count
        return Pages(pool.flatten(0, 1), step.slots[:, None] * pool.shape[1], pool.shape[1], stored)

    # -- what its owner asks --------------------------------------------------------------------------------------

    def reset(self, slot: int = 0) -> None:
        """Forget everything in the slot."""
        self._check(slot)
        self._unfinished.discard(slot)
        self._lengths[slot] = self._undoable[slot] = 0

    def snapshot(self, slot: int = 0) -> Snapshot:
        """A copy of the slot's history."""
        length, undoable = self.length(slot), self._undoable[slot]
        recent = {}
        for key, rings in self.recent.items():
            count = min(length, self.layout.recent[key].rows + undoable)
            recent[key] = torch.cat(ring_rows(rings[slot], length, count))
        return Snapshot(
            length,
            undoable,
            recent,
            {key: pool[slot, : length // self._ratio[key]].clone() for key, pool in self._entries.items()},
        )

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """Make the slot what it was when `snapshot` was taken."""
        self._check(slot)
        for key, rows in snapshot.recent.items():
            fill_ring(self.recent[key][slot], snapshot.length, rows)
        for key, entries in snapshot.entries.items():
            pool = self._entries[key]
            if entries.shape[0] > pool.shape[1]:
                grown = pool.new_zeros(self.slots, entries.shape[0], pool.shape[2])
                grown[:, : pool.shape[1]] = pool
                self._entries[key] = pool = grown
            pool[slot, : entries.shape[0]] = entries
        self._lengths[slot], self._undoable[slot] = snapshot.length, snapshot.undoable
        self._unfinished.discard(slot)

    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(t.numel() * t.element_size() for t in (*self.recent.values(), *self._entries.values()))
