"""Memory and time against the length of the text: 4K to 1,048,576 tokens of real source through the engine.

Every length is a process of its own with the embedded model. Measured: resident memory as the prompt is read, what of
it the engine counts as history, and the time of a token behind it. `python -m benchmarks.bench_history` records and
plots.
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import torch

from benchmarks.real_source import source_tokens
from benchmarks.record import RESULTS, record
from narrows.engine.allocator import return_free_memory

DECODED = 64
LENGTHS = (4_096, 16_384, 65_536, 262_144, 1_048_576 - DECODED)
SAMPLES = 64  # of memory, while a prompt is read: each costs some 20 ms
THREADS = 2


def measure(length: int) -> dict[str, Any]:
    """One prompt, in this process."""
    from narrows.engine.core import Core
    from narrows.engine.limits import Limits
    from narrows.engine.model import load
    from narrows.engine.request import SamplingParameters
    from narrows.engine.scheduler import Policy
    from narrows.engine.sequence import Drawn, Prefilled, Request

    torch.set_num_threads(THREADS)
    model = load()
    prompt = tuple(source_tokens(model.tokenizer, length))
    limits = Limits(memory=2 << 30, slots=1, drafts=0, policy=Policy(rows=1024))
    core = Core(model.network, None, limits)
    ends = {model.config.eos_token_id: -100.0}  # a text must go on for its tokens to be timed
    core.submit(Request(prompt[:2048], SamplingParameters(max_tokens=4)))
    list(_steps(core))
    core.known.tree.clear()
    gc.collect()
    before, peak = _resident(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    core.submit(Request(prompt, SamplingParameters(max_tokens=DECODED, logit_bias=ends)))
    points, decoded, sampled = list[tuple[int, int, int]](), list[float](), 0
    start = last = time.perf_counter()
    prefilled = start
    for events in _steps(core):
        now = time.perf_counter()
        for event in events:
            if isinstance(event, Prefilled):
                if event.tokens >= sampled or event.tokens == length:
                    sampled += length // SAMPLES
                    points.append((event.tokens, _resident() - before, _counted(core)))
                prefilled = last = time.perf_counter()
            elif isinstance(event, Drawn):
                decoded.append(now - last)
                last = now
    return {
        "tokens": length,
        "prefill_s": prefilled - start,
        "decode_ms": 1e3 * sorted(decoded[1:])[len(decoded[1:]) // 2],
        "resident": points[-1][1],
        "peak_rise": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - peak,
        "counted": points[-1][2],
        "points": points,
    }


def _steps(core: Any) -> Iterator[list[Any]]:
    while not core.idle:
        yield core.step()


def _counted(core: Any) -> int:
    """Bytes that the engine says its history takes: blocks in use, the running sequence's state, snapshots."""
    used = core.pool.count - core.pool.free
    return int(used * core.history.block_bytes + core.history.slot_bytes + core.known.tree.held_bytes)


def _resident() -> int:
    """Without what the C library holds for nobody, which the engine gives back now and then."""
    return_free_memory()
    return int(psutil.Process().memory_info().rss)


def plot(runs: list[dict[str, Any]]) -> None:
    """Resident and counted memory, and the time of a token, against the length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    memory, decode = figure.subplots(1, 2)
    longest = runs[-1]["points"]
    lengths = [tokens / 1024 for tokens, _, _ in longest]
    memory.plot(lengths, [resident / 2**20 for _, resident, _ in longest], label="resident beyond the weights")
    memory.plot(lengths, [counted / 2**20 for _, _, counted in longest], label="counted as history")
    memory.set(xlabel="tokens, thousands (1,024)", ylabel="MiB", title="memory")
    memory.legend()
    decode.plot([run["tokens"] / 1024 for run in runs], [run["decode_ms"] for run in runs], marker="o")
    decode.set(xscale="log", xlabel="tokens before, thousands (1,024)", ylabel="ms a token", title="decode")
    decode.set(ylim=(0, None))
    figure.savefig(RESULTS / "history.png", dpi=120)


def main() -> None:
    """All lengths; then the figures are recorded."""
    runs = []
    for length in LENGTHS:
        command = [sys.executable, "-m", "benchmarks.bench_history", str(length)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print({key: value for key, value in runs[-1].items() if key != "points"}, flush=True)
    plot(runs)
    first, last = runs[0], runs[-1]
    slope = (last["resident"] - first["resident"]) / (last["counted"] - first["counted"])
    mib = 2**20
    rows = [
        [
            f"{run['tokens']:,}",
            f"{run['counted'] / mib:,.1f}",
            f"{run['resident'] / mib:,.1f}",
            f"{run['peak_rise'] / mib:,.0f}",
            f"{run['prefill_s'] / 60:.1f}",
            f"{run['tokens'] / run['prefill_s']:,.0f}",
            f"{run['decode_ms']:.2f}",
            f"{1e3 / run['decode_ms']:,.0f}",
        ]
        for run in runs
    ]
    columns = [
        "tokens",
        "history counted, MiB",
        "resident beyond the weights, MiB",
        "peak above that of the loaded model, MiB",
        "prefill, minutes",
        "prefill, tokens/s",
        "decode, ms a token",
        "decode, tokens/s",
    ]
    record(
        "history",
        {"table": {"columns": columns, "rows": rows}, "runs": runs, "resident_per_counted_byte": slope},
        notes=(
            f"The embedded model in the official precision, {THREADS} threads, one request. From the first length to "
            f"the last, resident memory grows by {slope:.2f} bytes for every byte that the engine counts."
        ),
    )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(json.dumps(measure(int(sys.argv[1]))))
    else:
        main()
