"""Where a segment's compressed entries lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from narrows.ops.row_format import RowFormat


@dataclass(frozen=True)
class Pages:
    """Entries of several segments in one flat storage: entry i of segment s is row table[s, i // block] + i % block.

    One block as long as the sequence is a contiguous history; blocks of 32 are a paged one. Rows that hold no entry
    yet must be finite: they are read and then masked.

    storage [M, f]; table int64 [S, n], the first row of every block; `format`: how the storage holds an entry (None:
    as it is).
    """

    storage: Tensor
    table: Tensor
    block: int
    format: RowFormat | None = None

    def gather(self, segment: Tensor, entry: Tensor, dtype: torch.dtype) -> Tensor:
        """Entries [..., f]; `segment` and `entry` int64, broadcast together; numbers past the end give any row."""
        return self.read(self.storage, self.rows(segment, entry), dtype)

    def read(self, storage: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """The entries at these rows of `storage`, which is this one's: int64 [...] -> [..., f]."""
        stored = F.embedding(rows, storage)
        return stored.to(dtype) if self.format is None else self.format.decode(stored, dtype)

    def queries(self, queries: Tensor) -> Tensor:
        """What queries [..., f] must become for their products with what is read."""
        return queries if self.format is None else self.format.queries(queries)

    def rows(self, segment: Tensor, entry: Tensor) -> Tensor:
        """Their rows of the storage, int64 [...]."""
        block = (entry // self.block).clamp(max=self.table.shape[1] - 1)
        row = self.table[segment, block] + entry % self.block
        return row.clamp(max=self.storage.shape[0] - 1)
