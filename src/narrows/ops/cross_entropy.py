"""The cross-entropy of a linear head, without ever holding all its logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from narrows.ops import native
from narrows.ops.dtypes import wide
from narrows.ops.tiles import within_budget

IGNORED = -100
"""The target of a row that has none."""

# Every chunk passes over the whole [vocab, d] gradient: with fewer rows that would cost more than their products.
_LEAST_ROWS = 256


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Σ over rows of -log softmax(weight · x)[target], in nats; rows whose target is IGNORED count nothing.

    x [R, d], weight [vocab, d], targets int64 [R] -> a float32 scalar (float64 in float64). Gradients are taken on
    the way, chunk by chunk, so that logits [R, vocab] never exist; the weight's is summed in float32 at least.
    """
    result: Tensor = _LinearCrossEntropy.apply(x, weight, targets)
    return result


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        dtype = wide(x.dtype)
        total = torch.zeros((), dtype=dtype, device=x.device)
        by_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        by_weight = torch.zeros_like(weight, dtype=dtype) if ctx.needs_input_grad[1] else None
        rows = max(_LEAST_ROWS, within_budget(4 * weight.shape[0], x.device))
        buffer = x.new_empty(min(rows, x.shape[0]), weight.shape[0])
        for start in range(0, x.shape[0], rows):
            part = slice(start, start + rows)
            logits = torch.mm(x[part], weight.mT, out=buffer[: x[part].shape[0]]).to(dtype)
            part_total, gradient = _loss_and_gradient(logits, targets[part])
            total += part_total
            gradient = gradient.to(x.dtype)
            if by_x is not None:
                torch.mm(gradient, weight, out=by_x[part])
            if by_weight is not None and by_weight.dtype == x.dtype:
                by_weight.addmm_(gradient.mT, x[part])
            elif by_weight is not None:
                by_weight += gradient.mT @ x[part]
        ctx.save_for_backward(by_x, None if by_weight is None else by_weight.to(weight.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        by_x, by_weight = (None if by is None else by * gradient.to(by.dtype) for by in ctx.saved_tensors)
        return by_x, by_weight, None


def _loss_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss of logits [R, vocab], and its gradient, which takes their place."""
    if native.serves(logits):
        losses = logits.new_empty(logits.shape[0])
        native.kernels.cross_entropy(logits, targets.contiguous(), losses)
        return losses.sum(), logits
    mask = (targets != IGNORED)[:, None]
    target = targets[:, None].where(mask, 0)
    logits -= logits.amax(-1, keepdim=True)
    of_target = logits.gather(1, target)
    sizes = logits.exp_().sum(-1, keepdim=True)
    loss = ((sizes.log() - of_target) * mask).sum()
    return loss, logits.mul_(mask / sizes).scatter_add_(1, target, -mask.to(logits.dtype))
