"""Tiles: the rows of a step cut into short runs, so that attention and indexer work in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# The most elements that one intermediate of attention, indexer or loss may have on a CPU: 64 MB of float32.
ELEMENT_BUDGET = 1 << 24
# An accelerator may have so many times more: it waits for every launch.
_ACCELERATED = 8

# On a CPU what fits the cache is passed over faster than what does not: 2 MB of float32.
CACHED = 1 << 19


def element_budget(device: torch.device) -> int:
    """The most elements of one intermediate there."""
    return ELEMENT_BUDGET if device.type == "cpu" else _ACCELERATED * ELEMENT_BUDGET


def within_budget(elements_each: int, device: torch.device) -> int:
    """How many things of so many elements stay within the device's element budget; one at least."""
    return max(1, element_budget(device) // max(1, elements_each))


@dataclass(frozen=True)
class Run:
    """Some tiles of one size. `rows` int64 [T, B]: consecutive rows of one segment each, short tiles repeating their
    last row; `real` bool [T, B]: where a row is no repetition; `segment` int64 [T]: whose rows they are."""

    rows: Tensor
    real: Tensor
    segment: Tensor

    def split(self, size: int) -> Run:
        """The same rows in tiles of `size`, which divides B."""
        return Run(
            self.rows.view(-1, size),
            self.real.view(-1, size),
            self.segment.repeat_interleave(self.rows.shape[1] // size),
        )


@dataclass(frozen=True)
class Tiles:
    """All rows of a step: `runs` of tiles, and `slots` int64 [N], where row n stands in the runs laid end to end."""

    runs: tuple[Run, ...]
    slots: Tensor

    @staticmethod
    def cut(lengths: list[int], size: int, device: torch.device) -> Tiles:
        """Tiles for segments of these lengths, packed one behind the other: of `size` rows, or of 1, 4, 16, ... rows
        where a segment has no more, so that a decoded token beside a chunk is no tile of repetitions."""
        length = torch.tensor(lengths)
        first = length.cumsum(0) - length
        tile = torch.tensor([_tile_size(rows, size) for rows in lengths])
        runs, base, taken = [], torch.empty_like(length), 0
        for rows in sorted(set(tile.tolist())):
            (member,) = (tile == rows).nonzero(as_tuple=True)
            count = (length[member] + rows - 1) // rows
            before = count.cumsum(0) - count
            base[member] = taken + before * rows
            segment = member.repeat_interleave(count)
            offset = (torch.arange(segment.shape[0]) - before.repeat_interleave(count))[:, None] * rows
            offset = offset + torch.arange(rows)
            last = length[segment][:, None] - 1
            row = first[segment][:, None] + torch.minimum(offset, last)
            runs.append(Run(row.to(device), (offset <= last).to(device), segment.to(device)))
            taken += row.numel()
        slots = torch.arange(int(length.sum())) + (base - first).repeat_interleave(length)
        return Tiles(tuple(runs), slots.to(device))

    @cached_property
    def spans(self) -> Tensor:
        """Every tile's first row, number of rows and segment: int64 [T, 3], a segment's tiles in their order."""
        return torch.cat([torch.stack((run.rows[:, 0], run.real.sum(1), run.segment), dim=1) for run in self.runs])

    def groups(self, elements: Callable[[int], int]) -> Iterator[Run]:
        """All tiles in order, in groups whose intermediates stay within the element budget.

        `elements` says how many elements a tile of so many rows needs. Where one tile needs too many it is split; a
        single row is not.
        """
        budget = element_budget(self.slots.device)
        most = min(budget, CACHED) if self.slots.device.type == "cpu" else budget
        for run in self.runs:
            length = run.rows.shape[1]
            sizes = [size for size in range(length, 0, -1) if length % size == 0]
            size = next((size for size in sizes if elements(size) <= budget), 1)
            cut = run if size == length else run.split(size)
            step = max(1, most // max(1, elements(size)))
            for start in range(0, cut.rows.shape[0], step):
                part = slice(start, start + step)
                yield Run(cut.rows[part], cut.real[part], cut.segment[part])

    def untile(self, groups: list[Tensor]) -> Tensor:
        """Per-tile results [T', B, ...], in the order of `groups`, back to rows [N, ...]."""
        return torch.cat([group.flatten(0, 1) for group in groups])[self.slots]


def _tile_size(rows: int, size: int) -> int:
    """The least power of 4 that holds `rows`, at most `size`."""
    tile = 1
    while tile < min(rows, size):
        tile *= 4
    return min(tile, size)
