"""This machine as a chip: its memory, how fast that is read, and its fastest products."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

NAME = "this-machine"

_READ = 2**30
"""Bytes of a pass over memory: more than any cache holds."""

_PASSES = 8

_SIDE = 2048
"""Rows and columns of the products."""


@dataclass(frozen=True)
class Machine:
    """What was measured, with so many threads: bytes, bytes a second, operations a second in BF16."""

    threads: int
    memory: int
    bandwidth: float
    products: float

    def toml(self, day: str) -> str:
        """As a file of chips. What it costs is not measured: add `hourly` or `price`."""
        return (
            f"# This machine, measured {day} with {self.threads} threads. Add hourly = ... or price = ... (dollars), "
            "and watts.\n"
            "[[chips]]\n"
            f'name = "{NAME}"\n'
            'maker = "measured"\n'
            'kind = "cpu"\n'
            f"memory_gb = {self.memory / 1e9:.1f}\n"
            f"bandwidth_gbs = {self.bandwidth / 1e9:.1f}\n"
            f"bf16_tflops = {self.products / 1e12:.4f}\n"
            "node = 1\n"
            'facts = "narrows plan --measure: the best of several passes over 1 GiB, and of products in BF16"\n'
        )


def measure(threads: int | None = None) -> Machine:
    """Measure with so many threads, or as many as PyTorch uses; a few seconds and 1 GiB. What else runs disturbs."""
    used = threads or torch.get_num_threads()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(used, memory, read_bandwidth(used), product_rate(used))


def read_bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read from memory: the best pass over 1 GiB.

    Three reductions are tried, since which one PyTorch has made fast enough depends on the chip.
    """
    with _threads(threads):
        numbers = torch.ones(_READ // 4)
        whole = numbers.view(torch.int32)
        passes = (lambda: torch.dot(numbers, numbers), whole.max, whole.view(torch.int64).sum)
        return _READ / min(_best(one) for one in passes)


def product_rate(threads: int) -> float:
    """Floating-point operations a second of the fastest large matrix product in BF16 that PyTorch has here."""
    with _threads(threads):
        a, b = torch.randn(2, _SIDE, _SIDE).bfloat16()
        return 2 * _SIDE**3 / _best(lambda: a @ b)


def _best(one: Callable[[], object]) -> float:
    """Seconds of the quickest call of several."""
    best = float("inf")
    for _ in range(_PASSES):
        start = time.perf_counter()
        one()
        best = min(best, time.perf_counter() - start)
    return best


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
