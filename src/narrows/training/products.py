"""Which units of a CPU or GPU multiply float32 matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def fast_products(wanted: bool) -> Iterator[None]:
    """Within, products of float32 matrices may be taken with shorter factors where that is faster; sums stay float32.

    BF16 on CPUs with AMX (others get oneDNN's float32 products, which on some are twice as fast as PyTorch's
    ordinary ones), TF32 on NVIDIA's GPUs.
    """
    backends: Any = torch.backends
    precisions = [(backends.cuda.matmul, "tf32")]
    if backends.mkldnn.is_available():
        precisions.append((backends.mkldnn.matmul, "bf16"))
    if not wanted:
        precisions = []
    # What was set before may be inherited, and is each setting's own afterwards.
    before = [(matmul, matmul.fp32_precision) for matmul, _ in precisions]
    for matmul, precision in precisions:
        matmul.fp32_precision = precision
    try:
        yield
    finally:
        for matmul, precision in before:
            matmul.fp32_precision = precision
