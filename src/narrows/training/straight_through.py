"""Training for the precision that will be shipped: FP4 experts with a straight-through gradient (R §5.2.1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from narrows.model.moe import Experts
from narrows.model.network import Network
from narrows.ops.quantize import dequantize_mxfp4, quantize_mxfp4


@contextmanager
@torch.no_grad()
def mxfp4_experts(network: Network) -> Iterator[None]:
    """Inside, the experts' weights are what MXFP4 makes of them; behind, they are the unrounded ones again.

    Gradients computed inside are those at the rounded weights; an optimiser step behind applies them to the
    unrounded ones. That is the straight-through estimator.
    """
    weights = [
        weight for module in network.modules() if isinstance(module, Experts) for weight in (module.w13, module.w2)
    ]
    unrounded = [weight.detach().clone() for weight in weights]
    for weight in weights:
        rounded = dequantize_mxfp4(*quantize_mxfp4(weight.flatten(0, 1)), weight.dtype)
        weight.copy_(rounded.view_as(weight))
    try:
        with torch.enable_grad():
            yield
    finally:
        for weight, original in zip(weights, unrounded, strict=True):
            weight.copy_(original)
