"""The native path beside llama.cpp and transformers: prefill and decode of 512 to 65,536 tokens, of one model.

Everyone gets the same weights in formats of his own. llama-bench times the network alone: random tokens go in, the
last one's logits come out. We are timed in the same way (`network`) and with the whole engine around it, which also
samples and keeps known prefixes (`engine`). Every run is a process of its own, the sides taking turns.
`python -m benchmarks.bench_native` records the medians and plots them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import llama_cpp, measured_model
from benchmarks.bench_engine import CHUNK, THREADS, Run, Timed, run_engine, run_transformers
from benchmarks.record import RESULTS, record
from narrows.checkpoints.cache_folder import VARIABLE
from narrows.economics.measure import read_bandwidth
from narrows.economics.traffic import bytes_per_token
from narrows.engine.paged_history import PagedHistory, block_tokens
from narrows.model.forward import Forward
from narrows.model.precision import Precision
from narrows.model.segments import Segment

LENGTHS = {512: 5, 16_384: 5, 65_536: 3}
"""Tokens of a prompt, and how many runs each side gets."""
FEWER = {16_384: {"transformers float32": 3}, 65_536: {"transformers float32": 0, "llama.cpp": 1}}
"""How many peers get whose run takes minutes, by the beginning of their names."""
DECODED = 64

Q8_0, BF16, TRANSFORMERS = "llama.cpp Q8_0", "llama.cpp BF16", "transformers float32"
LLAMA_CPP: dict[str, tuple[llama_cpp.FileType, str, str]] = {
    Q8_0: ("Q8_0", "f16", "q8_0"),
    BF16: ("BF16", "f16", "f16"),
}
"""Its matrices, and its cache for prefill and for decode: what is faster there, but for BF16 one of sixteen bits."""
PRECISIONS = (Precision.OFFICIAL, Precision.BF16)

Speeds = dict[str, float]
"""Tokens a second of "prefill" and "decode"."""


def turns(side: str, length: int) -> int:
    """How many runs a side gets."""
    fewer = FEWER.get(length, {})
    return next((count for name, count in fewer.items() if side.startswith(name)), LENGTHS[length])


def ours(precision: Precision, what: str) -> str:
    """The name of one of our sides: of the `network` alone, or the `engine`."""
    return f"narrows {precision}, {what}"


def load(directory: Path, precision: Precision) -> Forward:
    """The network that is measured."""
    from narrows.checkpoints.native import load_native

    return load_native(directory, precision)


def run_network(directory: Path, precision: Precision) -> Run:
    """The network's steps and nothing around them."""
    network = load(directory, precision)
    vocab, size = network.config.vocab_size, block_tokens(network.config)

    def run(prompt: list[int], decoded: int) -> Timed:
        blocks = -(-(len(prompt) + decoded) // size)
        history = PagedHistory(network.config, slots=1, blocks=blocks, precision=network.cache)
        history.bind(0, range(blocks))
        past = 0

        def step(tokens: torch.Tensor) -> torch.Tensor:
            nonlocal past
            rows = tokens.shape[0]
            streams = network(tokens, torch.arange(past, past + rows), [Segment(rows, past)], history)
            past += rows
            return network.logits(streams[-1:])

        following = torch.randint(2, vocab, (decoded,), generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            start = time.perf_counter()
            for chunk in torch.tensor(prompt).split(CHUNK):
                step(chunk)
            prefilled = time.perf_counter()
            for token in following.split(1):
                step(token)
            return start, prefilled, time.perf_counter()

    return run


def _run_engine(directory: Path, precision: Precision) -> Run:
    return run_engine(load(directory, precision))


RUNS = {TRANSFORMERS: run_transformers}
for _precision in PRECISIONS:
    RUNS[ours(_precision, "network")] = partial(run_network, precision=_precision)
    RUNS[ours(_precision, "engine")] = partial(_run_engine, precision=_precision)
SIDES = (*LLAMA_CPP, *RUNS)


def measure(side: str, directory: Path, length: int) -> Speeds:
    """One run of ours or of transformers, in this process; like llama-bench's, behind one that nobody times."""
    torch.set_num_threads(THREADS)
    run = RUNS[side](directory)
    source = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, measured_model.BENCH.vocab_size, (length + CHUNK,), generator=source).tolist()
    run(tokens[length:][:length], 4)
    start, prefilled, end = run(tokens[:length], DECODED)
    return {"prefill": length / (prefilled - start), "decode": DECODED / (end - prefilled)}


def run_side(side: str, folder: Path, length: int) -> Speeds:
    """One run of any side, in processes of its own. `folder` is for the model, and for what a side makes of it."""
    model = folder / "model"
    if side in LLAMA_CPP:
        stored, prefilling, decoding = LLAMA_CPP[side]
        run = partial(llama_cpp.bench, llama_cpp.gguf(model, folder, stored), threads=THREADS)
        return {
            "prefill": run(cache=prefilling, prompt=length),
            "decode": run(cache=decoding, depth=length, generate=DECODED),
        }
    command = [sys.executable, "-m", "benchmarks.bench_native", side, str(model), str(length)]
    prepared = {**os.environ, VARIABLE: str(folder / "cache")}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=prepared)
    speeds: Speeds = json.loads(done.stdout.splitlines()[-1])
    return speeds


