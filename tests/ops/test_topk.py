"""top_k: the highest scores, the lower index of equals, -1 where nothing may be chosen."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from narrows.ops.topk import top_k

few_values = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0])


@given(st.lists(few_values, min_size=1, max_size=20), st.integers(1, 8))
def test_ties_go_to_the_lower_index(scores: list[float], k: int) -> None:
    best_first = sorted((i for i, score in enumerate(scores) if score > -math.inf), key=lambda i: (-scores[i], i))
    expected = sorted(best_first[:k])
    assert top_k(torch.tensor(scores), k).tolist() == expected + [-1] * (k - len(expected))


@given(st.integers(0, 2**31))
def test_rows_are_independent(seed: int) -> None:
    scores = torch.randint(0, 4, (3, 5, 17), generator=torch.Generator().manual_seed(seed)).float()
    rows = torch.stack([top_k(row, 6) for row in scores.flatten(0, 1)])
    assert torch.equal(top_k(scores, 6).flatten(0, 1), rows)
