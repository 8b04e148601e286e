"""What computes an op: the kernels of one instruction set, or the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from narrows.ops import native

kernels: Any = native.kernels
INSTRUCTION_SETS: list[str] = kernels.instruction_sets() if native.available() else []

Draw = Callable[..., Tensor]
Outcome = tuple[list[Tensor], list[Tensor]]
"""Results and gradients."""


def normal(seed: int) -> Draw:
    """Normal float32 tensors of given shapes."""
    random = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=random)


def misaligned(tensor: Tensor) -> Tensor:
    """The same numbers at odd addresses."""
    size = tensor.numel() * tensor.element_size()
    if not size:
        return tensor
    memory = torch.zeros(size + 1, dtype=torch.uint8).numpy()
    memory[1:] = tensor.flatten().clone().view(torch.uint8).numpy()
    return torch.frombuffer(memory, dtype=tensor.dtype, offset=1).view(tensor.shape)


@contextmanager
def computed(by: str) -> Iterator[None]:
    """Within, by the kernels of an instruction set, or by the `reference`, as where there are no kernels."""
    before = kernels.instruction_set()
    with pytest.MonkeyPatch.context() as patch:
        if by == "reference":
            patch.setattr(native, "kernels", None)
        else:
            kernels.use(by)
        yield
    kernels.use(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within, so many; behind it one, as in all tests."""
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(1)


def assert_close(got: Outcome, wanted: Outcome) -> None:
    """As close as float32 can be to what float64 gave, by the size of what each tensor holds."""
    for ours, exact in zip((*got[0], *got[1]), (*wanted[0], *wanted[1]), strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == exact.shape
        if exact.numel():
            assert (ours.double() - exact).abs().max() <= 2e-5 * (1 + exact.abs().max())
