"""RoPE turns pairs by the position's angle, leaves the rest alone, and its inverse turns back."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from narrows.ops.rope import rope, rope_angles, rope_frequencies

positions = st.lists(st.integers(0, 1_048_575), min_size=1, max_size=5).map(torch.tensor)


@given(positions, st.integers(0, 2**31))
def test_the_inverse_turns_back(where: torch.Tensor, seed: int) -> None:
    x = torch.randn(len(where), 3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    angles = rope_angles(where, rope_frequencies(8, 10_000.0))
    turned = rope(x, *angles)
    assert torch.equal(turned[..., :4], x[..., :4])
    torch.testing.assert_close(rope(turned, *angles, inverse=True), x, rtol=1e-6, atol=1e-6)


@given(positions)
def test_adjacent_channels_are_a_pair(where: torch.Tensor) -> None:
    frequencies = rope_frequencies(4, 100.0)
    x = torch.tensor([1.0, 0.0, 0.0, 2.0], dtype=torch.float64).expand(len(where), 4)
    for row, position in zip(rope(x, *rope_angles(where, frequencies)), where.tolist(), strict=True):
        first, second = (float(torch.tensor(position, dtype=torch.float32) * f) for f in frequencies)
        expected = [math.cos(first), math.sin(first), -2 * math.sin(second), 2 * math.cos(second)]
        torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)
