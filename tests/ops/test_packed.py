"""Packed weights: every code where the layout says, the weight itself back exactly, and zeros for padding."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from narrows.ops.packed import Packed, PackedFormat, pack, packed_sizes, unpack
from narrows.ops.quantize import dequantize_fp8, dequantize_mxfp4, quantize_fp8, quantize_mxfp4, unpack_e2m1

E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu
SEEDS = st.integers(0, 2**31)
ROWS, COLUMNS = st.integers(1, 300), st.integers(1, 300)


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_bf16(rows: int, columns: int, seed: int) -> Tensor:
    """Any bits but those of NaN."""
    bits = torch.randint(-(2**15), 2**15, (rows, columns), generator=random(seed), dtype=torch.int16)
    return torch.where(bits.view(torch.bfloat16).isnan(), 0, bits).view(torch.bfloat16)


def draw_fp8(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """Every code but NaN, under scales from one end to the other."""
    codes = torch.randint(0, 256, (rows, columns), generator=random(seed), dtype=torch.uint8)
    codes[codes % 128 == 127] = 0
    shape = (-(-rows // 128), -(-columns // 128))
    scale = torch.randint(0, 255, shape, generator=random(seed + 1), dtype=torch.uint8)
    return codes.view(E4M3), scale.view(E8M0)


def draw_mxfp4(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    codes = torch.randint(-128, 128, (rows, columns // 2), generator=random(seed), dtype=torch.int8)
    scale = torch.randint(0, 255, (rows, columns // 32), generator=random(seed + 1), dtype=torch.uint8)
    return codes, scale.view(E8M0)


def same(left: Tensor, right: Tensor) -> bool:
    """The sign of 0 included."""
    return torch.equal(left, right) and torch.equal(left.signbit(), right.signbit())


@given(ROWS, COLUMNS, SEEDS)
def test_bf16_comes_back_exactly(rows: int, columns: int, seed: int) -> None:
    weight = draw_bf16(rows, columns, seed)
    packed = pack(weight)
    assert (packed.format, packed.rows, packed.columns) == ("bf16", rows, columns)
    assert same(unpack(packed), weight.float())


@given(ROWS, COLUMNS, SEEDS)
def test_fp8_comes_back_exactly(rows: int, columns: int, seed: int) -> None:
    values, scale = draw_fp8(rows, columns, seed)
    packed = pack(values, scale)
    assert (packed.format, packed.rows, packed.columns) == ("fp8", rows, columns)
    assert same(unpack(packed), dequantize_fp8(values, scale))


@given(ROWS, st.integers(1, 10), SEEDS)
def test_mxfp4_comes_back_exactly(rows: int, blocks: int, seed: int) -> None:
    codes, scale = draw_mxfp4(rows, 32 * blocks, seed)
    packed = pack(codes, scale)
    assert (packed.format, packed.rows, packed.columns) == ("mxfp4", rows, 32 * blocks)
    assert same(unpack(packed), dequantize_mxfp4(codes, scale))


@pytest.mark.parametrize("code", range(256))
def test_every_byte_of_fp8_and_fp4_survives(code: int) -> None:
    byte = torch.full((3, 32), code, dtype=torch.uint8)
    if code % 128 != 127:
        values, scale = byte.view(E4M3), torch.full((1, 1), 130, dtype=torch.uint8).view(E8M0)
        assert same(unpack(pack(values, scale)), dequantize_fp8(values, scale))
    codes, scales = byte.view(torch.int8), torch.full((3, 2), 120, dtype=torch.uint8).view(E8M0)
    assert same(unpack(pack(codes, scales)), dequantize_mxfp4(codes, scales))


@given(st.integers(1, 40), st.integers(1, 20), SEEDS)
def test_bf16_lies_where_the_layout_says(rows: int, columns: int, seed: int) -> None:
    """Index by index, as the module's table has it; what is beyond the weight is zero."""
    weight = draw_bf16(rows, columns, seed)
    bits = weight.view(torch.int16).tolist()
    groups = -(-columns // 4)
    found = pack(weight).values.view(torch.int16).tolist()
    for place, value in enumerate(found):
        b, g, h, r, j = _digits(place, groups, 2, 16, 2)
        row, column = 16 * b + r, 4 * g + 2 * h + j
        assert value == (bits[row][column] if row < rows and column < columns else 0)


@given(st.integers(1, 40) | st.integers(120, 150), st.integers(1, 20) | st.integers(126, 131), SEEDS)
def test_fp8_lies_where_the_layout_says(rows: int, columns: int, seed: int) -> None:
    values, scale = draw_fp8(rows, columns, seed)
    codes, scales = values.view(torch.uint8).tolist(), scale.view(torch.uint8).tolist()
    packed = pack(values, scale)
    for place, value in enumerate(packed.values.tolist()):
        b, g, i, h, q, j = _digits(place, -(-columns // 4), 4, 2, 4, 2)
        row, column = 16 * b + 4 * i + q, 4 * g + 2 * h + j
        assert value == (codes[row][column] if row < rows and column < columns else 0)
    for place, value in enumerate(packed.scales.tolist()):
        b, c = _digits(place, -(-columns // 128))
        assert value == scales[16 * b // 128][c]


@given(st.integers(1, 40), st.integers(1, 3), SEEDS)
def test_mxfp4_lies_where_the_layout_says(rows: int, blocks: int, seed: int) -> None:
    columns = 32 * blocks
    values, scale = draw_mxfp4(rows, columns, seed)
    nibbles, scales = unpack_e2m1(values).tolist(), scale.view(torch.uint8).tolist()
    packed = pack(values, scale)
    for place, byte in enumerate(packed.values.tolist()):
        b, g, t = _digits(place, columns // 4, 32)
        row, column = 16 * b + t // 2, 4 * g + t % 2
        low, high = (nibbles[row][column], nibbles[row][column + 2]) if row < rows else (0, 0)
        assert byte == low | high << 4
    for place, value in enumerate(packed.scales.tolist()):
        b, c, r = _digits(place, blocks, 16)
        assert value == (scales[16 * b + r][c] if 16 * b + r < rows else 127)


def _digits(place: int, *sizes: int) -> tuple[int, ...]:
    """The index of an element, outermost first; `sizes` leave out the outermost."""
    return tuple(place // prod(sizes[at:]) % (sizes[at - 1] if at else place + 1) for at in range(len(sizes) + 1))


@given(ROWS, st.integers(1, 10), SEEDS)
def test_sizes_are_known_before_packing(rows: int, blocks: int, seed: int) -> None:
    weight = torch.randn(rows, 32 * blocks, generator=random(seed))
    encoded: dict[PackedFormat, tuple[Tensor, ...]] = {
        "bf16": (weight.bfloat16(),),
        "fp8": quantize_fp8(weight),
        "mxfp4": quantize_mxfp4(weight),
    }
    for format, parts in encoded.items():
        packed = pack(*parts)
        assert packed.format == format
        assert packed_sizes(format, rows, 32 * blocks) == (len(packed.values), len(packed.scales))


def test_a_view_is_packed_as_the_weight_it_shows() -> None:
    weight = draw_bf16(40, 33, seed=0)
    assert same(unpack(pack(weight.mT)), weight.mT.float())
    values, scale = draw_fp8(40, 33, seed=0)
    assert same(unpack(pack(values[8:24, 1:], scale)), dequantize_fp8(values, scale)[8:24, 1:])


BF16, ONES = torch.ones(3, 32, dtype=torch.bfloat16), torch.full((1, 1), 127, dtype=torch.uint8).view(E8M0)
FP4 = torch.zeros(3, 16, dtype=torch.int8)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((BF16.float(),), "float32"),
        ((BF16[0],), "a matrix"),
        ((BF16[:0],), "nothing to pack"),
        ((BF16[:, :0],), "nothing to pack"),
        ((BF16, ONES), "no scales"),
        ((BF16.to(E4M3),), "not none"),
        ((BF16.to(E4M3), ONES.float()), "not torch.float32"),
        ((BF16.to(E4M3), ONES.expand(2, 1)), r"not torch.float8_e8m0fnu \[2, 1\]"),
        ((FP4[:, :8], ONES.expand(3, 1)), "multiple of 32"),
        ((FP4, ONES), r"are torch.float8_e8m0fnu \[3, 1\]"),
    ],
)
def test_what_cannot_be_packed_is_refused(parts: tuple[Tensor, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pack(*parts)


@pytest.mark.parametrize(("values", "scales"), [(63, 1), (64, 0), (64, 2)])
def test_a_packed_weight_is_as_long_as_its_shape_says(values: int, scales: int) -> None:
    with pytest.raises(ValueError, match="must be flat uint8"):
        Packed("fp8", 16, 4, torch.zeros(values, dtype=torch.uint8), torch.zeros(scales, dtype=torch.uint8))
