"""The engine's history: a state per running sequence and entries in blocks, all of a size fixed beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from narrows.model.config import LayerKind, ModelConfig
from narrows.model.history import Key, Layout, SlotHistory, fill_ring, ring_rows
from narrows.model.precision import Precision
from narrows.model.segments import Growth, PackedRows, Segment
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


class PagedHistory(SlotHistory):
    """History of up to `slots` sequences in `blocks` blocks of `block_tokens` tokens each (spec: lcm of the ratios).

    A sequence's owner binds its blocks to a slot, in the order of its tokens, before a step needs them. Which block is
    whose is decided elsewhere (BlockPool): blocks may be bound to several slots as long as nobody writes to them,
    which nobody does once they are full. `rollback`: how many tokens `roll_back` may take back at once.

    Public, for what computes a step in the same memory, beside `layout` and `recent`:

    - `tables` int32 [slots, most]: the blocks bound to every slot, in the order of its tokens; `most` is what a
      sequence of all positions has. What lies behind those bound is some block or 0.
    - `entries[key]` [blocks, each, width]: entry i of a sequence is row i % each of its block number i // each.
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
        precision: Precision | None = None,
    ) -> None:
        super().__init__(Layout.of(config, layer_types, dtype=dtype, precision=precision), slots, device, rollback)
        self.block_tokens = block_tokens(config)
        self.blocks = blocks
        self._device = torch.device(device)
        most = self.blocks_for(config.max_position_embeddings)
        self.tables = _untouched(slots, most, dtype=torch.int32, device=self._device)
        self._bound = [0] * slots
        self._places: dict[int, tuple[Tensor, Tensor]] = {}
        self.entries = {
            key: _untouched(
                blocks, self.block_tokens // kept.ratio, kept.format.width, dtype=kept.format.dtype, device=self._device
            )
            for key, kept in self.layout.entries.items()
        }

    @classmethod
    def for_mtp(
        cls,
        config: ModelConfig,
        *,
        slots: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        rollback: int = 0,
        precision: Precision | None = None,
    ) -> PagedHistory:
        """The MTP block's own history: one sliding layer, which needs no blocks."""
        return cls(
            config,
            slots=slots,
            blocks=0,
            dtype=dtype,
            device=device,
            rollback=rollback,
            layer_types=(LayerKind.SLIDING,),
            precision=precision,
        )

    # -- what a step asks -----------------------------------------------------------------------------------------

    def begin(self, segments: Sequence[Segment]) -> None:
        """ValueError unless every segment continues what its slot holds, and has the blocks for it."""
        for segment in segments:
            self._check(segment.slot)
            bound, wanted = self._bound[segment.slot], segment.past + segment.rows
            if self.blocks_for(wanted) > bound:
                raise ValueError(f"slot {segment.slot} has {bound} blocks, too few for {wanted} tokens")
        super().begin(segments)
        self._places = {}

    def extend_entries(self, layer: int, name: str, new: Tensor, growth: Growth, step: PackedRows) -> Pages:
        pool, stored = self.entries[layer, name], self.layout.entries[layer, name].format
        each = pool.shape[1]
        if each not in self._places:
            self._places[each] = self._find_places(each, growth, step)
        table, places = self._places[each]
        storage = pool.view(-1, pool.shape[2])
        if new.shape[0]:
            storage[places] = stored.encode(new.detach())
        return Pages(storage, table, each, stored)

    def _find_places(self, each: int, growth: Growth, step: PackedRows) -> tuple[Tensor, Tensor]:
        """Where entries lie, `each` a block: the first row of every block [S, n], and the rows of the new ones [n]."""
        longest = max(self._bound[segment.slot] for segment in step.segments)
        table = self.tables[:, :longest][step.slots].long() * each
        places = [table.new_empty(0)]
        for blocks, before, count in zip(table, growth.before, growth.new, strict=True):
            if count:
                numbers = torch.arange(before, before + count, device=self._device)
                places.append(blocks[numbers // each] + numbers % each)
        return table, torch.cat(places)

    # -- what its owner asks --------------------------------------------------------------------------------------

    def blocks_for(self, tokens: int) -> int:
        """Blocks that a sequence of so many tokens needs; none where no layer has entries."""
        return -(-tokens // self.block_tokens) if self.layout.entries else 0

    def reset(self, slot: int) -> None:
        """Forget everything in the slot; its blocks are bound no more."""
        self._unfinished.discard(slot)
        self._lengths[slot] = self._undoable[slot] = 0
        self._bound[slot] = 0

    def bind(self, slot: int, blocks: Sequence[int]) -> None:
        """Bind further blocks behind those of the slot. New ones are zeroed by `clear`, shared ones must be full.
        ValueError for more than all positions need."""
        bound, most = self._bound[slot], self.tables.shape[1]
        if bound + len(blocks) > most:
            raise ValueError(f"slot {slot} has {bound} blocks and cannot have {len(blocks)} more; {most} is the most")
        self._bound[slot] += len(blocks)
        self.tables[slot, bound : self._bound[slot]] = torch.tensor(blocks, dtype=torch.int32)

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero blocks that somebody used before: what is masked is read all the same, and NaN would pass a mask."""
        for block in blocks:  # one by one is quicker than to wake PyTorch's threads
            for pool in self.entries.values():
                pool[block].zero_()

    def copy(self, source: int, target: int) -> None:
        """Make block `target` what `source` is."""
        for pool in self.entries.values():
            pool[target] = pool[source]

    def state(self, slot: int) -> State:
        """A copy of all that is not in blocks."""
        length = self.length(slot)
        recent = {}
        for key, rings in self.recent.items():
            recent[key] = torch.cat(ring_rows(rings[slot], length, self.layout.recent[key].needed(length)))
        return State(length, recent)

    def restore(self, slot: int, state: State, blocks: Sequence[int]) -> None:
        """Make the slot what it was when `state` was taken, with its tokens' entries in `blocks`."""
        for key, rows in state.recent.items():
            fill_ring(self.recent[key][slot], state.length, rows)
        self._lengths[slot], self._undoable[slot], self._bound[slot] = state.length, 0, 0
        self.bind(slot, blocks)
        self._unfinished.discard(slot)

    def read(self, blocks: Sequence[int]) -> Contents:
        """Copies of these blocks."""
        index = torch.tensor(list(blocks), dtype=torch.int64, device=self._device)
        return Contents({key: pool[index] for key, pool in self.entries.items()})

    def write(self, blocks: Sequence[int], contents: Contents) -> None:
        """Fill these blocks with what `read` gave, in the same order."""
        for key, entries in contents.entries.items():
            for block, filled in zip(blocks, entries, strict=True):  # which wakes none of PyTorch's threads
                self.entries[key][block].copy_(filled)

    @property
    def block_bytes(self) -> int:
        """Memory of one block."""
        return sum(pool.shape[1] * pool.shape[2] * pool.element_size() for pool in self.entries.values())

    @property
    def slot_bytes(self) -> int:
        """Memory of one running sequence beside its blocks."""
        recent = sum(rings.shape[1] * rings.shape[2] * rings.element_size() for rings in self.recent.values())
        return recent + self.tables.shape[1] * self.tables.element_size()

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
