"""Time to the first token of a 50,000-token prompt: cold, behind a known beginning, and behind one kept on disk.

Prompts share all but their last line. `python -m benchmarks.bench_prefix` records medians over several last lines; cold
and restarted runs are processes of their own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.real_source import source_tokens
from benchmarks.record import record

TOKENS = 50_000
THREADS = 2
RUNS = 3
LAST_LINES = (
    "    return self._lock.acquire(timeout=timeout)\n",
    "raise ValueError(f'no such codec: {name!r}')\n",
    "def main() -> int:\n",
)


def measure(directory: Path) -> dict[str, list[float]]:
    """Seconds to the first token for every last line, one behind the other in one engine that keeps to `directory`."""
    from narrows.engine.engine import Engine
    from narrows.engine.limits import Limits
    from narrows.engine.model import load
    from narrows.engine.request import SamplingParameters
    from narrows.engine.sequence import Drawn
    from narrows.engine.store import Prefixes

    torch.set_num_threads(THREADS)
    model = load()
    common = source_tokens(model.tokenizer, TOKENS)
    found: dict[str, list[float]] = {"seconds": [], "reused": []}
    with Engine(model.network, model.tokenizer, Limits(memory=1 << 30, slots=2), Prefixes(directory)) as engine:
        list(engine.submit(common[:2000][::-1], SamplingParameters(max_tokens=4)))  # warm the code, not the prefix
        for line in LAST_LINES:
            prompt = common + model.tokenizer.encode(line)
            start = time.perf_counter()
            handle = engine.submit(prompt, SamplingParameters(max_tokens=2))
            next(event for event in handle if isinstance(event, Drawn))
            found["seconds"].append(time.perf_counter() - start)
            found["reused"].append(handle.sequences[0].reused)
    return found


def main() -> None:
    """Fresh directories, and each once more in a new process."""
    cold, warm, restarted, reused = [], [], [], []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            first, second = _run(folder), _run(folder)
        cold.append(first["seconds"][0])
        warm += first["seconds"][1:]
        restarted.append(second["seconds"][0])
        reused += [*first["reused"][1:], *second["reused"]]
        print(first, second, flush=True)
    medians = {
        "cold": statistics.median(cold),
        "known": statistics.median(warm),
        "after a restart": statistics.median(restarted),
    }
    rows = [[name, f"{seconds:.3f}", f"{medians['cold'] / seconds:,.0f}"] for name, seconds in medians.items()]
    columns = [f"first token behind {TOKENS:,} tokens", "seconds", "times faster than cold"]
    record(
        "prefix",
        {
            "table": {"columns": columns, "rows": rows},
            "medians": medians,
            "cold": cold,
            "known": warm,
            "restarted": restarted,
            "reused": reused,
        },
        notes=f"The embedded model as it ships, {THREADS} threads; prompts share all but their last line.",
    )


def _run(folder: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.bench_prefix", folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(json.dumps(measure(Path(sys.argv[1]))))
    else:
        main()
