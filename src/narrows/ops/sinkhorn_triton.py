"""`sinkhorn` of hyper.py for GPUs: all its steps in one kernel, where PyTorch would launch a hundred."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton import language as tl

_ROWS = 64  # of a program


def serves(*tensors: Tensor) -> bool:
    """Whether the kernels can compute with these, logits or a gradient [N, S, S]: float32, four streams, some rows."""
    return all(tensor.dtype == torch.float32 and tensor.shape[0] > 0 and tensor.shape[1] == 4 for tensor in tensors)


def sinkhorn(logits: Tensor, iterations: int, eps: float) -> Tensor:
    """logits [N, 4, 4] -> doubly stochastic [N, 4, 4], as hyper.sinkhorn's reference computes it."""
    logits = logits.contiguous()
    result = torch.empty_like(logits)
    rows = logits.shape[0]
    _forward[(triton.cdiv(rows, _ROWS),)](logits, result, rows, eps, STEPS=2 * iterations - 1, ROWS=_ROWS)
    return result


def sinkhorn_gradient(logits: Tensor, iterations: int, eps: float, gradient: Tensor) -> Tensor:
    """The logits' gradient [N, 4, 4], given the result's; the steps are taken again, and kept until it is done."""
    logits, gradient = logits.contiguous(), gradient.contiguous()
    result = torch.empty_like(logits)
    rows, steps = logits.shape[0], 2 * iterations - 1
    kept = logits.new_empty(steps - 1, *logits.shape)
    _backward[(triton.cdiv(rows, _ROWS),)](logits, gradient, result, kept, rows, eps, STEPS=steps, ROWS=_ROWS)
    return result


@triton.jit
def _places(rows, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    place = row[:, None] * 16 + tl.arange(0, 16)[None, :]
    return place, (row < rows)[:, None]


@triton.jit
def _softmax(logits, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    matrix = tl.reshape(logits, (ROWS, 4, 4))
    matrix = tl.exp(matrix - tl.max(matrix, axis=2, keep_dims=True))
    return matrix / tl.sum(matrix, axis=2, keep_dims=True)


@triton.jit
def _forward(logits, result, rows, eps, STEPS: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    place, there = _places(rows, ROWS)
    matrix = _softmax(tl.load(logits + place, there, 0.0), ROWS) + eps
    matrix = matrix / (tl.sum(matrix, axis=1, keep_dims=True) + eps)
    for _ in range(STEPS // 2):  # a step over rows, a step over columns
        matrix = matrix / (tl.sum(matrix, axis=2, keep_dims=True) + eps)
        matrix = matrix / (tl.sum(matrix, axis=1, keep_dims=True) + eps)
    tl.store(result + place, tl.reshape(matrix, (ROWS, 16)), there)


@triton.jit
def _backward(logits, upper, result, kept, rows, eps, STEPS: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    place, there = _places(rows, ROWS)
    size = tl.cast(rows, tl.int64) * 16
    softmax = _softmax(tl.load(logits + place, there, 0.0), ROWS)
    matrix = softmax + eps
    matrix = matrix / (tl.sum(matrix, axis=1, keep_dims=True) + eps)
    for step in range(STEPS // 2):
        tl.store(kept + 2 * step * size + place, tl.reshape(matrix, (ROWS, 16)), there)
        matrix = matrix / (tl.sum(matrix, axis=2, keep_dims=True) + eps)
        tl.store(kept + (2 * step + 1) * size + place, tl.reshape(matrix, (ROWS, 16)), there)
        matrix = matrix / (tl.sum(matrix, axis=1, keep_dims=True) + eps)
    tl.debug_barrier()  # what one thread kept another may read
    gradient = tl.reshape(tl.load(upper + place, there, 0.0), (ROWS, 4, 4))
    # What a step gave is what it was given, over its sums: m = k / (Σk + eps), so by k: (by m - Σ(by m · m)) / sums.
    for back in range(STEPS // 2):
        step = STEPS // 2 - 1 - back
        before = tl.reshape(tl.load(kept + (2 * step + 1) * size + place, there, 1.0), (ROWS, 4, 4))
        sums = tl.sum(before, axis=1, keep_dims=True) + eps
        gradient = (gradient - tl.sum(gradient * before / sums, axis=1, keep_dims=True)) / sums
        before = tl.reshape(tl.load(kept + 2 * step * size + place, there, 1.0), (ROWS, 4, 4))
        sums = tl.sum(before, axis=2, keep_dims=True) + eps
        gradient = (gradient - tl.sum(gradient * before / sums, axis=2, keep_dims=True)) / sums
    before = softmax + eps
    sums = tl.sum(before, axis=1, keep_dims=True) + eps
    gradient = (gradient - tl.sum(gradient * before / sums, axis=1, keep_dims=True)) / sums
    gradient = (gradient - tl.sum(gradient * softmax, axis=2, keep_dims=True)) * softmax
    tl.store(result + place, tl.reshape(gradient, (ROWS, 16)), there)
