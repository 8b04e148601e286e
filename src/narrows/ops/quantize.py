"""The two quantised weight formats: MXFP4 blocks and FP8 tiles, each with power-of-two (E8M0) scales.

MXFP4 (OCP Microscaling 1.0): E2M1 values, two a byte with the low nibble first; runs of 32 along the input share a
scale. FP8: E4M3 values; tiles of 128 × 128 share a scale. A scale is 2^⌈log2(amax / largest value)⌉: the smallest
power of two under which nothing saturates. Rounding is to nearest, ties to even; a block of zeros has scale 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MXFP4_BLOCK = 32
FP8_TILE = 128
MXFP4_MAX = 6.0
FP8_MAX = 448.0

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_LARGEST_INPUT = 2.0**127  # beyond it, rounding up could leave float32


def quantize_mxfp4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [out, in] -> codes int8 [out, in/2], scales float8_e8m0fnu [out, in/32].

    ValueError if `in` is not a multiple of 32 or a value is not finite. Values are taken in float32.
    """
    rows, columns = weight.shape
    mxfp4_shapes(rows, columns)
    blocks = weight.float().reshape(rows, columns // MXFP4_BLOCK, MXFP4_BLOCK)
    scale = power_of_two_scale(blocks.abs().amax(-1), MXFP4_MAX)
    return pack_e2m1(_to_e2m1(blocks / scale.float()[..., None]).view(rows, columns)), scale


def dequantize_mxfp4(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Codes int8 [out, in/2], scales [out, in/32] -> weight [out, in]; exact in float32 and bfloat16."""
    rows, half = codes.shape
    pairs = torch.tensor([(_E2M1[byte & 15], _E2M1[byte >> 4]) for byte in range(256)], device=codes.device)
    values = F.embedding(codes.view(torch.uint8).int(), pairs)  # [out, in/2, 2]
    values = values.view(rows, 2 * half // MXFP4_BLOCK, MXFP4_BLOCK).mul_(scale.float()[..., None])
    return values.view(rows, 2 * half).to(dtype)


def pack_e2m1(codes: Tensor) -> Tensor:
    """4-bit codes uint8 [..., n] -> int8 [..., n/2], the earlier one in the low nibble."""
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).view(torch.int8)


def unpack_e2m1(packed: Tensor) -> Tensor:
    """int8 [..., n/2] -> 4-bit codes uint8 [..., n]: sign, two bits of exponent, one of mantissa."""
    byte = packed.view(torch.uint8)
    return torch.stack((byte & 15, byte >> 4), dim=-1).flatten(-2)


def quantize_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [out, in] -> values float8_e4m3fn [out, in], scales float8_e8m0fnu [⌈out/128⌉, ⌈in/128⌉].

    Tiles at the lower and right edges may be smaller. ValueError if a value is not finite.
    """
    tiles = _tiles(weight.float())
    scale = power_of_two_scale(tiles.abs().amax((1, 3)), FP8_MAX)
    values = (tiles / scale.float()[:, None, :, None]).to(torch.float8_e4m3fn)
    return _untile(values, weight.shape), scale


def dequantize_fp8(values: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values float8_e4m3fn [out, in], scales [⌈out/128⌉, ⌈in/128⌉] (E8M0 or float32) -> weight [out, in]."""
    tiles = _tiles(values.float()) * scale.float()[:, None, :, None]
    return _untile(tiles.to(dtype), values.shape)


def mxfp4_shapes(rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of the codes and the scales of a weight [rows, columns]; ValueError if no such weight can be MXFP4."""
    if columns % MXFP4_BLOCK:
        raise ValueError(f"MXFP4 needs an input width that is a multiple of {MXFP4_BLOCK}, not {columns}")
    return (rows, columns // 2), (rows, columns // MXFP4_BLOCK)


def fp8_scale_shape(rows: int, columns: int) -> tuple[int, int]:
    """Shape of the tile scales of a weight [rows, columns]."""
    return -(-rows // FP8_TILE), -(-columns // FP8_TILE)


def power_of_two_scale(amax: Tensor, largest: float) -> Tensor:
    """The smallest 2^k with amax <= largest · 2^k, as E8M0 (k from -127 to 127); 1 where amax is 0.

    In mantissas and exponents, not logarithms, which may round to the wrong side of a power of two.
    """
    if not bool((amax <= _LARGEST_INPUT).all()):  # false for NaN as well
        raise ValueError("it holds a value that is not finite, or larger than 2^127")
    limit_mantissa, limit_exponent = math.frexp(largest)
    mantissa, exponent = torch.frexp(amax)
    exponent = exponent - limit_exponent + (mantissa > limit_mantissa).int()
    exponent = torch.where(amax == 0, 0, exponent).clamp(min=-127)
    return (exponent + 127).to(torch.uint8).view(torch.float8_e8m0fnu)


def _to_e2m1(values: Tensor) -> Tensor:
    """Codes uint8 of float32 values in [-6, 6]: the nearest of E2M1, ties to the even code; the sign of 0 is kept.

    Steps are 1/2 up to 2, 1 up to 4 and 2 up to 6: of the three rulers the right one gives the smallest code.
    """
    size = values.abs()
    code = (size * 2).round_()
    code = torch.minimum(code, size.round().add_(2), out=code)
    code = torch.minimum(code, (size * 0.5).round_().add_(4), out=code)
    return code.to(torch.uint8) | (torch.signbit(values).to(torch.uint8) << 3)


def _tiles(weight: Tensor) -> Tensor:
    """[out, in] -> [⌈out/128⌉, 128, ⌈in/128⌉, 128], zeros beyond the edges."""
    rows, columns = weight.shape
    if rows % FP8_TILE or columns % FP8_TILE:
        weight = F.pad(weight, (0, -columns % FP8_TILE, 0, -rows % FP8_TILE))
    return weight.reshape(-(-rows // FP8_TILE), FP8_TILE, -(-columns // FP8_TILE), FP8_TILE)


def _untile(tiles: Tensor, shape: torch.Size) -> Tensor:
    return tiles.flatten(2).flatten(0, 1)[: shape[0], : shape[1]].contiguous()
