"""The dtype in which norms, softmaxes, gates and sums are taken."""

from __future__ import annotations

import torch


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32 for everything up to float32, float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
