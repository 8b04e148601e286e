"""The engine's history: a state per running sequence and entries in blocks, all of a size fixed beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from narrows.model.config import LayerKind, ModelConfig
from narrows.model.history import Key, Layout
from narrows.model.segments import Recent, Segment, Step, Windows
from narrows.ops.dtypes import wide
from narrows.ops.pages import Pages


@dataclass(frozen=True)
class State:
    """What a sequence of `length` tokens needs beside its blocks to go on: the last rows of window and compressors.

    Shares no memory with the history. At a block's end it is small: the compressors' windows are empty there, but for
    the rows that CSA's next entry mixes in.
    """

    length: int
    recent: dict[Key, Tensor]

    @property
    def bytes(self) -> int:
        return sum(rows.numel() * rows.element_size() for rows in self.recent.values())


@dataclass(frozen=True)
class Contents:
    """Copies of some blocks' entries: per kind [blocks, entries, features]."""

    entries: dict[Key, Tensor]

    @property
    def bytes(self) -> int:
        return sum(rows.numel() * rows.element_size() for rows in self.entries.values())

    def block(self, number: int) -> Contents:
        """One of the blocks."""
        return Contents({key: rows[number : number + 1] for key, rows in self.entries.items()})


class PagedHistory:
    """History of up to `slots` sequences in `blocks` blocks of `block_tokens` tokens each (spec: lcm of the ratios).

    A sequence's owner binds its blocks to a slot, in the order of its tokens, before a step needs them. Which block is
    whose is decided elsewhere (BlockPool): blocks may be bound to several slots as long as nobody writes to them,
    which nobody does once they are full. `rollback`: how many tokens `roll_back` may take back at once.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        slots: int,
        blocks: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        rollback: int = 0,
        layer_types: tuple[LayerKind, ...] | None = None,
    ) -> None:
        self._layout = Layout.of(config, layer_types)
        self.block_tokens = block_tokens(config)
        self.slots, self.blocks, self._rollback = slots, blocks, rollback
        self._device = torch.device(device)
        self._lengths = [0] * slots
        self._undoable = [0] * slots
        self._unfinished: set[int] = set()
        self._tables: list[list[int]] = [[] for _ in range(slots)]
        self._recent = {
            key: torch.zeros(
                slots, kept.rows + rollback, kept.features, dtype=wide(dtype) if kept.exact else dtype, device=device
            )
            for key, kept in self._layout.recent.items()
        }
        self._entries = {
            key: _untouched(blocks, self.block_tokens // kept.ratio, kept.features, dtype=dtype, device=self._device)
            for key, kept in self._layout.entries.items()
        }

    # -- what a step asks -----------------------------------------------------------------------------------------

    def begin(self, step: Step) -> None:
        """ValueError unless every segment continues what its slot holds, and has the blocks for it."""
        slots = [segment.slot for segment in step.segments]
        if len(set(slots)) != len(slots):
            raise ValueError("two segments of one step share a slot")
        for segment in step.segments:
            if segment.past != self.length(segment.slot):
                raise ValueError(
                    f"the segment says {segment.past} past tokens, but slot {segment.slot} holds "
                    f"{self.length(segment.slot)}"
                )
            if self._layout.entries and self.blocks_for(segment.past + segment.rows) > len(self._tables[segment.slot]):
                raise ValueError(
                    f"slot {segment.slot} has {len(self._tables[segment.slot])} blocks, too few for "
                    f"{segment.past + segment.rows} tokens"
                )
        self._unfinished.update(slots)
        self._pages: dict[int, Tensor] = {}

    def extend_recent(self, layer: int, name: str, rows: Tensor, recent: Recent, step: Step) -> Tensor:
        buffer = self._recent[layer, name]
        capacity = buffer.shape[1]
        rows = rows.detach().to(buffer.dtype)
        parts = []
        new_rows = rows.split([segment.rows for segment in step.segments])
        for segment, kept, new in zip(step.segments, recent.kept, new_rows, strict=True):
            with_past = torch.cat((buffer[segment.slot], new))
            parts.append(with_past[capacity - kept :])
            buffer[segment.slot] = with_past[segment.rows :]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def extend_entries(self, layer: int, name: str, new: Tensor, windows: Windows, step: Step) -> Pages:
        pool = self._entries[layer, name]
        each = pool.shape[1]
        storage = pool.view(-1, pool.shape[2])
        rows = [
            self._tables[segment.slot][entry // each] * each + entry % each
            for segment, before, count in zip(step.segments, windows.before, windows.new, strict=True)
            for entry in range(before, before + count)
        ]
        if rows:
            storage[torch.tensor(rows, device=self._device)] = new.detach().to(pool.dtype)
        if each not in self._pages:
            longest = max(1, *(len(self._tables[segment.slot]) for segment in step.segments))
            padded = [
                [block * each for block in self._tables[segment.slot]]
                + [0] * (longest - len(self._tables[segment.slot]))
                for segment in step.segments
            ]
            self._pages[each] = torch.tensor(padded, device=self._device)
        return Pages(storage, self._pages[each], each)

    def commit(self, step: Step) -> None:
        for segment in step.segments:
            self._unfinished.discard(segment.slot)
            self._lengths[segment.slot] += segment.rows
            self._undoable[segment.slot] = min(self._undoable[segment.slot] + segment.rows, self._rollback)

    # -- what its owner asks --------------------------------------------------------------------------------------

    def length(self, slot: int) -> int:
        """Tokens that the slot holds. ValueError when a step in the slot did not end."""
        if slot in self._unfinished:
            raise ValueError(f"a step in slot {slot} failed before its end; reset or restore the slot")
        return self._lengths[slot]

    def segment(self, rows: int, slot: int) -> Segment:
        """The segment that continues this slot by `rows` tokens."""
        return Segment(rows, self.length(slot), slot)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that a sequence of so many tokens needs; none where no layer has entries."""
        return -(-tokens // self.block_tokens) if self._layout.entries else 0

    def reset(self, slot: int) -> None:
        """Forget everything in the slot; its blocks are bound no more."""
        self._unfinished.discard(slot)
        self._lengths[slot] = self._undoable[slot] = 0
        self._tables[slot] = []

    def bind(self, slot: int, blocks: Sequence[int]) -> None:
        """Bind further blocks behind those of the slot. New ones are zeroed by `clear`, shared ones must be full."""
        self._tables[slot].extend(blocks)

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero blocks that somebody used before: what is masked is read all the same, and NaN would pass a mask."""
        if blocks:
            index = torch.tensor(blocks, device=self._device)
            for pool in self._entries.values():
                pool[index] = 0

    def copy(self, source: int, target: int) -> None:
        """Make block `target` what `source` is."""
        for pool in self._entries.values():
            pool[target] = pool[source]

    def state(self, slot: int) -> State:
        """A copy of all that is not in blocks."""
        length = self.length(slot)
        recent = {}
        for key, buffer in self._recent.items():
            needed = self._layout.recent[key].needed(length)
            recent[key] = buffer[slot, buffer.shape[1] - needed :].clone()
        return State(length, recent)

    def restore(self, slot: int, state: State, blocks: Sequence[int]) -> None:
        """Make the slot what it was when `state` was taken, with its tokens' entries in `blocks`."""
        for key, rows in state.recent.items():
            buffer = self._recent[key]
            buffer[slot, buffer.shape[1] - rows.shape[0] :] = rows
        self._lengths[slot], self._undoable[slot] = state.length, 0
        self._tables[slot] = list(blocks)
        self._unfinished.discard(slot)

    def roll_back(self, slot: int, tokens: int) -> None:
        """Take the slot's last `tokens` tokens back; ValueError beyond what is still kept for it."""
        length = self.length(slot)
        if not 0 <= tokens <= self._undoable[slot]:
            raise ValueError(f"cannot roll back {tokens} of {length} tokens; {self._undoable[slot]} can be taken back")
        if tokens:
            for buffer in self._recent.values():
                buffer[slot] = buffer[slot].roll(tokens, dims=0)
        self._lengths[slot] = length - tokens
        self._undoable[slot] -= tokens

    def read(self, blocks: Sequence[int]) -> Contents:
        """Copies of these blocks."""
        index = torch.tensor(list(blocks), dtype=torch.int64, device=self._device)
        return Contents({key: pool[index] for key, pool in self._entries.items()})

    def write(self, blocks: Sequence[int], contents: Contents) -> None:
        """Fill these blocks with what `read` gave, in the same order."""
        index = torch.tensor(list(blocks), dtype=torch.int64, device=self._device)
        for key, entries in contents.entries.items():
            self._entries[key][index] = entries

    @property
    def block_bytes(self) -> int:
        """Memory of one block."""
        return sum(pool.shape[1] * pool.shape[2] * pool.element_size() for pool in self._entries.values())

    @property
    def slot_bytes(self) -> int:
        """Memory of one running sequence beside its blocks."""
        return sum(buffer.shape[1] * buffer.shape[2] * buffer.element_size() for buffer in self._recent.values())

    @property
    def bytes(self) -> int:
        """All memory held."""
        return self.blocks * self.block_bytes + self.slots * self.slot_bytes


def _untouched(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU, pages that take no memory until something is written to them."""
    if device.type != "cpu" or not math.prod(shape):
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def block_tokens(config: ModelConfig) -> int:
    """Tokens of a block: the least number that every compressor's ratio divides (spec §I)."""
    return math.lcm(config.csa_ratio, config.hca_ratio)
