"""SwiGLU experts over packed tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from narrows.ops.dtypes import wide


def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """silu(min(gate, limit)) · clamp(up, ±limit); any shape, result in gate's dtype."""
    dtype = wide(gate.dtype)
    return (F.silu(gate.to(dtype).clamp(max=limit)) * up.to(dtype).clamp(-limit, limit)).to(gate.dtype)


def experts(x: Tensor, weights: Tensor, chosen: Tensor, w13: Tensor, w2: Tensor, limit: float) -> Tensor:
    """Σ_k weights[:, k] · expert_{chosen[:, k]}(x), tokens grouped by expert.

    x [N, d], weights [N, k], chosen int64 [N, k], w13 [E, 2·width, d] (gate rows first), w2 [E, d, width] -> [N, d].
    """
    rows, k = chosen.shape
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    counts = flat.bincount(minlength=w13.shape[0]).tolist()
    # unbind, not indexing: the gradient of one unbind is one stack, that of E indexings E full-size tensors.
    parts = []
    for tokens, up_weight, down_weight in zip(x[order // k].split(counts), w13.unbind(), w2.unbind(), strict=True):
        if tokens.shape[0]:
            gate, up = F.linear(tokens, up_weight).chunk(2, dim=-1)
            parts.append(F.linear(swiglu(gate, up, limit), down_weight))
    by_expert = torch.cat(parts)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
    by_token = by_expert[back].view(rows, k, -1)
    return torch.einsum("nkd,nk->nd", by_token.to(weights.dtype), weights).to(x.dtype)
