"""Which block is whose: reference counts of numbers, no tensors."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """`count` blocks, each free or held by one or more owners. Who allocates holds; who shares holds too."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._holders = [0] * count

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` free blocks, now held once. ValueError when there are not so many: ask `free` first."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks are wanted and {len(self._free)} are free")
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._holders[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Hold blocks once more that somebody holds already."""
        for block in blocks:
            if not self._holders[block]:
                raise ValueError(f"block {block} is free; only a held one can be shared")
            self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Hold them once less; those that nobody holds any more are free."""
        for block in blocks:
            if not self._holders[block]:
                raise ValueError(f"block {block} is free already")
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free.append(block)

    def holders(self, block: int) -> int:
        """How many hold this block."""
        return self._holders[block]
