"""The embedded model as a programmer meets it: tokens a second, the first token behind a file, and the start-up.

The file is real source of 2,000 tokens. Start-up is `narrows complete` for one token, a process of its own, from a
prepared file and a warm disk cache; beside it what `import torch` alone takes, which is the floor.
`python -m benchmarks.bench_embedded` records the medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.real_source import source_tokens
from benchmarks.record import record
from narrows.engine.model import load
from narrows.engine.request import SamplingParameters
from narrows.engine.sequence import Drawn

FILE_TOKENS, DECODED = 2_000, 256
RUNS, THREADS = 5, 2

_IMPORTS = {
    "import torch": "import torch",
    "import narrows": "import narrows",
}


def first_and_rest() -> dict[str, float]:
    """Seconds to the first token behind the file, and tokens a second from there, without drafts' help or hindrance:
    the engine's defaults."""
    model = load()
    prompt = source_tokens(model.tokenizer, FILE_TOKENS)
    parameters = SamplingParameters(max_tokens=DECODED, logit_bias={model.config.eos_token_id: -100.0})
    list(model.engine.submit(prompt[:64], SamplingParameters(max_tokens=4)))
    start = time.perf_counter()
    times = [time.perf_counter() for event in model.engine.submit(prompt, parameters) if isinstance(event, Drawn)]
    model.engine.close()
    return {"first_s": times[0] - start, "tokens_per_s": (len(times) - 1) / (times[-1] - times[0])}


def seconds(command: list[str]) -> float:
    """Of a process, from its start to its end."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": str(THREADS)})
    return time.perf_counter() - start


def main() -> None:
    """All in turns; then the medians are recorded."""
    torch.set_num_threads(THREADS)
    runs: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "work.py"
        file.write_text("import os\n\n\ndef main():\n    ")
        commands = {name: [sys.executable, "-c", code] for name, code in _IMPORTS.items()}
        commands["complete"] = [sys.executable, "-m", "narrows.cli.main", "complete", str(file), "--max-tokens", "1"]
        seconds(commands["complete"])
        for _ in range(RUNS):
            for name, command in commands.items():
                runs.setdefault(name, []).append(seconds(command))
            for name, value in first_and_rest().items():
                runs.setdefault(name, []).append(value)
            print({name: found[-1] for name, found in runs.items()}, flush=True)
    medians = {name: statistics.median(found) for name, found in runs.items()}
    rows = [
        ["decode, tokens/s", f"{medians['tokens_per_s']:,.0f}"],
        [f"first token behind {FILE_TOKENS:,} tokens, s", f"{medians['first_s']:.3f}"],
        ["`narrows complete`, one token, whole process, s", f"{medians['complete']:.2f}"],
        ["of which `import narrows`, s", f"{medians['import narrows']:.2f}"],
        ["of which `import torch`, s", f"{medians['import torch']:.2f}"],
    ]
    record(
        "embedded",
        {"runs": runs, "medians": medians, "table": {"columns": ["the embedded model", ""], "rows": rows}},
        notes=f"{THREADS} threads, one request, engine and drafts at their defaults, greedy; medians of {RUNS} runs.",
    )


if __name__ == "__main__":
    main()
