"""The quantised formats: nearest values, power-of-two scales that never saturate, exact round trips."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from narrows.ops.quantize import (
    dequantize_fp8,
    dequantize_mxfp4,
    pack_e2m1,
    quantize_fp8,
    quantize_mxfp4,
    unpack_e2m1,
)

E8M0 = torch.float8_e8m0fnu
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
SEEDS = st.integers(0, 2**31)
# Also of blocks whose scale would lie below E8M0's smallest, 2^-127.
MAGNITUDES = st.integers(-135, 120) | st.integers(-135, -120)


@st.composite
def weights(draw: st.DrawFn, multiple_of: int = 1) -> Tensor:
    """float32 [out, in]: values of one magnitude or of many, with zeros, rows of zeros, and exact powers of two."""
    rows, columns = draw(st.integers(1, 300)), multiple_of * draw(st.integers(1, max(1, 300 // multiple_of)))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    weight = torch.randn(rows, columns, generator=generator).clamp(-8, 8)
    if draw(st.booleans()):
        spread = draw(st.integers(0, 6))
        weight *= torch.randint(-spread, spread + 1, (rows, columns), generator=generator).float().exp2()
    if draw(st.booleans()):
        weight = weight.sign() * weight.abs().log2().round().exp2()
    if draw(st.booleans()):
        weight[torch.rand(rows, columns, generator=generator) < 0.5] = 0
        weight[draw(st.integers(0, rows - 1))] = 0
    return torch.ldexp(weight, torch.tensor(draw(MAGNITUDES)))


def blocks(weight: Tensor) -> Tensor:
    return weight.view(weight.shape[0], -1, 32)


def tile_amax(weight: Tensor) -> Tensor:
    """[⌈out/128⌉, ⌈in/128⌉], one tile at a time."""
    return torch.stack([torch.stack([t.abs().max() for t in row.split(128, 1)]) for row in weight.split(128, 0)])


def smallest_scale(amax: Tensor, largest: float) -> Tensor:
    """2^⌈log2(amax / largest)⌉ by search, in float64: the first power of two that reaches; 1 where amax is 0."""
    powers = torch.arange(-127, 128, dtype=torch.float64).exp2()
    first = torch.searchsorted(powers * largest, amax.double())
    return torch.where(amax == 0, 1.0, powers[first])


def nearest(values: Tensor, grid: Tensor) -> Tensor:
    """The nearest of `grid` in magnitude, with the value's sign; of two equally near ones that at the even place."""
    distance = (values.double().abs()[..., None] - grid.double()).abs()
    even_first = torch.cat((torch.arange(0, len(grid), 2), torch.arange(1, len(grid), 2)))
    chosen = even_first[distance[..., even_first].argmin(-1)]
    return torch.copysign(grid[chosen], values)


