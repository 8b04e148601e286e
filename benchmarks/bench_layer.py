"""One layer of V4-Flash's true shape, in the official precision: how near decoding comes to what memory allows.

Random codes and scales, 3.6 GB of them, most of it experts; every token chooses six of 256. Measured: the time of a
step of one row, against the bytes that it must read and the bandwidth that this machine's memory gives two threads.
`python -m benchmarks.bench_layer` records the medians.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import record
from narrows.economics.measure import read_bandwidth
from narrows.economics.traffic import bytes_per_token
from narrows.engine.paged_history import PagedHistory
from narrows.model.config import LayerKind, ModelConfig
from narrows.model.native_network import NativeNetwork
from narrows.model.precision import Format, Precision, weight_format
from narrows.model.presets import FLASH
from narrows.model.segments import positions_of
from narrows.ops.packed import Packed, packed_sizes

THREADS = 2
PAST, STEPS = 4_096, 48
RUNS = 5

LAYER: ModelConfig = FLASH.model_copy(
    update={
        "num_hidden_layers": 1,
        "layer_types": (LayerKind.CSA,),
        "num_hash_layers": 0,
        "num_nextn_predict_layers": 0,
        "vocab_size": 1_024,
    }
)


def network() -> NativeNetwork:
    """The layer, an embedding and a small head, of random numbers about as large as trained ones."""
    c, source = LAYER, torch.Generator().manual_seed(0)
    d, heads = c.hidden_size, c.num_attention_heads * c.head_dim

    def matrix(name: str, rows: int, columns: int) -> Packed:
        match weight_format(name, Precision.OFFICIAL):
            case Format.MXFP4:
                values, scales = packed_sizes("mxfp4", rows, columns)
                codes = torch.randint(0, 256, (values,), dtype=torch.uint8, generator=source)
                # Codes are 1.5 on average, and 4,096 of them are added up.
                return Packed("mxfp4", rows, columns, codes, torch.full((scales,), 127 - 6, dtype=torch.uint8))
            case Format.FP8:
                values, scales = packed_sizes("fp8", rows, columns)
                codes = torch.randint(0, 64, (values,), dtype=torch.uint8, generator=source)
                codes |= torch.randint(0, 2, (values,), dtype=torch.uint8, generator=source) << 7
                return Packed("fp8", rows, columns, codes, torch.full((scales,), 127 - 6, dtype=torch.uint8))
            case _:
                values, _ = packed_sizes("bf16", rows, columns)
                numbers = torch.randn(values // 2, generator=source).mul_(columns**-0.5).bfloat16()
                return Packed("bf16", rows, columns, numbers.view(torch.uint8), torch.empty(0, dtype=torch.uint8))

    matrices: dict[str, Packed] = {}

    def add(name: str, rows: int, columns: int) -> None:
        matrices[name] = matrix(name, rows, columns)

    at = "layers.0."
    add(at + "attn.wq_a.weight", c.q_lora_rank, d)
    add(at + "attn.wq_b.weight", heads, c.q_lora_rank)
    add(at + "attn.wkv.weight", c.head_dim, d)
    add(at + "attn.wo_a.weight", c.o_groups * c.o_lora_rank, heads // c.o_groups)
    add(at + "attn.wo_b.weight", d, c.o_groups * c.o_lora_rank)
    for prefix, dim in (("attn.compressor.", c.head_dim), ("attn.indexer.compressor.", c.index_head_dim)):
        add(at + prefix + "wkv.weight", 2 * dim, d)
        add(at + prefix + "wgate.weight", 2 * dim, d)
    add(at + "attn.indexer.wq_b.weight", c.index_n_heads * c.index_head_dim, c.q_lora_rank)
    add(at + "attn.indexer.weights_proj.weight", c.index_n_heads, d)
    add(at + "ffn.gate.weight", c.n_routed_experts, d)
    experts = [f"{at}ffn.experts.{number}.{{}}" for number in range(c.n_routed_experts)]
    for expert in (*experts, at + "ffn.shared_experts.{}.weight"):
        add(expert.format("w1"), c.moe_intermediate_size, d)
        add(expert.format("w2"), d, c.moe_intermediate_size)
        add(expert.format("w3"), c.moe_intermediate_size, d)
    add("head.weight", c.vocab_size, d)
    return NativeNetwork(c, Precision.OFFICIAL, matrices, _arrays(source))


def _arrays(source: torch.Generator) -> dict[str, Tensor]:
    c, d = LAYER, LAYER.hidden_size
    mixes = (2 + c.hc_mult) * c.hc_mult

    def hyper(name: str, rows: int, scales: int) -> dict[str, Tensor]:
        fn = torch.randn(rows, c.hc_mult * d, generator=source) * 0.02
        return {f"{name}.fn": fn, f"{name}.base": torch.zeros(rows), f"{name}.scale": torch.ones(scales)}

    at = "layers.0."
    ones = {
        "attn_norm.weight": d,
        "ffn_norm.weight": d,
        "attn.q_norm.weight": c.q_lora_rank,
        "attn.kv_norm.weight": c.head_dim,
        "attn.compressor.norm.weight": c.head_dim,
        "attn.indexer.compressor.norm.weight": c.index_head_dim,
    }
    return {
        "embed.weight": torch.randn(c.vocab_size, d, generator=source).bfloat16(),
        "norm.weight": torch.ones(d),
        **{at + name: torch.ones(size) for name, size in ones.items()},
        **hyper(at + "hc_attn", mixes, 3),
        **hyper(at + "hc_ffn", mixes, 3),
        **hyper("hc_head", c.hc_mult, 1),
        at + "attn.attn_sink": torch.zeros(c.num_attention_heads),
        at + "attn.compressor.ape": torch.zeros(c.csa_ratio, 2 * c.head_dim),
        at + "attn.indexer.compressor.ape": torch.zeros(c.csa_ratio, 2 * c.index_head_dim),
        at + "ffn.gate.bias": torch.zeros(c.n_routed_experts),
    }


def measure(layer: NativeNetwork) -> float:
    """Seconds of a decode step behind PAST tokens: the median of STEPS."""
    history = PagedHistory(LAYER, slots=1, blocks=PAST // 128 + 2, precision=Precision.OFFICIAL)
    history.bind(0, range(PAST // 128 + 2))
    tokens = torch.randint(2, LAYER.vocab_size, (PAST + STEPS,), generator=torch.Generator().manual_seed(1))
    for chunk in tokens[:PAST].split(512):
        segments = [history.segment(len(chunk))]
        layer(chunk, positions_of(segments), segments, history)
    times = []
    for token in tokens[PAST:].split(1):
        segments = [history.segment(1)]
        start = time.perf_counter()
        logits = layer.logits(layer(token, positions_of(segments), segments, history))
        times.append(time.perf_counter() - start)
    assert bool(logits.isfinite().all())
    return statistics.median(times)


def main() -> None:
    """Bandwidth and layer in turns; then the medians are recorded."""
    torch.set_num_threads(THREADS)
    layer = network()
    size = bytes_per_token(LAYER, Precision.OFFICIAL, PAST)
    runs: list[dict[str, Any]] = []
    for _ in range(RUNS):
        bandwidth, seconds = read_bandwidth(THREADS), measure(layer)
        runs.append({"bandwidth": bandwidth, "seconds": seconds, "share": size / seconds / bandwidth})
        print(runs[-1], flush=True)
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    row = [
        f"{size / 1e6:,.0f}",
        f"{medians['seconds'] * 1e3:.2f}",
        f"{size / medians['seconds'] / 1e9:.1f}",
        f"{medians['bandwidth'] / 1e9:.1f}",
        f"{medians['share']:.0%}",
    ]
    columns = ["MB a token", "ms a token", "GB/s", "GB/s that memory gives", "share"]
    record(
        "layer",
        {"runs": runs, "medians": medians, "bytes": size, "table": {"columns": columns, "rows": [row]}},
        notes=(
            f"A CSA layer of V4-Flash, official precision, random weights, one row behind {PAST:,} tokens, {THREADS} "
            f"threads; medians of {RUNS} runs in turns with the measurement of the bandwidth."
        ),
    )


if __name__ == "__main__":
    main()
