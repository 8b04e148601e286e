"""RMSNorm with a learned weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from narrows.ops.dtypes import wide
from narrows.ops.norm import rms_norm


class RMSNorm(nn.Module):
    """RMS norm over the last dim; its weight is float32 at least."""

    def __init__(self, dim: int, eps: float, *, dtype: torch.dtype, device: torch.device | str | None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim, dtype=wide(dtype), device=device))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