@given(weights(multiple_of=32))
def test_mxfp4_takes_the_smallest_scale_that_does_not_saturate_and_the_nearest_value(weight: Tensor) -> None:
    codes, scale = quantize_mxfp4(weight)
    assert (codes.dtype, codes.shape) == (torch.int8, (weight.shape[0], weight.shape[1] // 2))
    assert (scale.dtype, scale.shape) == (E8M0, (weight.shape[0], weight.shape[1] // 32))
    expected = smallest_scale(blocks(weight).abs().amax(-1), 6.0)
    assert torch.equal(scale.double(), expected)
    scaled = blocks(weight).double() / expected[..., None]
    assert scaled.abs().max() <= 6
    stored = blocks(dequantize_mxfp4(codes, scale)).double() / expected[..., None]
    assert torch.equal(stored, nearest(scaled, E2M1.double()))


@given(weights())
def test_fp8_takes_the_smallest_scale_that_does_not_saturate_and_the_nearest_value(weight: Tensor) -> None:
    values, scale = quantize_fp8(weight)
    assert (values.dtype, values.shape, scale.dtype) == (torch.float8_e4m3fn, weight.shape, E8M0)
    expected = smallest_scale(tile_amax(weight), 448.0)
    assert torch.equal(scale.double(), expected)
    spread = expected.repeat_interleave(128, 0).repeat_interleave(128, 1)[: weight.shape[0], : weight.shape[1]]
    scaled = weight.double() / spread
    assert scaled.abs().max() <= 448
    grid = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()  # 0 to 448; 127 is NaN
    assert torch.equal(values.double()[0], nearest(scaled[0], grid))
    assert torch.equal(values.float(), scaled.float().to(torch.float8_e4m3fn).float())
    assert torch.equal(dequantize_fp8(values, scale), (values.double() * spread).float())


@given(st.integers(1, 40), st.integers(1, 6), SEEDS)
def test_mxfp4_values_come_back_exactly(rows: int, blocks_in_row: int, seed: int) -> None:
    """Every code under every scale; the codes themselves where a block reaches the upper half of their range."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, 32 * blocks_in_row), generator=generator, dtype=torch.uint8)
    exponents = torch.randint(0, 252, (rows, blocks_in_row), generator=generator, dtype=torch.uint8)
    full = blocks(codes % 8 > 5).any(-1)  # 4 and 6 need this scale and no smaller one
    packed, scale = pack_e2m1(codes), exponents.view(E8M0)
    weight = dequantize_mxfp4(packed, scale)
    again, scale_again = quantize_mxfp4(weight)
    assert torch.equal(dequantize_mxfp4(again, scale_again), weight)
    assert torch.equal(scale_again.view(torch.uint8)[full], exponents[full])
    assert torch.equal(blocks(unpack_e2m1(again))[full], blocks(codes)[full])
    assert torch.equal(torch.signbit(weight), codes >= 8)
    assert torch.equal(dequantize_mxfp4(packed, scale, torch.bfloat16).float(), weight)


@given(st.integers(1, 300), st.integers(1, 300), SEEDS)
def test_fp8_values_come_back_exactly(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, columns), generator=generator, dtype=torch.uint8)
    codes[codes % 128 == 127] = 0  # NaN
    exponents = torch.randint(10, 245, (-(-rows // 128), -(-columns // 128)), generator=generator, dtype=torch.uint8)
    values, scale = codes.view(torch.float8_e4m3fn), exponents.view(E8M0)
    full = tile_amax(values.float()) > 224  # there and only there no smaller scale would do
    weight = dequantize_fp8(values, scale)
    again, scale_again = quantize_fp8(weight)
    assert torch.equal(dequantize_fp8(again, scale_again), weight)
    assert torch.equal(scale_again.view(torch.uint8)[full], exponents[full])
    if full.all():
        assert torch.equal(again.view(torch.uint8), codes)
    assert torch.equal(dequantize_fp8(values, scale, torch.bfloat16).float(), weight)


@given(weights(multiple_of=32))
def test_quantising_twice_changes_nothing(weight: Tensor) -> None:
    once = dequantize_mxfp4(*quantize_mxfp4(weight))
    assert torch.equal(dequantize_mxfp4(*quantize_mxfp4(once)), once)
    once = dequantize_fp8(*quantize_fp8(weight))
    assert torch.equal(dequantize_fp8(*quantize_fp8(once)), once)


@given(st.integers(1, 260), st.integers(1, 260), SEEDS)
def test_fp8_reads_float32_scales(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-rows // 128), -(-columns // 128), generator=generator)
    weight = dequantize_fp8(values, scale)
    for row in (0, rows - 1):
        for column in (0, columns - 1):
            assert weight[row, column] == values[row, column].float() * scale[row // 128, column // 128]


@given(SEEDS)
def test_fp4_survives_fp8_while_a_tiles_scales_stay_within_two_to_the_fourteen(seed: int) -> None:
    """What lets FP4-aware training run on FP8 kernels."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(128, 128, generator=generator)
    weight *= torch.randint(0, 12, (128, 1), generator=generator).float().exp2()
    codes, scale = quantize_mxfp4(weight)
    exponents = scale.view(torch.uint8).int()
    assume(int(exponents.max() - exponents.min()) <= 14)
    exact = dequantize_mxfp4(codes, scale)
    assert torch.equal(dequantize_fp8(*quantize_fp8(exact)), exact)


def test_the_low_nibble_comes_first() -> None:
    codes = torch.tensor([[1, 15, 8, 0]], dtype=torch.uint8)
    packed = pack_e2m1(codes)
    assert packed.view(torch.uint8).tolist() == [[0xF1, 0x08]]
    assert torch.equal(unpack_e2m1(packed), codes)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_what_cannot_be_stored_is_refused(value: float) -> None:
    weight = torch.ones(130, 160)
    weight[129, 159] = value
    for quantize in (quantize_mxfp4, quantize_fp8):
        with pytest.raises(ValueError, match="not finite, or larger than"):
            quantize(weight)


def test_mxfp4_refuses_a_width_that_blocks_do_not_fill() -> None:
    with pytest.raises(ValueError, match="multiple of 32, not 48"):
        quantize_mxfp4(torch.ones(2, 48))


def test_zeros_are_zeros_under_scale_one() -> None:
    for quantize, dequantize in ((quantize_mxfp4, dequantize_mxfp4), (quantize_fp8, dequantize_fp8)):
        values, scale = quantize(torch.zeros(3, 64))
        assert not values.view(torch.uint8).any()
        assert (scale.float() == 1).all()
        assert not dequantize(values, scale).any()
