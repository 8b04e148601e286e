"""A pass over 16,384 tokens, and single tokens after it: speed and peak memory, beside transformers.

Both read the same float32 weights and take the prompt in chunks of 1,024, with a cache; every run is a process of its
own, the two in turns. `python -m benchmarks.bench_long_pass` records the medians.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import measured_model
from benchmarks.record import record

TOKENS, CHUNK, DECODED = 16_384, 1_024, 32
THREADS = 2
RUNS = 3

Step = Callable[[torch.Tensor], torch.Tensor]


def narrows_step(directory: Path) -> Step:
    """Our network with a fresh history: tokens [n] -> logits [1, vocab] of the last."""
    from narrows.checkpoints.load import load_network
    from narrows.engine.prefill import new_history
    from narrows.model.network import positions_of

    network = load_network(directory)
    history = new_history(network)

    def step(tokens: torch.Tensor) -> torch.Tensor:
        segments = [history.segment(tokens.shape[0])]
        return network.logits(network(tokens, positions_of(segments), segments, history)[-1:])

    return step


def transformers_step(directory: Path) -> Step:
    """The same with transformers' network and cache."""
    from transformers import AutoModelForCausalLM, DynamicCache

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    cache = DynamicCache(config=model.config)

    def step(tokens: torch.Tensor) -> torch.Tensor:
        return model(tokens[None], past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0]

    return step


STEPS = {"narrows": narrows_step, "transformers": transformers_step}


def measure(name: str, directory: Path) -> dict[str, Any]:
    """One run, in this process."""
    torch.set_num_threads(THREADS)
    step = STEPS[name](directory)
    loaded = _peak_bytes()
    tokens = torch.randint(2, measured_model.BENCH.vocab_size, (TOKENS,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        start = time.perf_counter()
        for chunk in tokens.split(CHUNK):
            last = step(chunk)
        prefilled = time.perf_counter()
        for _ in range(DECODED):
            last = step(last.argmax(-1))
        decoded = time.perf_counter()
    return {
        "prefill_tokens_per_s": TOKENS / (prefilled - start),
        "decode_tokens_per_s": DECODED / (decoded - prefilled),
        "peak_bytes": _peak_bytes(),
        "loaded_bytes": loaded,
    }


def main() -> None:
    """All runs, in turns; then the medians are recorded."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in STEPS}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        measured_model.write(directory)
        for _ in range(RUNS):
            for name in STEPS:
                command = [sys.executable, "-m", "benchmarks.bench_long_pass", name, str(directory)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(name, runs[name][-1], flush=True)
    medians = {
        name: {key: statistics.median(run[key] for run in results) for key in results[0]}
        for name, results in runs.items()
    }
    ours, theirs = medians["narrows"], medians["transformers"]
    mib = 2**20
    rows = [
        ["prefill, tokens/s", *(f"{m['prefill_tokens_per_s']:,.0f}" for m in (ours, theirs))],
        [f"decode after {TOKENS:,} tokens, tokens/s", *(f"{m['decode_tokens_per_s']:.1f}" for m in (ours, theirs))],
        ["peak memory of the process, MiB", *(f"{m['peak_bytes'] / mib:,.0f}" for m in (ours, theirs))],
        [
            "of which above the loaded model, MiB",
            *(f"{(m['peak_bytes'] - m['loaded_bytes']) / mib:,.0f}" for m in (ours, theirs)),
        ],
    ]
    record(
        "long_pass",
        {
            "runs": runs,
            "medians": medians,
            "table": {
                "columns": [f"{TOKENS:,} tokens in chunks of {CHUNK:,}", "narrows", "transformers"],
                "rows": rows,
            },
        },
        notes=f"121 M random parameters in float32, {THREADS} threads, batch 1, medians of {RUNS} runs in turns.",
    )


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
    else:
        main()
