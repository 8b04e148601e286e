"""sample: greedy takes the lower of equals; draws follow the softmax and repeat with the seed."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from narrows.ops.sample import sample


@given(st.lists(st.sampled_from([-1.0, 0.0, 3.0]), min_size=1, max_size=12))
def test_greedy_takes_the_lower_of_equals(logits: list[float]) -> None:
    assert sample(torch.tensor([logits]), 0.0).item() == logits.index(max(logits))


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, -torch.inf])
    draws = sample(logits.expand(40_000, 4), 0.8, torch.Generator().manual_seed(1))
    shares = draws.bincount(minlength=4) / len(draws)
    torch.testing.assert_close(shares, torch.softmax(logits / 0.8, -1), rtol=0, atol=0.01)
    assert shares[3] == 0


@given(st.integers(0, 2**31), st.floats(0.1, 4.0))
def test_a_seed_repeats(seed: int, temperature: float) -> None:
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(seed + 1))
    first, second = (sample(logits, temperature, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(first, second)
