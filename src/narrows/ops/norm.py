"""RMS norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from narrows.ops import native
from narrows.ops.dtypes import wide


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps), times `weight` if there is one, over the last dim of x [..., d]; x's dtype."""
    result: Tensor = _RMSNorm.apply(x, weight, eps)
    return result


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x²) + eps) over the last dim, kept with size 1."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.rsqrt(length * length / x.shape[-1] + eps)


class _RMSNorm(torch.autograd.Function):
    """With its gradient written out: a third of the passes over memory that recorded operations would take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        if native.serves(x, weight):
            plain = native.plain(x)
            result, inverse = torch.empty_like(plain), plain.new_empty(x.shape[:-1])
            native.kernels.rms_norm(
                native.rows(plain),
                None if weight is None else native.plain(weight),
                eps,
                native.rows(result),
                inverse.flatten(),
            )
            ctx.save_for_backward(x, weight, inverse[..., None])
            return result.to(x.dtype)
        h = x.to(wide(x.dtype))
        inverse = inverse_rms(h, eps)
        ctx.save_for_backward(x, weight, inverse)
        h = h * inverse
        if weight is not None:
            h.mul_(weight)
        return h.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upper: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        if native.serves(x, weight, upper):
            by_x = native.result_like(x)
            by_weight = native.result_like(weight) if weight is not None and ctx.needs_input_grad[1] else None
            native.kernels.rms_norm_gradient(
                native.rows(native.plain(x)),
                None if weight is None else native.plain(weight),
                inverse.flatten(),
                native.rows(native.plain(upper)),
                native.rows(by_x),
                by_weight,
            )
            return by_x.to(x.dtype), None if by_weight is None else by_weight.to(weight.dtype), None
        h = x.to(wide(x.dtype))
        gradient = upper.to(h.dtype)
        by_weight = None
        if weight is not None:
            if ctx.needs_input_grad[1]:
                by_weight = torch.atleast_2d((gradient * h).mul_(inverse)).flatten(0, -2).sum(0)
            gradient = gradient * weight
        along = (gradient * h).sum(-1, keepdim=True) * inverse.pow(3) / -x.shape[-1]
        return (gradient * inverse).addcmul_(h, along).to(x.dtype), by_weight, None
