"""How a history stores a row of a layer's past: as it is, or quantised as the report caches it (R §2.3.4, §5.2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from narrows.ops.dtypes import wide
from narrows.ops.quantize import FP8_MAX, MXFP4_BLOCK, dequantize_mxfp4, power_of_two_scale, quantize_mxfp4

# A KV entry's dims without RoPE share one scale per so many; scales are padded to whole words.
_FP8_BLOCK = 64
_WORD = 8

# E8M0's NaN, and the largest value that the quantisers take.
_NAN_SCALE = 255
_LARGEST = 2.0**127


class RowFormat(Protocol):
    """A stored row has `width` elements of `dtype`. All rows are stored each for itself, whatever lies beside them."""

    @property
    def width(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...

    def encode(self, rows: Tensor) -> Tensor:
        """Rows [..., features] as they are stored: [..., width]. One that is not finite is read as NaN."""

    def decode(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """Stored rows [..., width] as they are read: [..., features]."""

    def queries(self, queries: Tensor) -> Tensor:
        """What queries [..., features] must become for their products with decoded rows."""


@dataclass(frozen=True)
class Plain:
    """Numbers of one dtype."""

    width: int
    dtype: torch.dtype

    def encode(self, rows: Tensor) -> Tensor:
        return rows.to(self.dtype)

    def decode(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        return stored.to(dtype)

    def queries(self, queries: Tensor) -> Tensor:
        return queries


@dataclass(frozen=True)
class FP8Entries:
    """KV rows: the dims without RoPE in E4M3 with an E8M0 scale per 64, the last `rope` dims in BF16.

    Bytes of a row: values, RoPE dims, scales, and zeros up to a multiple of 8 scales.
    """

    features: int
    rope: int
    dtype: torch.dtype = torch.uint8

    @property
    def width(self) -> int:
        return self._values + 2 * self.rope + _WORD * -(-self._scales // _WORD)

    @property
    def _values(self) -> int:
        return self.features - self.rope

    @property
    def _scales(self) -> int:
        return -(-self._values // _FP8_BLOCK)

    def encode(self, rows: Tensor) -> Tensor:
        rows, spoilt = _storable(rows)
        padding = self._scales * _FP8_BLOCK - self._values
        blocks = F.pad(rows[..., : self._values].float(), (0, padding)).unflatten(-1, (self._scales, _FP8_BLOCK))
        scale = power_of_two_scale(blocks.abs().amax(-1), FP8_MAX)
        values = (blocks / scale.float()[..., None]).to(torch.float8_e4m3fn).flatten(-2)
        turned = rows[..., self._values :].to(torch.bfloat16).contiguous()
        stored = rows.new_zeros(*rows.shape[:-1], self.width, dtype=torch.uint8)
        stored[..., : self._values] = values.view(torch.uint8)[..., : self._values]
        end = self._values + 2 * self.rope
        stored[..., self._values : end] = turned.view(torch.uint8)
        stored[..., end : end + self._scales] = scale.view(torch.uint8).masked_fill_(spoilt, _NAN_SCALE)
        return stored

    def decode(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        end = self._values + 2 * self.rope
        values = stored[..., : self._values].contiguous().view(torch.float8_e4m3fn).to(dtype)
        scale = stored[..., end : end + self._scales].contiguous().view(torch.float8_e8m0fnu).to(dtype)
        # Always a copy: two bytes of a single row may begin at an odd one.
        turned = stored[..., self._values : end].clone(memory_format=torch.contiguous_format)
        values *= scale.repeat_interleave(_FP8_BLOCK, dim=-1)[..., : self._values]
        return torch.cat((values, turned.view(torch.bfloat16).to(dtype)), dim=-1)

    def queries(self, queries: Tensor) -> Tensor:
        return queries


@dataclass(frozen=True)
class FP4Keys:
    """The indexer's keys: turned by a Hadamard matrix, which spreads outliers, then MXFP4.

    Bytes of a row: two values each, then scales. A turn of keys and queries alike leaves their products as they are.
    ValueError unless `features` is a power of two and a multiple of 32.
    """

    features: int
    dtype: torch.dtype = torch.uint8

    def __post_init__(self) -> None:
        if self.features % MXFP4_BLOCK or self.features & (self.features - 1):
            raise ValueError(
                f"keys of {self.features} features cannot be cached in FP4, which takes a power of two from "
                f"{MXFP4_BLOCK} on"
            )

    @property
    def width(self) -> int:
        return self.features // 2 + self.features // MXFP4_BLOCK

    def encode(self, rows: Tensor) -> Tensor:
        shape = rows.shape[:-1]
        rows, spoilt = _storable(hadamard(rows).reshape(-1, self.features))
        codes, scale = quantize_mxfp4(rows)
        scales = scale.view(torch.uint8).masked_fill_(spoilt, _NAN_SCALE)
        stored = torch.cat((codes.view(torch.uint8), scales), dim=-1)
        return stored.view(*shape, self.width)

    def decode(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        codes, scale = stored.reshape(-1, self.width).split((self.features // 2, self.features // MXFP4_BLOCK), dim=-1)
        scale = scale.contiguous().view(torch.float8_e8m0fnu)
        keys = dequantize_mxfp4(codes.contiguous().view(torch.int8), scale, dtype)
        return keys.view(*stored.shape[:-1], self.features)

    def queries(self, queries: Tensor) -> Tensor:
        return hadamard(queries)


def _storable(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [..., f] with zeros for those that no scale can hold, and which these are: bool [..., 1].

    What is not finite must come back as such, so that the sequence it belongs to, and no other, is found out.
    """
    spoilt = ~(rows.abs() <= _LARGEST).all(-1, keepdim=True)
    return rows.masked_fill(spoilt, 0.0), spoilt


def hadamard(x: Tensor) -> Tensor:
    """x [..., n] times the symmetric orthogonal Hadamard matrix, n a power of two; sums in float32 at least."""
    dtype = wide(x.dtype)
    return (x.to(dtype) @ _hadamard(x.shape[-1], dtype, x.device)).to(x.dtype)


@cache
def _hadamard(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    matrix = torch.ones(1, 1, dtype=dtype, device=device)
    while matrix.shape[0] < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix * size**-0.5
