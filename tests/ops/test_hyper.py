"""mHC: Sinkhorn's matrices are doubly stochastic, and the streams mix as the equation says."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from narrows.ops.hyper import hyper_post, hyper_pre, sinkhorn

seeds = st.integers(0, 2**31)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(seeds, st.integers(1, 5))
def test_sinkhorn_is_doubly_stochastic(seed: int, streams: int) -> None:
    matrices = sinkhorn(draw(seed, 6, streams, streams), iterations=200, eps=1e-12)
    ones = torch.ones(6, streams, dtype=torch.float64)
    torch.testing.assert_close(matrices.sum(-1), ones, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(matrices.sum(-2), ones, rtol=1e-6, atol=1e-6)
    assert (matrices >= 0).all()


@given(seeds)
def test_streams_mix_as_in_equation_3(seed: int) -> None:
    streams, out = draw(seed, 5, 4, 7), draw(seed + 1, 5, 7)
    post, comb = draw(seed + 2, 5, 4), draw(seed + 3, 5, 4, 4)
    expected = torch.stack(
        [post[:, k, None] * out + sum(comb[:, j, k, None] * streams[:, j] for j in range(4)) for k in range(4)], dim=1
    )
    torch.testing.assert_close(hyper_post(streams, out, post, comb), expected)


@given(seeds)
def test_the_input_does_not_depend_on_the_streams_common_size(seed: int) -> None:
    """mHC's weights come from the normalised streams, so larger streams are mixed alike."""
    fn, base, scale = draw(seed, 24, 28), draw(seed + 1, 24), draw(seed + 2, 3)
    streams = draw(seed + 3, 5, 4, 7)
    options = {"iterations": 20, "eps": 1e-6, "norm_eps": 1e-30}
    once = hyper_pre(streams, fn, base, scale, **options)
    tenfold = hyper_pre(10 * streams, fn, base, scale, **options)
    torch.testing.assert_close(tenfold[0], 10 * once[0])
    torch.testing.assert_close(tenfold[1:], once[1:])
