"""What compressed attention is worth while the code model learns: the same run without CSA and HCA.

`python -m benchmarks.bench_ablation` trains the code model's recipe with every layer a sliding one (the same batches
and learning rates) up to step UNTIL, and records bits per byte on held-out text beside those that the run of the recipe
itself logged behind the same tokens. Unlike the other benchmarks it reads a run that was made before.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT, record
from narrows.corpus.shards import Corpus
from narrows.errors import NarrowsError
from narrows.training.allocator import keep_large_allocations
from narrows.training.loop import Run
from narrows.training.recipe import Recipe

RECIPE = ROOT / "recipes" / "code-model" / "recipe.toml"
WHOLE, SLIDING = Path("runs/code-model"), Path("runs/code-model-sliding")
UNTIL = 400


def without_compression(recipe: Recipe) -> Recipe:
    """The recipe with a sliding window as its only attention."""
    layers = ["sliding_attention"] * len(recipe.model["layer_types"])
    return recipe.model_copy(update={"model": {**recipe.model, "layer_types": layers}})


def held_out(log: Path) -> dict[int, float]:
    """Of a run's log: tokens read -> bits per byte on held-out text."""
    found: dict[int, float] = {}
    tokens = 0
    for line in log.read_text(encoding="utf-8").splitlines():
        entry: dict[str, Any] = json.loads(line)
        tokens += entry.get("rows", 0)
        if entry.get("held_out_bits_per_byte") is not None:
            found[tokens] = entry["held_out_bits_per_byte"]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0, also where the recipe's own run is absent (it then says how to make it)."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_ablation", description=summary)
    parser.add_argument("--until", type=int, default=UNTIL, help=f"steps to train: {UNTIL}")
    options = parser.parse_args(arguments)
    recipe = Recipe.from_file(RECIPE)
    constant = int(recipe.optimiser.cosine_from * recipe.steps)
    if not recipe.steps_between_evaluations <= options.until <= min(constant, recipe.stages[0].steps):
        parser.error(
            f"--until is {options.until}; choose a step of the first stage at a constant rate, with a measurement"
        )
    if not (WHOLE / "log.jsonl").exists():
        print(f"{WHOLE} is absent, so nothing is compared. To make it: narrows train {RECIPE}", file=sys.stderr)
        return 0
    keep_large_allocations()
    corpus = Corpus(RECIPE.parent / recipe.corpus)
    try:
        whole = Run(recipe, corpus, WHOLE)  # which refuses the run of another recipe
        sliding = Run(without_compression(recipe), corpus, SLIDING)
        sliding.train(options.until)
    except NarrowsError as error:
        print(error, file=sys.stderr)
        return 1
    with_entries, without = held_out(WHOLE / "log.jsonl"), held_out(SLIDING / "log.jsonl")
    common = sorted(with_entries.keys() & without.keys())
    if not common:
        print(f"{WHOLE} and {SLIDING} were measured at no common step; nothing is recorded.", file=sys.stderr)
        return 1
    sizes = [sum(p.numel() for p in run.network.parameters()) / 1e6 for run in (whole, sliding)]
    rows = [[f"{tokens / 1e6:.1f} M", f"{with_entries[tokens]:.4f}", f"{without[tokens]:.4f}"] for tokens in common]
    columns = ["tokens read", "CSA and HCA", "sliding window alone"]
    record(
        "ablation",
        {
            "tokens": common,
            "with": [with_entries[tokens] for tokens in common],
            "without": [without[tokens] for tokens in common],
            "caption": "Bits per byte on held-out text:",
            "table": {"columns": columns, "rows": rows},
        },
        notes=f"The code model's recipe, and the same with sliding layers only ({sizes[0]:.1f} M and {sizes[1]:.1f} M "
        f"parameters), one run each: same batches and learning rates, samples of up to "
        f"{recipe.stages[0].sample_length:,} tokens, cut off before the rate falls. Weights are rounded as they would "
        "ship, which neither run was trained for yet.",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
