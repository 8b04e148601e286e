"""Tiles: the rows of a step cut into short runs, so that attention and indexer work in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# The most elements that one intermediate of attention or indexer may have: 64 MB of float32.
ELEMENT_BUDGET = 1 << 24


@dataclass(frozen=True)
class Tiles:
    """`rows` int64 [T, B]: consecutive rows of one segment each; short tiles repeat their last row.

    `slots` int64 [N]: where row n stands in the flattened tiles; `segment` int64 [T]: whose rows they are.
    """

    rows: Tensor
    slots: Tensor
    segment: Tensor

    @staticmethod
    def cut(lengths: list[int], size: int, device: torch.device) -> Tiles:
        """Tiles of `size` rows for segments of these lengths, packed one behind the other."""
        rows, slots, segment, first = [], [], [], 0
        tiles = 0
        for number, length in enumerate(lengths):
            count = -(-length // size)
            offsets = torch.arange(count * size)
            rows.append(first + offsets.clamp(max=length - 1))
            slots.append(tiles * size + torch.arange(length))
            segment.append(torch.full((count,), number))
            first, tiles = first + length, tiles + count
        return Tiles(
            torch.cat(rows).view(-1, size).to(device), torch.cat(slots).to(device), torch.cat(segment).to(device)
        )

    def groups(self, elements_per_tile: int) -> Iterator[slice]:
        """Slices of tiles that together stay within the element budget (one tile at least)."""
        step = max(1, ELEMENT_BUDGET // max(1, elements_per_tile))
        for start in range(0, self.rows.shape[0], step):
            yield slice(start, start + step)

    def untile(self, groups: list[Tensor]) -> Tensor:
        """Per-tile results [T', B, ...], in the order of `groups`, back to rows [N, ...]."""
        return torch.cat(groups).flatten(0, 1)[self.slots]
