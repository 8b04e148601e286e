"""Weights as the CPU kernels read them: 16 rows side by side, in the order in which a product needs them.

A weight is w [rows, columns]. Rows are padded with zeros to B blocks of 16, columns to G groups of 4 (FP8 and BF16; an
MXFP4 weight has whole groups). The bytes, all little endian, outermost index first:

| format | values | scales, E8M0 |
|---|---|---|
| bf16 | [B, G, h 2, r 16, j 2] BF16: w[16b + r, 4g + 2h + j] | none |
| fp8 | [B, G, i 4, h 2, q 4, j 2] E4M3: w[16b + 4i + q, 4g + 2h + j] | [B, ⌈columns/128⌉]: of the tile |
| mxfp4 | [B, G, r 16, j 2] E2M1: w[16b + r, 4g + j] low, w[16b + r, 4g + 2 + j] high | [B, columns/32, r 16] |

Scales of the rows that MXFP4 pads are 1. A code survives packing bit by bit; only `unpack` computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from narrows.ops.quantize import FP8_TILE, MXFP4_BLOCK, dequantize_fp8, dequantize_mxfp4, fp8_scale_shape, mxfp4_shapes

PackedFormat = Literal["bf16", "fp8", "mxfp4"]

ROWS = 16
COLUMNS = 4
_ONE = 127  # E8M0 of 1
_E8M0 = torch.float8_e8m0fnu
_FORMATS: dict[torch.dtype, PackedFormat] = {
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8",
    torch.int8: "mxfp4",
}


@dataclass(frozen=True)
class Packed:
    """A weight [rows, columns] in the module's layout: `values` and `scales` flat uint8, BF16's scales empty.

    ValueError if these are not as long as format and shape say.
    """

    format: PackedFormat
    rows: int
    columns: int
    values: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        found = [tuple(part.shape) for part in (self.values, self.scales)]
        expected = [(size,) for size in packed_sizes(self.format, self.rows, self.columns)]
        if found != expected or self.values.dtype != torch.uint8 or self.scales.dtype != torch.uint8:
            raise ValueError(
                f"values {list(self.values.shape)} and scales {list(self.scales.shape)} must be flat uint8, as long as "
                f"a {self.format} weight [{self.rows}, {self.columns}] needs: {expected[0][0]} and {expected[1][0]}"
            )


def packed_sizes(format: PackedFormat, rows: int, columns: int) -> tuple[int, int]:
    """Bytes of the values and of the scales; ValueError where the format cannot have this shape."""
    if rows < 1 or columns < 1:
        raise ValueError(f"a weight [{rows}, {columns}] has nothing to pack")
    blocks, columns_padded = -(-rows // ROWS), columns + -columns % COLUMNS
    match format:
        case "bf16":
            return 2 * blocks * ROWS * columns_padded, 0
        case "fp8":
            return blocks * ROWS * columns_padded, blocks * -(-columns // FP8_TILE)
        case "mxfp4":
            codes, scales = mxfp4_shapes(blocks * ROWS, columns)
            return prod(codes), prod(scales)
        case _:
            raise ValueError(f"{format!r} is no format to pack; it is bf16, fp8 or mxfp4")


def pack(values: Tensor, scale: Tensor | None = None) -> Packed:
    """A weight as a file stores it, in the kernels' order; its dtype says the format.

    BF16 [rows, columns]; float8_e4m3fn [rows, columns] with scale float8_e8m0fnu [⌈rows/128⌉, ⌈columns/128⌉]; int8
    [rows, columns/2], low nibble first, with scale float8_e8m0fnu [rows, columns/32]. ValueError for anything else.
    """
    format = _FORMATS.get(values.dtype)
    if format is None or values.dim() != 2:
        raise ValueError(f"{values.dtype} {list(values.shape)} cannot be packed; give a matrix in {_names()}")
    rows, columns = values.shape
    if format == "mxfp4":
        columns *= 2
    packed_sizes(format, rows, columns)  # raises where there is no such weight
    _check_scale(format, rows, columns, scale)
    match format:
        case "bf16":
            order = _blocks(values, ROWS, COLUMNS).view(-1, ROWS, _groups(columns), 2, 2).permute(0, 2, 3, 1, 4)
            return Packed(format, rows, columns, _bytes(order), torch.empty(0, dtype=torch.uint8))
        case "fp8":
            codes = _blocks(values.view(torch.uint8), ROWS, COLUMNS).view(-1, 4, 4, _groups(columns), 2, 2)
            assert scale is not None
            tiles = scale.view(torch.uint8).repeat_interleave(FP8_TILE // ROWS, 0)[: codes.shape[0]]
            return Packed(format, rows, columns, _bytes(codes.permute(0, 3, 1, 4, 2, 5)), _bytes(tiles))
    assert scale is not None
    pairs = _blocks(values.view(torch.uint8), ROWS, COLUMNS // 2).view(-1, ROWS, _groups(columns), 2)
    first, second = pairs.permute(0, 2, 1, 3).unbind(-1)
    codes = torch.stack(((first & 15) | (second << 4), (first >> 4) | (second & 0xF0)), dim=-1)
    scales = _blocks(scale.view(torch.uint8), ROWS, 1, fill=_ONE).view(-1, ROWS, columns // MXFP4_BLOCK)
    return Packed(format, rows, columns, _bytes(codes), _bytes(scales.transpose(1, 2)))


def unpack(packed: Packed) -> Tensor:
    """The weight itself: float32 [rows, columns]. The reference for what a kernel reads."""
    rows, columns, groups = packed.rows, packed.columns, _groups(packed.columns)
    match packed.format:
        case "bf16":
            ordered = packed.values.view(torch.bfloat16).view(-1, groups, 2, ROWS, 2).permute(0, 3, 1, 2, 4)
            return ordered.reshape(-1, COLUMNS * groups)[:rows, :columns].float()
        case "fp8":
            codes = packed.values.view(-1, groups, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5)
            tiles = packed.scales.view(-1, -(-columns // FP8_TILE))[:: FP8_TILE // ROWS]
            weight = codes.reshape(-1, COLUMNS * groups)[:rows, :columns].contiguous().view(torch.float8_e4m3fn)
            return dequantize_fp8(weight, tiles.contiguous().view(_E8M0))
    early, late = packed.values.view(-1, groups, ROWS, 2).permute(0, 2, 1, 3).unbind(-1)
    pairs = torch.stack(((early & 15) | (late << 4), (early >> 4) | (late & 0xF0)), dim=-1)
    scales = packed.scales.view(-1, columns // MXFP4_BLOCK, ROWS).transpose(1, 2).reshape(-1, columns // MXFP4_BLOCK)
    codes = pairs.reshape(-1, columns // 2)[:rows].view(torch.int8)
    return dequantize_mxfp4(codes, scales[:rows].view(_E8M0))


def _groups(columns: int) -> int:
    """G: groups of 4 columns, the last one padded."""
    return -(-columns // COLUMNS)


def _check_scale(format: PackedFormat, rows: int, columns: int, scale: Tensor | None) -> None:
    if format == "bf16":
        if scale is not None:
            raise ValueError("a BF16 weight has no scales")
        return
    expected = fp8_scale_shape(rows, columns) if format == "fp8" else mxfp4_shapes(rows, columns)[1]
    if scale is None or scale.dtype != _E8M0 or tuple(scale.shape) != expected:
        found = "none" if scale is None else f"{scale.dtype} {list(scale.shape)}"
        raise ValueError(f"scales of {format} [{rows}, {columns}] are {_E8M0} {list(expected)}, not {found}")


def _blocks(matrix: Tensor, rows: int, columns: int, fill: int = 0) -> Tensor:
    """Contiguous, padded below to a multiple of `rows` and on the right to one of `columns`."""
    return F.pad(matrix, (0, -matrix.shape[1] % columns, 0, -matrix.shape[0] % rows), value=fill).contiguous()


def _bytes(ordered: Tensor) -> Tensor:
    return ordered.contiguous().view(torch.uint8).flatten()


def _names() -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in _FORMATS)
