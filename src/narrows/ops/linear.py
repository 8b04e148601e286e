"""The grouped half of the low-rank output projection."""

from __future__ import annotations

import torch
from torch import Tensor


def grouped_linear(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Project each group of features by its own block of `weight` (R §2.3.1, grouped output projection).

    x [N, groups · f], weight [groups · rank, f] -> [N, groups · rank].
    """
    rows = x.shape[0]
    grouped = x.view(rows, groups, -1).transpose(0, 1)
    blocks = weight.view(groups, -1, weight.shape[-1])
    return torch.bmm(grouped, blocks.mT).transpose(0, 1).reshape(rows, -1)
