"""Which units of the CPU multiply float32 matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def fast_products(wanted: bool) -> Iterator[None]:
    """Within, products of float32 matrices may be taken in BF16 where the CPU is faster with it; sums stay float32.

    That is so with AMX. Other CPUs get oneDNN's float32 products, which on some are twice as fast as PyTorch's
    ordinary ones.
    """
    mkldnn: Any = torch.backends.mkldnn
    if not wanted or not mkldnn.is_available():
        yield
        return
    matmul = mkldnn.matmul
    before = matmul.fp32_precision  # which may be inherited, and is this setting's own afterwards
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
