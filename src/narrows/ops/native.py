"""The CPU kernels of native/, where the package was built with a compiler."""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from narrows.ops import _native as kernels
except ImportError:  # installed without a compiler: the references do all the work
    kernels = None  # type: ignore[assignment]

__all__ = ["available", "kernels", "plain", "rows", "serves"]


def available() -> bool:
    """Whether there are kernels, whatever for."""
    return kernels is not None


def serves(*tensors: Tensor | None) -> bool:
    """Whether the kernels can compute with these: float32 on a CPU."""
    return available() and all(
        tensor is None or (tensor.dtype == torch.float32 and tensor.device.type == "cpu") for tensor in tensors
    )


def plain(tensor: Tensor) -> Tensor:
    """`tensor` as kernels take it: contiguous, and without a gradient's record."""
    return tensor.detach().contiguous()


def rows(tensor: Tensor) -> Tensor:
    """A contiguous [..., d] in the same memory as the rows [N, d] that kernels take."""
    return torch.atleast_2d(tensor).flatten(0, -2)
