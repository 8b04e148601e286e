"""A model larger than memory: decoding from a mapped file with half the memory that the file takes.

The file has 5.6 GB (`larger_model`). Every run is a process that finds nothing of it in memory, reads a prompt and
decodes: without a limit, and with a limit of half the file's size, without prefetching and as `bind` itself decides.
The logits of all runs must be the same bits. `python -m benchmarks.bench_larger` records the medians.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from benchmarks.larger_model import text, write_model
from benchmarks.memory_limit import run_limited
from benchmarks.record import record
from narrows.checkpoints.cache_folder import cache_folder
from narrows.checkpoints.native import bind
from narrows.checkpoints.prepared_file import Prepared
from narrows.engine.paged_history import PagedHistory
from narrows.model.segments import positions_of

THREADS = 2
PROMPT, WARM, MEASURED = 256, 32, 96
RUNS = 3
UNLIMITED = 1 << 60

CASES = {
    "all the file needs, not prefetched": (False, False),
    "half, not prefetched": (True, False),
    "half, prefetched": (True, None),
}
"""Whether the memory is limited, and what is said of prefetching."""


def measure(path: Path, prefetch: bool | None) -> dict[str, Any]:
    """Prompt and decode in this process."""
    torch.set_num_threads(THREADS)
    with path.open("rb") as file:
        prepared = Prepared(file, path)
    network = bind(prepared, prefetch=prefetch)
    length = PROMPT + WARM + MEASURED
    history = PagedHistory(network.config, slots=1, blocks=length // 128 + 1, precision=network.cache)
    history.bind(0, range(length // 128 + 1))
    digest = hashlib.sha256()

    def step(tokens: Tensor) -> None:
        segments = [history.segment(len(tokens))]
        streams = network(tokens, positions_of(segments), segments, history)
        digest.update(network.logits(streams[-1:]).numpy().tobytes())

    tokens = text(length)
    start = time.perf_counter()
    step(tokens[:PROMPT])
    prompt_s = time.perf_counter() - start
    for token in tokens[PROMPT : PROMPT + WARM].split(1):
        step(token)
    before, read, times = network.prefetched(), _read(), list[float]()
    for token in tokens[PROMPT + WARM :].split(1):
        start = time.perf_counter()
        step(token)
        times.append(time.perf_counter() - start)
    needed, absent, guessed, right, chosen = (
        now - then for now, then in zip(network.prefetched(), before, strict=True)
    )
    return {
        "prompt_s": prompt_s,
        "tokens_per_s": MEASURED / sum(times),
        "median_ms": 1e3 * statistics.median(times),
        "read": (_read() - read) / MEASURED,
        "resident": psutil.Process().memory_info().rss,
        "found": 1 - absent / needed if needed else None,
        "guesses_right": right / guessed if guessed else None,
        "guessed": right / chosen if chosen else None,
        "logits": digest.hexdigest(),
    }


def _read() -> int:
    """Bytes that this process has had read from the disk."""
    found = re.search(r"^read_bytes: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def _run(path: Path, case: str) -> dict[str, Any]:
    limited, _ = CASES[case]
    with path.open("rb") as file:
        while file.read(1 << 26):  # once through: a disk may keep copies of its own, and all runs are to begin alike
            pass
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    memory = path.stat().st_size // 2 if limited else UNLIMITED
    done = run_limited([sys.executable, "-m", "benchmarks.bench_larger", str(path), case], memory)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """All cases in turns; then the medians are recorded."""
    path = cache_folder("benchmarks") / "larger.prepared"
    path.parent.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    try:
        write_model(path)
        size = path.stat().st_size
        for _ in range(RUNS):
            for case in CASES:
                runs[case].append(_run(path, case))
                print(case, runs[case][-1], flush=True)
    finally:
        path.unlink(missing_ok=True)
    assert len({run["logits"] for case in runs.values() for run in case}) == 1
    medians: dict[str, dict[str, Any]] = {
        case: {
            key: statistics.median(values) if None not in (values := [run[key] for run in found]) else None
            for key in found[0]
            if key != "logits"
        }
        for case, found in runs.items()
    }
    rows = [
        [
            case,
            f"{of['prompt_s']:.1f}",
            f"{of['tokens_per_s']:.2f}",
            f"{of['median_ms']:,.0f}",
            f"{of['read'] / 1e6:,.0f}",
            "–" if of["found"] is None else f"{of['found']:.0%}",
            f"{of['resident'] / 1e9:.1f}",
        ]
        for case, of in medians.items()
    ]
    columns = [
        "memory",
        f"prompt of {PROMPT} tokens, s",
        "tokens/s",
        "median ms a token",
        "MB read a token",
        "experts' bytes found in memory",
        "resident, GB",
    ]
    record(
        "larger",
        {"table": {"columns": columns, "rows": rows}, "runs": runs, "medians": medians, "bytes": size},
        notes=(
            f"A random model of 16 layers of 96 experts in the official precision, {size / 1e9:.1f} GB, mapped from a "
            f"file of which nothing is in memory at first; {MEASURED} tokens decoded behind {PROMPT + WARM}, {THREADS} "
            f"threads; medians of {RUNS} runs in turns. The logits of all runs are the same bits."
        ),
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(Path(sys.argv[1]), CASES[sys.argv[2]][1])))
    else:
        main()
