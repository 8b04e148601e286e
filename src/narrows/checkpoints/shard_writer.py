"""safetensors files, written tensor by tensor: the library's own writer wants a whole shard in memory."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

_NAMES = {
    torch.int64: "I64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
}


@dataclass(frozen=True)
class Planned:
    """A tensor to be: its name in the file, dtype and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * self.dtype.itemsize


class ShardWriter:
    """Writes one safetensors file; `write` must be called for the planned tensors in their order.

    Plans run from wide dtypes to narrow ones, so that every tensor starts at a multiple of its element's size.
    """

    def __init__(self, path: Path, plan: Sequence[Planned]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for tensor in plan:
            if position % tensor.dtype.itemsize:
                raise ValueError(f"{tensor.name} would start at byte {position}: plan wide dtypes first")
            header[tensor.name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": tensor.shape,
                "data_offsets": (position, position + tensor.bytes),
            }
            position += tensor.bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._plan = iter(plan)
        self._hash = hashlib.sha256()
        self._file = path.open("wb")
        self._put(struct.pack("<Q", len(text)) + text)

    def write(self, tensor: Tensor) -> None:
        """Append the next planned tensor; ValueError if it is not what was planned."""
        planned = next(self._plan)
        if (tensor.dtype, tuple(tensor.shape)) != (planned.dtype, planned.shape):
            raise ValueError(f"{planned.name}: {tensor.dtype} {list(tensor.shape)} is not what was planned, {planned}")
        flat = tensor.detach().to("cpu").contiguous().flatten()
        self._put(flat.view(torch.uint8).numpy().data)

    def digest(self) -> str:
        """SHA-256 of all that was written."""
        return self._hash.hexdigest()

    def _put(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