def table(medians: Mapping[int, Mapping[str, Speeds]], limits: Mapping[int, Mapping[Precision, float]]) -> Any:
    """Medians by length and side as a table: a column for every length's prefill and decode.

    `limits`: the most tokens a second that memory lets decode at a length, in a precision.
    """
    columns = [(kind, length) for kind in ("prefill", "decode") for length in medians]

    def speed(side: str) -> list[float]:
        """0 where a side was not measured."""
        return [medians[length].get(side, {}).get(kind, 0.0) for kind, length in columns]

    def times(side: str, *peers: str) -> list[str]:
        best = [max(found) for found in zip(*map(speed, peers), strict=True)]
        return [f"{mine / theirs:.2f}" if theirs else "–" for mine, theirs in zip(speed(side), best, strict=True)]

    def shown(found: float) -> str:
        return "–" if not found else f"{found:,.0f}" if found >= 100 else f"{found:.1f}"

    def share(precision: Precision) -> list[str]:
        found = zip(speed(ours(precision, "network")), columns, strict=True)
        return [f"{mine / limits[at][precision]:.0%}" if kind == "decode" else "–" for mine, (kind, at) in found]

    rows = [[side, *map(shown, speed(side))] for side in SIDES]
    for what in ("network", "engine"):
        official, bf16 = ours(Precision.OFFICIAL, what), ours(Precision.BF16, what)
        rows.append([f"{official}, × the better of llama.cpp", *times(official, Q8_0, BF16)])
        rows.append([f"{bf16}, × {BF16}", *times(bf16, BF16)])
        rows.append([f"{official}, × transformers", *times(official, TRANSFORMERS)])
    rows += [[f"{ours(one, 'network')}, of memory's limit", *share(one)] for one in PRECISIONS]
    names = {"prefill": "prefill of", "decode": "decode behind"}
    return {"columns": ["tokens/s", *(f"{names[kind]} {length:,}" for kind, length in columns)], "rows": rows}


def plot(medians: Mapping[int, Mapping[str, Speeds]], path: Path) -> None:
    """Every side's speed against the length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    lengths = list(medians)
    for kind, axes in zip(("prefill", "decode"), figure.subplots(1, 2), strict=True):
        for side in SIDES:
            line = "-" if side.startswith("narrows") else "--"
            known = [length for length in lengths if side in medians[length]]
            axes.plot(known, [medians[length][side][kind] for length in known], line, marker="o", label=side)
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="tokens/s", title=kind)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.minorticks_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    figure.savefig(path, dpi=120)


def main() -> None:
    """All runs, in turns."""
    runs: dict[int, dict[str, list[Speeds]]] = {length: {side: [] for side in SIDES} for length in LENGTHS}
    bandwidths = list[float]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured_model.write(folder / "model")
        for length, count in LENGTHS.items():
            for turn in range(count):
                bandwidths.append(read_bandwidth(THREADS))
                for side in SIDES:
                    if turn >= turns(side, length):
                        continue
                    runs[length][side].append(run_side(side, folder, length))
                    print(length, side, runs[length][side][-1], flush=True)
    keep(runs, bandwidths)


def keep(runs: Mapping[int, Mapping[str, list[Speeds]]], bandwidths: list[float]) -> None:
    """Record and plot the medians of all runs."""
    bandwidth = statistics.median(bandwidths)
    medians = {
        length: {
            side: {kind: statistics.median(run[kind] for run in found) for kind in found[0]}
            for side, found in sides.items()
            if found
        }
        for length, sides in runs.items()
    }
    limits = {
        length: {one: bandwidth / bytes_per_token(measured_model.BENCH, one, length) for one in PRECISIONS}
        for length in LENGTHS
    }
    plot(medians, RESULTS / "native.png")
    counts = ", ".join(f"{count} at {length:,}" for length, count in LENGTHS.items())
    fewer = "; ".join(
        f"{name} {count or 'none'} at {length:,}" for length, found in FEWER.items() for name, count in found.items()
    )
    record(
        "native",
        {
            "runs": runs,
            "medians": medians,
            "read_bytes_per_s": bandwidths,
            "decode_limits": limits,
            "table": table(medians, limits),
        },
        notes=(
            f"121 M random parameters, {THREADS} threads, one sequence, chunks of {CHUNK:,} (llama.cpp 512, its "
            f"default); {DECODED} tokens decoded; medians of runs in turns ({counts}; {fewer}). "
            "network: its steps alone, as llama-bench times them; engine: with all that serving takes, greedy. "
            "official has FP4 experts and FP8 matrices beside Q8_0's 8 bits. "
            f"llama.cpp {llama_cpp.described()}: flash attention on, the cache in float16, and in "
            "Q8_0 where that makes it faster (decode with Q8_0). "
            f"Memory's limit: {bandwidth / 1e9:.0f} GB/s, of which a token needs its weights and what it attends to."
        ),
    )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
