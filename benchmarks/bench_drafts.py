"""Tokens guessed ahead with the MTP block: how many come true, and whether they pay, beside no drafts at all.

The embedded model goes on from real source; all settings in turns, in one process. `python -m benchmarks.bench_drafts`
records medians.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from benchmarks.real_source import source_tokens
from benchmarks.record import record

DRAFTS = (0, 1, 2, 3)
TEMPERATURES = (0.0, 0.8)
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 4, 512, 96
THREADS, RUNS = 2, 3


def measure(model: Any, temperature: float, drafts: int) -> tuple[float, float]:
    """Tokens drawn per second behind the prompt, and the share of drafts that came true (0 without drafts)."""
    from narrows.engine.core import Core
    from narrows.engine.limits import Limits
    from narrows.engine.request import SamplingParameters
    from narrows.engine.sequence import Drawn, Request

    text = source_tokens(model.tokenizer, PROMPTS * 4_096)
    core = Core(model.network, None, Limits(memory=1 << 28, slots=1, drafts=drafts, draft_rate=0))
    drawn, seconds = 0, 0.0
    for number in range(PROMPTS):
        prompt = tuple(text[number * 4_096 :][:PROMPT_TOKENS])
        going_on = {model.config.eos_token_id: -100.0}
        parameters = SamplingParameters(
            max_tokens=NEW_TOKENS, temperature=temperature, seed=number, logit_bias=going_on
        )
        core.submit(Request(prompt, parameters))
        while not any(isinstance(event, Drawn) for event in core.step()):
            pass
        before, start = core.stats.drawn, time.perf_counter()
        while not core.idle:
            core.step()
        seconds += time.perf_counter() - start
        drawn += core.stats.drawn - before
    return drawn / seconds, core.stats.accepted / max(1, core.stats.drafted)


def main() -> None:
    """All settings, RUNS times in turns."""
    from narrows.engine.model import load

    torch.set_num_threads(THREADS)
    model = load()
    settings = [(temperature, drafts) for temperature in TEMPERATURES for drafts in DRAFTS]
    found: dict[tuple[float, int], list[tuple[float, float]]] = {setting: [] for setting in settings}
    for _ in range(RUNS):
        for setting in settings:
            found[setting].append(measure(model, *setting))
            print(setting, found[setting][-1], flush=True)
    speeds = {setting: statistics.median(speed for speed, _ in runs) for setting, runs in found.items()}
    rows = [
        [
            "greedy" if temperature == 0 else f"temperature {temperature}",
            str(drafts),
            f"{found[temperature, drafts][0][1]:.0%}" if drafts else "–",
            f"{speeds[temperature, drafts]:,.0f}",
            f"{speeds[temperature, drafts] / speeds[temperature, 0]:.2f}",
        ]
        for temperature, drafts in settings
    ]
    record(
        "drafts",
        {
            "table": {"columns": ["text", "drafts", "came true", "tokens/s", "× without"], "rows": rows},
            "runs": [[*setting, runs] for setting, runs in found.items()],
        },
        notes=(
            f"The embedded model in {model.network.cache}, {THREADS} threads, one request, behind {PROMPT_TOKENS} "
            f"tokens of source; medians of {RUNS} runs in turns. The text is the same in every row of a kind."
        ),
    )


if __name__ == "__main__":
    main()
