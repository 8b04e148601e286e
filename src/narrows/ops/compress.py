"""The compressors' weighted mean."""

from __future__ import annotations

import torch
from torch import Tensor


def compress(kv: Tensor, gate: Tensor) -> Tensor:
    """Per channel, a softmax over the window's gates weights the window's kv (R eqs. 10-11, 22-23).

    kv, gate [windows, tokens, c]; a gate of -inf leaves its token out -> [windows, c].
    """
    return (kv * torch.softmax(gate, dim=1)).sum(dim=1)
