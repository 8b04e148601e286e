"""What a machine allows: the bytes that decoding a token must read, and how fast memory gives them."""

from __future__ import annotations

import re
import time

import torch

from narrows.checkpoints.match import slots
from narrows.model.config import LayerKind, ModelConfig
from narrows.model.network import Network
from narrows.model.precision import Precision, cache_formats, row_bytes, stored_bytes, weight_format

_READ = 2**30
_PASSES = 8

_LOOKED_UP = re.compile(r"^embed\.weight$|\.tid2eid$")
_EXPERT = re.compile(r"\.ffn\.experts\.(\d+)\.")


def read_bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read from memory: the best pass over 1 GiB, which no cache holds.

    Three reductions are tried, since which one PyTorch has made fast enough depends on the chip.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        numbers = torch.ones(_READ // 4)
        whole = numbers.view(torch.int32)
        passes = (lambda: torch.dot(numbers, numbers), whole.max, whole.view(torch.int64).sum)
        best = float("inf")
        for one in passes:
            for _ in range(_PASSES):
                start = time.perf_counter()
                one()
                best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return _READ / best


def product_rate(threads: int) -> float:
    """Floating-point operations a second of the fastest large matrix product in BF16 that PyTorch has here."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows, inner, columns = 2048, 2048, 2048
        a, b = (torch.randn(*shape).bfloat16() for shape in ((rows, inner), (inner, columns)))
        best = float("inf")
        for _ in range(_PASSES):
            start = time.perf_counter()
            a @ b
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2 * rows * inner * columns / best


def bytes_per_token(config: ModelConfig, precision: Precision, past: int) -> int:
    """Bytes that decoding one token behind `past` others must read: weights and cache, in this precision.

    The compressors' unfinished windows, a small part of the cache, are left out. ValueError where the precision cannot
    hold the model.
    """
    return weight_bytes(config, precision) + cache_bytes_read(config, precision, past)


def weight_bytes(config: ModelConfig, precision: Precision, rows: int = 1) -> int:
    """Bytes of the weights that a step of so many rows needs: the experts that are chosen, of tables a row each, and
    everything else once. Rows are taken to choose their experts independently.

    As the official layout stores them, scales included. The MTP block is no part of it.
    """
    experts = config.n_routed_experts
    chosen = experts * (1 - (1 - config.num_experts_per_tok / experts) ** rows)
    total = 0.0
    for name, slot in slots(Network(config, device="meta")).items():
        expert = _EXPERT.search(name)
        if name.startswith("mtp.") or (expert and int(expert[1])):
            continue
        shape = (rows, *slot.shape[1:]) if _LOOKED_UP.search(name) else slot.shape
        # Experts are all of one size: the first one stands for those chosen.
        total += stored_bytes(weight_format(name, precision), shape) * (chosen if expert else 1)
    return round(total)


def cache_bytes_read(config: ModelConfig, precision: Precision, past: int) -> int:
    """Bytes of the cached rows that one token behind `past` others attends to, and of the index keys it looks at."""
    entry, key = map(row_bytes, cache_formats(config, torch.float32, precision))
    total = 0
    for kind in config.layer_types:
        total += min(past, config.sliding_window - 1) * entry
        if kind is LayerKind.HCA:
            total += past // config.hca_ratio * entry
        elif kind is LayerKind.CSA:
            entries = past // config.csa_ratio
            total += min(entries, config.index_topk) * entry
            total += entries * key if entries > config.index_topk else 0  # or all are attended to, unseen
    return total
