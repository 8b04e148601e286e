"""The engine beside transformers: prefill and decode of 512 to 65,536 tokens, and the memory that they take.

Both read the same float32 weights and take the prompt in chunks of 1,024; every run is a process of its own, the two in
turns. `python -m benchmarks.bench_engine` records the medians.
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
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import measured_model
from benchmarks.record import record

if TYPE_CHECKING:
    from narrows.model.forward import Forward

LENGTHS = {512: 5, 4_096: 3, 16_384: 3, 65_536: 1}
"""Tokens of a prompt, and how many runs each side gets: the peer's longest takes minutes."""
CHUNK, DECODED = 1_024, 32
THREADS = 2

Timed = tuple[float, float, float]
"""When the prompt was begun and done, and when the last token came."""
Run = Callable[[list[int], int], Timed]
"""A prompt, and how many tokens are to be decoded behind it, are worked on."""


def run_narrows(directory: Path) -> Run:
    """Our engine over the network in float32."""
    from narrows.checkpoints.load import load_network

    return run_engine(load_network(directory))


def run_engine(network: Forward) -> Run:
    """Our engine, with one request at a time; no drafts, which nobody could guess of random weights."""
    from narrows.engine.core import Core
    from narrows.engine.limits import Limits
    from narrows.engine.request import SamplingParameters
    from narrows.engine.scheduler import Policy
    from narrows.engine.sequence import Drawn, Request

    limits = Limits(memory=1 << 30, slots=1, drafts=0, policy=Policy(rows=CHUNK))
    core = Core(network, None, limits)
    ends = {network.config.eos_token_id: -100.0}  # a text must go on for its tokens to be timed

    def run(prompt: list[int], decoded: int) -> Timed:
        parameters = SamplingParameters(max_tokens=decoded + 1, logit_bias=ends)
        start = time.perf_counter()
        core.submit(Request(tuple(prompt), parameters))
        times = []
        while not core.idle:
            drawn = any(isinstance(event, Drawn) for event in core.step())
            if drawn:
                times.append(time.perf_counter())
        return start, times[0], times[-1]

    return run


def run_transformers(directory: Path) -> Run:
    """transformers' network and cache."""
    from transformers import AutoModelForCausalLM, DynamicCache

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def run(prompt: list[int], decoded: int) -> Timed:
        cache = DynamicCache(config=model.config)

        def step(tokens: torch.Tensor) -> torch.Tensor:
            return model(tokens[None], past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0]

        with torch.inference_mode():
            start = time.perf_counter()
            for chunk in torch.tensor(prompt).split(CHUNK):
                last = step(chunk)
            prefilled = time.perf_counter()
            for _ in range(decoded):
                last = step(last.argmax(-1))
            return start, prefilled, time.perf_counter()

    return run


RUNS = {"narrows": run_narrows, "transformers": run_transformers}


def measure(name: str, directory: Path, length: int) -> dict[str, Any]:
    """One run, in this process."""
    torch.set_num_threads(THREADS)
    run = RUNS[name](directory)
    source = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, measured_model.BENCH.vocab_size, (length + 64,), generator=source).tolist()
    run(tokens[-64:], DECODED)
    loaded = _peak_bytes()
    start, prefilled, end = run(tokens[:length], DECODED)
    return {
        "prefill_tokens_per_s": length / (prefilled - start),
        "decode_tokens_per_s": DECODED / (end - prefilled),
        "above_loaded_bytes": _peak_bytes() - loaded,
    }


def main() -> None:
    """All runs, in turns; then the medians are recorded."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {str(n): {name: [] for name in RUNS} for n in LENGTHS}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        measured_model.write(directory)
        for length, count in LENGTHS.items():
            for _ in range(count):
                for name in RUNS:
                    command = [sys.executable, "-m", "benchmarks.bench_engine", name, str(directory), str(length)]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    runs[str(length)][name].append(json.loads(done.stdout.splitlines()[-1]))
                    print(length, name, runs[str(length)][name][-1], flush=True)
    medians = {
        length: {
            name: {key: statistics.median(run[key] for run in results) for key in results[0]}
            for name, results in by_name.items()
        }
        for length, by_name in runs.items()
    }
    rows = [[f"{int(length):,}", *_cells(found["narrows"], found["transformers"])] for length, found in medians.items()]
    counts = ", ".join(f"{count} at {length:,}" for length, count in LENGTHS.items())
    record(
        "engine",
        {
            "runs": runs,
            "medians": medians,
            "table": {
                "columns": [
                    "tokens",
                    "prefill, tokens/s: narrows",
                    "transformers",
                    "×",
                    "decode, tokens/s: narrows",
                    "transformers",
                    "×",
                    "memory above the loaded model, MiB: narrows",
                    "transformers",
                ],
                "rows": rows,
            },
        },
        notes=(
            f"121 M random parameters in float32, {THREADS} threads, one request, chunks of {CHUNK:,}; medians of runs "
            f"in turns ({counts})."
        ),
    )


def _cells(ours: dict[str, float], theirs: dict[str, float]) -> list[str]:
    cells = []
    for key, digits in (("prefill_tokens_per_s", 0), ("decode_tokens_per_s", 1)):
        cells += [f"{found[key]:,.{digits}f}" for found in (ours, theirs)]
        cells.append(f"{ours[key] / theirs[key]:.2f}")
    return [*cells, *(f"{found['above_loaded_bytes'] / 2**20:,.0f}" for found in (ours, theirs))]


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
