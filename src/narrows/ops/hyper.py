"""Manifold-constrained hyper-connections (mHC, R §2.2): S residual streams, mixed by doubly stochastic matrices."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from narrows.ops import native
from narrows.ops.norm import inverse_rms
from narrows.ops.tiles import CACHED


def hyper_pre(
    streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, *, iterations: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What a sub-layer reads, and how its output will be spread and the streams mixed (R eqs. 3-8).

    streams [N, S, d], fn [(2 + S)·S, S·d], base [(2 + S)·S], scale [3]
    -> input [N, d] in the streams' dtype; post [N, S] and comb [N, S, S], float32 at least.
    """
    count = streams.shape[1]
    input_, mixes = _read(streams, fn, base[:count], scale[0], eps, norm_eps)
    post, comb = mixes.split([count, count * count], dim=-1)
    post_base, comb_base = base[count:].split([count, count * count])
    strengths: Tensor = _Strengths.apply(post * scale[1] + post_base)
    comb = sinkhorn((comb * scale[2] + comb_base).view(-1, count, count), iterations=iterations, eps=eps)
    return input_, strengths, comb


def hyper_post(streams: Tensor, out: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """New stream k = post_k · out + Σ_j comb[j, k] · stream_j (R eq. 3). streams [N, S, d], out [N, d] -> [N, S, d]."""
    result: Tensor = _Post.apply(streams, out, post, comb)
    return result


def hyper_collapse(streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, *, eps: float, norm_eps: float) -> Tensor:
    """The head's collapse of the streams into one. streams [N, S, d], fn [S, S·d], base [S], scale [1] -> [N, d]."""
    return _read(streams, fn, base, scale[0], eps, norm_eps)[0]


def sinkhorn(logits: Tensor, *, iterations: int, eps: float) -> Tensor:
    """Doubly stochastic matrices from logits [N, S, S] (R eq. 8): a softmax over rows, then columns and rows in turn.

    Ends on columns, as the checkpoints' reference does; every division is guarded by eps.
    """
    result: Tensor = _Sinkhorn.apply(logits, iterations, eps)
    return result


class _Sinkhorn(torch.autograd.Function):
    """Rows of the batch lie innermost: sums over 4 strided planes instead of over 4 neighbours, some 30 times faster.

    Only the logits are kept; the gradient takes the steps again.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, iterations: int, eps: float) -> Tensor:
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(logits)
            ctx.iterations, ctx.eps = iterations, eps
        if _native_serves(logits):
            result = native.result_like(logits)
            native.kernels.sinkhorn(native.plain(logits), iterations, eps, result)
            return result.to(logits.dtype)
        on_gpu = _gpu_sinkhorn(logits)
        if on_gpu is not None:
            return on_gpu.sinkhorn(logits, iterations, eps)
        matrix = _softmax(logits) + eps
        for step in range(2 * iterations - 1):
            matrix.mul_(_inverse_sums(matrix, step, eps))
        return matrix.permute(2, 0, 1).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (logits,) = ctx.saved_tensors
        if _native_serves(logits, gradient):
            by_logits = native.result_like(logits)
            native.kernels.sinkhorn_gradient(
                native.plain(logits), ctx.iterations, ctx.eps, native.plain(gradient), by_logits
            )
            return by_logits.to(logits.dtype), None, None
        on_gpu = _gpu_sinkhorn(logits, gradient)
        if on_gpu is not None:
            return on_gpu.sinkhorn_gradient(logits, ctx.iterations, ctx.eps, gradient), None, None
        softmax = _softmax(logits)
        matrix, steps = softmax + ctx.eps, []
        for step in range(2 * ctx.iterations - 1):
            inverse = _inverse_sums(matrix, step, ctx.eps)
            matrix = matrix * inverse
            steps.append((matrix, inverse))
        gradient = gradient.permute(1, 2, 0).clone(memory_format=torch.contiguous_format)
        scratch = torch.empty_like(gradient)
        for step, (matrix, inverse) in reversed(list(enumerate(steps))):
            along = torch.mul(gradient, matrix, out=scratch).sum(dim=step % 2, keepdim=True)
            gradient.sub_(along).mul_(inverse)
        along = torch.mul(gradient, softmax, out=scratch).sum(dim=1, keepdim=True)
        gradient.sub_(along).mul_(softmax)
        return gradient.permute(2, 0, 1).contiguous(), None, None


def _gpu_sinkhorn(*tensors: Tensor) -> Any:
    """The module of kernels that serves these tensors on a GPU, if there is one."""
    if not all(tensor.is_cuda for tensor in tensors):
        return None
    kernels = _triton()
    return kernels if kernels is not None and kernels.serves(*tensors) else None


@cache
def _triton() -> Any:
    """sinkhorn_triton.py; None where PyTorch came without Triton."""
    try:
        from narrows.ops import sinkhorn_triton
    except ImportError:
        return None
    return sinkhorn_triton


def _softmax(logits: Tensor) -> Tensor:
    """[N, S, S] -> [S, S, N], over the second dim of both."""
    return torch.softmax(logits.permute(1, 2, 0).contiguous(), dim=1)


def _inverse_sums(matrix: Tensor, step: int, eps: float) -> Tensor:
    """1 / sums over columns (dim 0, even steps) or rows (dim 1) of [S, S, N]."""
    return matrix.sum(dim=step % 2, keepdim=True).add_(eps).reciprocal_()


def _read(
    streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor]:
    """Mixes = fn · RMSNorm(flattened streams); the first S of them weight the streams' sum, the others are handed on.

    streams [N, S, d], fn [S + R, S·d], base [S], scale [] -> sum [N, d], other mixes [N, R].
    """
    result: tuple[Tensor, Tensor] = _Read.apply(streams, fn, base, scale, eps, norm_eps)
    return result


class _Read(torch.autograd.Function):
    """The streams are the largest tensor of a block: they and their gradient are passed over a cached part at a time,
    and the norm, one factor a row, is applied behind the product."""

    @staticmethod
    def forward(
        ctx: Any, streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, eps: float, norm_eps: float
    ) -> tuple[Tensor, Tensor]:
        rows, count, d = streams.shape
        mixes = fn.new_empty(rows, fn.shape[0])
        inverse = fn.new_empty(rows, 1)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(streams, fn, base, scale, mixes, inverse)
            ctx.eps = eps
        if fn.dtype == torch.float32 and _native_serves(streams, fn, base, scale):
            out = native.result_like(streams[:, 0])
            native.kernels.hyper_read(
                native.plain(streams),
                native.plain(fn),
                native.plain(base),
                scale.item(),
                eps,
                norm_eps,
                out,
                mixes,
                inverse.flatten(),
            )
            return out.to(streams.dtype), mixes[:, count:]
        out = streams.new_empty(rows, d)
        for part in _parts(streams):
            h = streams[part].to(fn.dtype)
            flat = h.flatten(1)
            inverse[part] = inverse_rms(flat, norm_eps)
            mixes[part] = F.linear(flat, fn).mul_(inverse[part])
            weights = torch.sigmoid(mixes[part, :count] * scale + base) + eps
            out[part] = torch.bmm(weights[:, None], h).squeeze(1)
        return out, mixes[:, count:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: Tensor, by_others: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None]:
        streams, fn, base, scale, mixes, inverse = ctx.saved_tensors
        _, count, d = streams.shape
        by_streams = torch.empty_like(streams, dtype=fn.dtype, memory_format=torch.contiguous_format)
        if fn.dtype == torch.float32 and _native_serves(streams, fn, by_out, by_others):
            scaled, by_pre = torch.empty_like(mixes), mixes.new_empty(mixes.shape[0], count)
            plain = native.plain(streams)
            native.kernels.hyper_read_gradient(
                plain,
                native.plain(fn),
                native.plain(base),
                scale.item(),
                ctx.eps,
                mixes,
                inverse.flatten(),
                native.plain(by_out),
                native.plain(by_others),
                by_streams,
                scaled,
                by_pre,
            )
            by_fn = scaled.mT @ plain.flatten(1)
            return by_streams.to(streams.dtype), by_fn, by_pre.sum(0), (by_pre * mixes[:, :count]).sum(), None, None
        by_fn = torch.zeros_like(fn)
        by_mixes = torch.empty_like(mixes)
        by_mixes[:, count:] = by_others
        sigmoid = torch.sigmoid(mixes[:, :count] * scale + base)
        for part in _parts(streams):
            h = streams[part].to(fn.dtype)
            flat = h.flatten(1)
            upper = by_out[part].to(fn.dtype)
            by_weights = torch.bmm(h, upper[:, :, None]).squeeze(2)
            by_mixes[part, :count] = by_weights.mul_(sigmoid[part]).mul_(1 - sigmoid[part])
            scaled = by_mixes[part].clone()
            scaled[:, :count] *= scale
            along = torch.linalg.vecdot(scaled, mixes[part])[:, None] * inverse[part].square() / -(count * d)
            scaled *= inverse[part]
            by_fn.addmm_(scaled.mT, flat)
            torch.mm(scaled, fn, out=by_streams[part].flatten(1)).addcmul_(flat, along)
            by_streams[part].addcmul_((sigmoid[part] + ctx.eps)[:, :, None], upper[:, None])
        by_pre = by_mixes[:, :count]
        return by_streams.to(streams.dtype), by_fn, by_pre.sum(0), (by_pre * mixes[:, :count]).sum(), None, None


class _Strengths(torch.autograd.Function):
    """2 · sigmoid of logits [N, S]. PyTorch's own sigmoid gives the last rows of a batch other bits than the first."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        if _native_serves(logits):
            result = native.result_like(logits)
            native.kernels.hyper_strengths(native.plain(logits), result)
            result = result.to(logits.dtype)
        else:
            result = 2 * torch.sigmoid(logits)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        return gradient * result * (1 - result / 2)


class _Post(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, streams: Tensor, out: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(streams, out, post, comb)
        if _native_serves(streams, out, post, comb):
            result = native.result_like(streams)
            native.kernels.hyper_post(
                native.plain(streams), native.plain(out), native.plain(post), native.plain(comb), result
            )
            return result.to(streams.dtype)
        result = torch.empty_like(streams, memory_format=torch.contiguous_format)
        dtype = streams.dtype
        for part in _parts(streams):
            torch.bmm(comb[part].mT.to(dtype), streams[part], out=result[part])
            result[part].addcmul_(post[part, :, None].to(dtype), out[part, None])
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        streams, out, post, comb = ctx.saved_tensors
        dtype = streams.dtype
        if _native_serves(streams, out, post, comb, gradient):
            by_streams, by_out, by_post, by_comb = map(native.result_like, (streams, out, post, comb))
            native.kernels.hyper_post_gradient(
                native.plain(streams),
                native.plain(out),
                native.plain(post),
                native.plain(comb),
                native.plain(gradient),
                by_streams,
                by_out,
                by_post,
                by_comb,
            )
            return by_streams.to(dtype), by_out.to(dtype), by_post, by_comb
        by_streams, by_out, by_post, by_comb = (
            torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (streams, out, post, comb)
        )
        for part in _parts(streams):
            upper = gradient[part]
            torch.bmm(comb[part].to(dtype), upper, out=by_streams[part])
            torch.bmm(post[part, None].to(dtype), upper, out=by_out[part, None])
            by_post[part] = torch.bmm(upper, out[part, :, None]).squeeze(2)
            by_comb[part] = torch.bmm(streams[part], upper.mT)
        return by_streams, by_out, by_post, by_comb


def _native_serves(*tensors: Tensor) -> bool:
    """Kernels know four streams, which is what every published model has."""
    return native.serves(*tensors) and tensors[0].shape[1] == 4


def _parts(streams: Tensor) -> Iterator[slice]:
    """Runs of rows [N, S, d] that a CPU's cache holds; elsewhere all of them."""
    rows = streams.shape[0]
    step = max(1, CACHED // streams[0].numel()) if streams.device.type == "cpu" and rows else max(1, rows)
    for start in range(0, rows, step):
        yield slice(start, start + step)
