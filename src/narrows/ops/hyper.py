"""Manifold-constrained hyper-connections (mHC, R §2.2): S residual streams, mixed by doubly stochastic matrices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from narrows.ops.dtypes import wide
from narrows.ops.norm import inverse_rms


def hyper_pre(
    streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, *, iterations: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What a sub-layer reads, and how its output will be spread and the streams mixed (R eqs. 3-8).

    streams [N, S, d], fn [(2 + S)·S, S·d], base [(2 + S)·S], scale [3]
    -> input [N, d] in the streams' dtype; post [N, S] and comb [N, S, S], float32 at least.
    """
    count = streams.shape[1]
    mixes = _mixes(streams, fn, norm_eps)
    pre, post, comb = mixes.split([count, count, count * count], dim=-1)
    pre_base, post_base, comb_base = base.split([count, count, count * count])
    pre = torch.sigmoid(pre * scale[0] + pre_base) + eps
    post = 2 * torch.sigmoid(post * scale[1] + post_base)
    comb = sinkhorn((comb * scale[2] + comb_base).view(-1, count, count), iterations=iterations, eps=eps)
    return _collapse(streams, pre), post, comb


def hyper_post(streams: Tensor, out: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """New stream k = post_k · out + Σ_j comb[j, k] · stream_j (R eq. 3). streams [N, S, d], out [N, d] -> [N, S, d]."""
    # One product: the sub-layer's output is one more stream to mix.
    weights = torch.cat((comb.mT, post[:, :, None]), dim=2)
    return torch.bmm(weights.to(streams.dtype), torch.cat((streams, out[:, None, :]), dim=1))


def hyper_collapse(streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, *, eps: float, norm_eps: float) -> Tensor:
    """The head's collapse of the streams into one. streams [N, S, d], fn [S, S·d], base [S], scale [1] -> [N, d]."""
    pre = torch.sigmoid(_mixes(streams, fn, norm_eps) * scale + base) + eps
    return _collapse(streams, pre)


def sinkhorn(logits: Tensor, *, iterations: int, eps: float) -> Tensor:
    """Doubly stochastic matrices from logits [N, S, S] (R eq. 8): a softmax over rows, then columns and rows in turn.

    Ends on columns, as the checkpoints' reference does; every division is guarded by eps.
    """
    # Rows of the batch innermost: sums over 4 strided planes instead of over 4 neighbours, some 30 times faster.
    matrix = torch.softmax(logits.permute(1, 2, 0).contiguous(), dim=1) + eps
    matrix = matrix / (matrix.sum(dim=0, keepdim=True) + eps)
    for _ in range(iterations - 1):
        matrix = matrix / (matrix.sum(dim=1, keepdim=True) + eps)
        matrix = matrix / (matrix.sum(dim=0, keepdim=True) + eps)
    return matrix.permute(2, 0, 1).contiguous()


def _mixes(streams: Tensor, fn: Tensor, norm_eps: float) -> Tensor:
    """fn · RMSNorm(flattened streams): the norm is one factor a row, so it is applied after the product."""
    flat = streams.flatten(1).to(wide(streams.dtype))
    return F.linear(flat, fn) * inverse_rms(flat, norm_eps)


def _collapse(streams: Tensor, pre: Tensor) -> Tensor:
    return torch.bmm(pre[:, None, :], streams.to(pre.dtype)).squeeze(1).to(streams.dtype)
