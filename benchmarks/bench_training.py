"""Training steps of the `small` preset: tokens per second, beside transformers.

Both draw the same 16 sequences of 512 tokens, in float32: forward, backward, AdamW. Ours packs them as segments. Beside
that, ours as its recipes train: with fast products, with Muon, and in BF16. Every run is a process of its own, all in
turns; steps are timed once memory has been had, as it is in all but the first seconds of a training.
`python -m benchmarks.bench_training` records the medians.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.record import record
from narrows.model.count import count
from narrows.model.presets import SMALL

# transformers has no MTP block; and at 128 entries a sequence neither side selects.
CONFIG = SMALL.model_copy(update={"num_nextn_predict_layers": 0, "index_topk": 256})
SEQUENCES, LENGTH = 16, 512
THREADS = 2
WARM_UP, STEPS, RUNS = 4, 3, 3

Step = Callable[[torch.Tensor], float]


def transformers_step() -> Step:
    """One step of transformers' model on tokens [sequences, length + 1] -> the loss."""
    from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

    model = DeepseekV4ForCausalLM(DeepseekV4Config(**CONFIG.to_dict())).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(tokens: torch.Tensor) -> float:
        optimizer.zero_grad()
        logits = model(tokens[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def narrows_step(*, muon: bool, fast: bool = False, dtype: torch.dtype = torch.float32) -> Step:
    """The same of ours."""
    from narrows.model.network import Network, positions_of
    from narrows.model.segments import Segment
    from narrows.ops.cross_entropy import linear_cross_entropy
    from narrows.training.allocator import keep_large_allocations
    from narrows.training.masters import Masters
    from narrows.training.optimizers import make_optimizers
    from narrows.training.products import fast_products

    keep_large_allocations()
    network = Network(CONFIG, dtype=dtype).train()
    network.initialise()
    masters = Masters(network)
    optimizers: tuple[torch.optim.Optimizer, ...]
    if muon:
        optimizers = make_optimizers(masters.parameters, CONFIG, 1e-3)
    else:
        optimizers = (torch.optim.AdamW(masters.parameters.values(), lr=1e-3, fused=True),)

    def step(tokens: torch.Tensor) -> float:
        for optimizer in optimizers:
            optimizer.zero_grad()
        segments = [Segment(LENGTH)] * SEQUENCES
        with fast_products(fast):
            streams = network(tokens[:, :-1].flatten(), positions_of(segments), segments)
            loss = linear_cross_entropy(network.collapse(streams), network.head.weight, tokens[:, 1:].flatten())
            loss = loss / (SEQUENCES * LENGTH)
            loss.backward()
        masters.take_gradients()
        for optimizer in optimizers:
            optimizer.step()
        masters.give_weights()
        return loss.item()

    return step


STEPS_OF: dict[str, Callable[[], Step]] = {
    "transformers": transformers_step,
    "narrows": lambda: narrows_step(muon=False),
    "narrows, fast products": lambda: narrows_step(muon=False, fast=True),
    "narrows, fast products, Muon": lambda: narrows_step(muon=True, fast=True),
    "narrows, BF16": lambda: narrows_step(muon=False, fast=True, dtype=torch.bfloat16),
    "narrows, BF16, Muon": lambda: narrows_step(muon=True, fast=True, dtype=torch.bfloat16),
}


def product_error() -> float:
    """The largest relative error of a fast product: some 1e-7 where it is taken in float32, 1e-3 in BF16."""
    from narrows.training.products import fast_products

    x, y = torch.rand(512, 256), torch.rand(256, 512)
    with fast_products(True):
        ours = x @ y
    exact = x.double() @ y.double()
    return float(((ours - exact) / exact).abs().max())


def measure(name: str) -> dict[str, Any]:
    """One run, in this process: WARM_UP steps, then STEPS timed ones."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    step = STEPS_OF[name]()
    tokens = torch.randint(CONFIG.vocab_size, (SEQUENCES, LENGTH + 1))
    for _ in range(WARM_UP):
        step(tokens)
    start = time.perf_counter()
    losses = [step(tokens) for _ in range(STEPS)]
    seconds = time.perf_counter() - start
    return {"tokens_per_s": STEPS * SEQUENCES * LENGTH / seconds, "losses": losses}


def main() -> None:
    """Run all in turns, each in a process of its own; record medians and ratios."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in STEPS_OF}
    for _ in range(RUNS):
        for name in STEPS_OF:
            command = [sys.executable, "-m", "benchmarks.bench_training", name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs[name].append(json.loads(output.splitlines()[-1]))
            print(name, runs[name][-1], flush=True)
    speeds = {name: statistics.median(run["tokens_per_s"] for run in found) for name, found in runs.items()}
    counted = count(CONFIG)
    error = product_error()
    rows = [[name, speed, speed / speeds["transformers"]] for name, speed in speeds.items()]
    record(
        "training",
        {
            "table": {"columns": ["training, 16 × 512 tokens a step", "tokens/s", "× transformers"], "rows": rows},
            "medians": speeds,
            "runs": runs,
            "fast_product_error": error,
        },
        notes=(
            f"{counted.total / 1e6:.1f}M parameters, {counted.active / 1e6:.1f}M active with the head; AdamW and "
            f"float32 where not named; medians of {RUNS} runs in turns. Fast products are within {error:.0e} of exact "
            f"ones, which is {'float32' if error < 1e-5 else 'BF16'}'s rounding."
        ),
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
