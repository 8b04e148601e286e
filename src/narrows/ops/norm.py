"""RMS norm."""

from __future__ import annotations

import torch
from torch import Tensor

from narrows.ops.dtypes import wide


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps), times `weight` if there is one, over the last dim of x [..., d]; x's dtype."""
    h = x.to(wide(x.dtype))
    h = h * inverse_rms(h, eps)
    if weight is not None:
        h = h * weight
    return h.to(x.dtype)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x²) + eps) over the last dim, kept with size 1; through the norm, whose gradient is one pass."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.rsqrt(length * length / x.shape[-1] + eps)
