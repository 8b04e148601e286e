"""The CPU kernels of native/, where the package was built with a compiler."""

from __future__ import annotations

import atexit
import os

import torch
from torch import Tensor

from narrows.errors import UsageError
from narrows.ops.row_format import FP4Keys, FP8Entries, RowFormat

_absence = "the package was installed without a compiler; install one, and narrows again"
try:
    import narrows.ops._native as kernels
except ModuleNotFoundError:  # the references do all the work
    kernels = None  # type: ignore[assignment]
except ImportError as error:  # made for another system, or broken
    kernels = None  # type: ignore[assignment]
    _absence = f"the compiled module cannot be loaded: {error}"

if kernels is not None:
    atexit.register(kernels.rest)
    if _wanted := os.environ.get("NARROWS_KERNELS"):
        try:
            kernels.use(_wanted)
        except ValueError as error:
            raise UsageError(f"NARROWS_KERNELS: {error}.") from None

__all__ = ["available", "kernels", "plain", "result_like", "row_format", "rows", "serves", "why_none"]


def available() -> bool:
    """Whether there are kernels, whatever for."""
    return kernels is not None


def why_none() -> str | None:
    """Why there are no kernels; None where there are."""
    return None if available() else _absence


def serves(*tensors: Tensor | None) -> bool:
    """Whether the kernels can compute with these: float32 on a CPU, or bfloat16, which `plain` makes float32."""
    return available() and all(
        tensor is None or (tensor.dtype in (torch.float32, torch.bfloat16) and tensor.device.type == "cpu")
        for tensor in tensors
    )


def plain(tensor: Tensor) -> Tensor:
    """`tensor` as kernels take it: float32, contiguous, and without a gradient's record."""
    if tensor.dtype == torch.float32 and not tensor.requires_grad and tensor.is_contiguous():
        return tensor  # as it mostly is where a single token's time counts
    return tensor.detach().to(torch.float32).contiguous()


def result_like(tensor: Tensor) -> Tensor:
    """Room for a kernel's result of this shape: float32, contiguous."""
    return torch.empty(tensor.shape, dtype=torch.float32)


def row_format(stored: RowFormat) -> tuple[str, int, int]:
    """How kernels are told of a history's row format: its name, its features, and how many of them are RoPE's."""
    match stored:
        case FP8Entries():
            return "fp8_entries", stored.features, stored.rope
        case FP4Keys():
            return "fp4_keys", stored.features, 0
        case _:
            return ("bf16" if stored.dtype == torch.bfloat16 else "float32"), stored.width, 0


def rows(tensor: Tensor) -> Tensor:
    """A contiguous [..., d] in the same memory as the rows [N, d] that kernels take."""
    return tensor if tensor.dim() == 2 else torch.atleast_2d(tensor).flatten(0, -2)
