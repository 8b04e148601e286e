"""SwiGLU experts over packed tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from narrows.ops import native
from narrows.ops.dtypes import through_bf16, wide

# In training: oneDNN makes a kernel for every new number of rows, which takes as long as the product itself.
_PADDED = 64


def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """silu(min(gate, limit)) · clamp(up, ±limit); any shape, result in gate's dtype."""
    result: Tensor = _SwiGLU.apply(gate, up, limit)
    return result


def experts(
    x: Tensor,
    weights: Tensor,
    chosen: Tensor,
    w13: Tensor,
    w2: Tensor,
    limit: float,
    *,
    rounds_inputs: bool = False,
) -> Tensor:
    """Σ_k weights[:, k] · expert_{chosen[:, k]}(x), tokens grouped by expert.

    x [N, d], weights [N, k], chosen int64 [N, k], w13 [E, 2·width, d] (gate rows first), w2 [E, d, width] -> [N, d].
    `rounds_inputs`: what the products read, x and what is between them, is rounded to BF16 first; its gradient is
    taken as if it were not.
    """
    result: Tensor = _Experts.apply(x, weights, chosen, w13, w2, limit, rounds_inputs)
    return result


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.limit = limit
        return _swiglu(gate, up, limit)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        by_gate, by_up = (torch.empty_like(half, memory_format=torch.contiguous_format) for half in (gate, up))
        _swiglu_gradients(gate, up, gradient, ctx.limit, by_gate, by_up)
        return by_gate, by_up, None


