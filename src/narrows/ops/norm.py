"""RMS norm."""

from __future__ import annotations

import torch
from torch import Tensor

from narrows.ops.dtypes import wide


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps), times `weight` if there is one, over the last dim of x [..., d]; x's dtype."""
    h = x.to(wide(x.dtype))
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        h = h * weight
    return h.to(x.dtype)
