"""A matrix without bias."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from narrows.ops.dtypes import through_bf16


class Linear(nn.Module):
    """x [..., inputs] -> [..., outputs]. Its weight [outputs, inputs] is not initialised.

    `rounds_inputs`: see `Network.round_inputs`.
    """

    rounds_inputs = False

    def __init__(self, inputs: int, outputs: int, *, dtype: torch.dtype, device: torch.device | str | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.read(x), self.weight)

    def read(self, x: Tensor) -> Tensor:
        """What the product sees of x."""
        return through_bf16(x) if self.rounds_inputs else x
