"""The CPU kernels of native/, where the package was built with a compiler."""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from narrows.ops import _native as kernels
except ImportError:  # installed without a compiler: the references do all the work
    kernels = None  # type: ignore[assignment]

__all__ = ["kernels", "plain", "serves"]


def serves(*tensors: Tensor | None) -> bool:
    """Whether the kernels can compute with these: float32 on a CPU."""
    return kernels is not None and all(
        tensor is None or (tensor.dtype == torch.float32 and tensor.device.type == "cpu") for tensor in tensors
    )


def plain(tensor: Tensor) -> Tensor:
    """`tensor` as kernels take it: contiguous, and without a gradient's record."""
    return tensor.detach().contiguous()