class _Experts(torch.autograd.Function):
    """Sorted by expert, computed, and back again; gradients of all experts' weights go into one tensor each."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        chosen: Tensor,
        w13: Tensor,
        w2: Tensor,
        limit: float,
        rounds_inputs: bool,
    ) -> Tensor:
        rows, k = chosen.shape
        training = any(ctx.needs_input_grad)
        order, place, counts = _sorted(chosen, w13.shape[0], _PADDED if training and x.device.type == "cpu" else 1)
        read = through_bf16 if rounds_inputs else _as_it_is
        tokens = read(x).index_select(0, order // k)
        width = w2.shape[2]
        hidden = x.new_empty(len(order), 2 * width)
        out = torch.empty_like(tokens)
        for expert, part in _parts(counts):
            torch.mm(tokens[part], w13[expert].mT, out=hidden[part])
        gate, up = hidden.split(width, dim=-1)
        inner = read(_swiglu(gate, up, limit))
        for expert, part in _parts(counts):
            torch.mm(inner[part], w2[expert].mT, out=out[part])
        by_token = out.index_select(0, place).view(rows, k, x.shape[1])
        if training:
            ctx.save_for_backward(weights, w13, w2, order, place, tokens, hidden, by_token)
            ctx.counts, ctx.limit, ctx.read = counts, limit, read
        # A sum of k terms a token is no work for a product: N tiny ones cost five times as much.
        result = torch.zeros(rows, x.shape[1], dtype=weights.dtype, device=x.device)
        for weight, choice in zip(weights.unbind(1), by_token.to(weights.dtype).unbind(1), strict=True):
            result.addcmul_(weight[:, None], choice)
        return result.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, Tensor, Tensor, None, None]:
        weights, w13, w2, order, place, tokens, hidden, by_token = ctx.saved_tensors
        rows, k, d = by_token.shape
        by_weights = torch.linalg.vecdot(by_token.to(weights.dtype), gradient[:, None].to(weights.dtype))
        in_order = weights.new_zeros(len(order)).index_copy_(0, place, weights.flatten())  # 0 for what only fills up
        by_out = (gradient.index_select(0, order // k) * in_order[:, None]).to(gradient.dtype)
        width = w2.shape[2]
        by_inner, inner = hidden.new_empty(len(order), width), hidden.new_empty(len(order), width)
        by_hidden, by_tokens = torch.empty_like(hidden), torch.empty_like(tokens)
        by_w13, by_w2 = torch.zeros_like(w13), torch.zeros_like(w2)
        for expert, part in _parts(ctx.counts):
            torch.mm(by_out[part], w2[expert], out=by_inner[part])
        (gate, up), (by_gate, by_up) = hidden.split(width, dim=-1), by_hidden.split(width, dim=-1)
        _swiglu_gradients(gate, up, by_inner, ctx.limit, by_gate, by_up, inner)
        inner = ctx.read(inner)
        for expert, part in _parts(ctx.counts):
            torch.mm(by_out[part].mT, inner[part], out=by_w2[expert])
            torch.mm(by_hidden[part].mT, tokens[part], out=by_w13[expert])
            torch.mm(by_hidden[part], w13[expert], out=by_tokens[part])
        return by_tokens.index_select(0, place).view(rows, k, d).sum(1), by_weights, None, by_w13, by_w2, None, None


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _sorted(chosen: Tensor, experts: int, multiple: int) -> tuple[Tensor, Tensor, list[int]]:
    """The choices [N, k], numbered as they lie, in the order of their experts -> numbers [M]; where each choice went
    [N · k]; how many rows each expert has, a multiple of `multiple`: fillers are choice 0 once more."""
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    counts = flat.bincount(minlength=experts)
    padded = (counts + multiple - 1) // multiple * multiple
    shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)
    places = torch.arange(len(order), device=order.device) + shift[flat[order]]
    place = torch.empty_like(order).scatter_(0, order, places)
    filled = order.new_zeros(int(padded.sum())).scatter_(0, places, order)
    return filled, place, padded.tolist()


def _parts(counts: list[int]) -> Iterator[tuple[int, slice]]:
    """Every expert that has tokens, and which of the sorted rows they are."""
    start = 0
    for expert, count in enumerate(counts):
        if count:
            yield expert, slice(start, start + count)
        start += count


def _swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    if native.serves(gate, up):
        result = native.result_like(gate)
        native.kernels.swiglu(*_rows(gate, up), limit, native.rows(result))
        return result.to(gate.dtype)
    dtype = wide(gate.dtype)
    return F.silu(gate.to(dtype).clamp(max=limit)).mul_(up.to(dtype).clamp(-limit, limit)).to(gate.dtype)


def _swiglu_gradients(
    gate: Tensor,
    up: Tensor,
    gradient: Tensor,
    limit: float,
    by_gate: Tensor,
    by_up: Tensor,
    result: Tensor | None = None,
) -> None:
    """Write the gradients of `gate` and `up` [..., width], and into `result`, if it is there, what swiglu gave.

    `by_gate` and `by_up`: contiguous, or the halves of one tensor.
    """
    if native.serves(gate, up, gradient):
        upper = native.rows(native.plain(gradient))
        if gate.dtype == torch.float32:
            native.kernels.swiglu_gradient(*_rows(gate, up), limit, upper, *_rows(by_gate, by_up), result)
            return
        wide_gate, wide_up, wide_result = map(native.result_like, (gate, up, gate))
        places = native.rows(wide_gate), native.rows(wide_up), native.rows(wide_result)
        native.kernels.swiglu_gradient(*_rows(gate, up), limit, upper, *places)
        by_gate.copy_(wide_gate)
        by_up.copy_(wide_up)
        if result is not None:
            result.copy_(wide_result)
        return
    dtype = wide(gate.dtype)
    gradient = gradient.to(dtype)
    clamped_gate, clamped_up = gate.to(dtype).clamp(max=limit), up.to(dtype).clamp(-limit, limit)
    sigmoid = clamped_gate.sigmoid()
    silu = clamped_gate * sigmoid
    # silu' = sigmoid · (1 + gate · (1 - sigmoid)) = sigmoid + silu - silu · sigmoid
    slope = torch.addcmul(sigmoid, silu, 1 - sigmoid)
    if result is not None:
        result.copy_(silu * clamped_up)
    by_gate.copy_((gradient * clamped_up).mul_(slope).mul_(gate <= limit))
    by_up.copy_(silu.mul_(gradient).mul_(up.abs() <= limit))


def _rows(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Both as [N, width], rows equally far apart: in the same memory where the two are contiguous, or one's halves."""
    if gate.dtype == torch.float32 and gate.dim() == 2 and gate.stride() == up.stride() and gate.stride(1) == 1:
        return gate.detach(), up.detach()
    return native.rows(native.plain(gate)), native.rows(native.plain(up))
