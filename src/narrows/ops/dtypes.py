"""The dtype in which norms, softmaxes, gates and sums are taken, and BF16 in it."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32 for everything up to float32, float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def through_bf16(x: Tensor) -> Tensor:
    """x rounded to BF16, to nearest with ties to even, in its own dtype."""
    return x.to(torch.bfloat16).to(x.dtype)
