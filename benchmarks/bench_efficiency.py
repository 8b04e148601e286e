"""Time and bytes of a decoded token against the context, V4 beside V3.2: measured, and what the formulas count.

Two networks of equal width and depth (`efficiency`) decode in turns behind 4,096 to 1,048,576 tokens.
`python -m benchmarks.bench_efficiency` records the medians and plots them; it needs 16 GB of memory.
"""

from __future__ import annotations

import gc
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.efficiency import EXPERTS, LAYERS, NEW, OLD, PRECISION, AnyNetwork, Decoder, Group, made
from benchmarks.record import RESULTS, record
from narrows.economics.storage import history_bytes
from narrows.economics.work import AnyConfig, decode_work, total

CONTEXTS = (4_096, 16_384, 65_536, 262_144, 1_048_576)
ROUNDS, TOKENS, PROFILED = 5, 4, 4  # a round is as many tokens as fill a CSA entry
THREADS = 2
V32_LIKE, V4_LIKE = "V3.2-like", "V4-like"
CONFIGS: dict[str, AnyConfig] = {V32_LIKE: OLD, V4_LIKE: NEW}


def measure(networks: dict[str, AnyNetwork], context: int) -> dict[str, dict[str, Any]]:
    """Both networks at this context: rounds in turns behind one that is not measured, then a profile of each."""
    decoded = (1 + ROUNDS) * TOKENS + PROFILED
    decoders = {name: Decoder(network, context, decoded) for name, network in networks.items()}
    rounds: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(1 + ROUNDS):
        for name, decoder in decoders.items():
            rounds[name].append(decoder.seconds(TOKENS))
    found = {}
    for name, decoder in decoders.items():
        work = decode_work(CONFIGS[name], context)
        found[name] = {
            "context": context,
            "rounds": rounds[name][1:],
            "seconds": statistics.median(rounds[name][1:]),
            "history": decoder.history.bytes(),
            "counted": {
                "flops": sum(product.flops for product in work),
                "equivalent": float(total(work)),
                "history": history_bytes(CONFIGS[name], context, PRECISION),
            },
            "profile": {group: asdict(spent) for group, spent in decoder.profiled(PROFILED).items()},
        }
    return found


def ratios(run: dict[str, dict[str, Any]]) -> dict[str, float]:
    """V4's part of what V3.2 takes, by what is compared."""
    old, new = run[V32_LIKE], run[V4_LIKE]
    counted = {f"counted {key}": new["counted"][key] / old["counted"][key] for key in old["counted"]}
    return {key: new[key] / old[key] for key in ("seconds", "history")} | counted


def plot(runs: list[dict[str, dict[str, Any]]], path: Path) -> None:
    """The time of a token, and V4's part of it and of the bytes, measured and counted, against the context."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter, StrMethodFormatter

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    time, part = figure.subplots(1, 2)
    contexts = [run[V4_LIKE]["context"] for run in runs]
    for name in CONFIGS:
        time.plot(contexts, [1e3 * run[name]["seconds"] for run in runs], marker="o", label=name)
    time.set(ylim=(0, None), ylabel="ms", title="a decoded token")
    time.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    found = [ratios(run) for run in runs]
    for label, key, style in (
        ("time, measured", "seconds", "C0o-"),
        ("operations, counted", "counted flops", "C0s--"),
        ("FP8-equivalent operations, counted", "counted equivalent", "C2s--"),
        ("bytes of history, measured", "history", "C1o-"),
        ("bytes of history, counted", "counted history", "C1s--"),
    ):
        part.plot(contexts, [ratio[key] for ratio in found], style, markersize=5, label=label)
    part.set(ylim=(0, None), title=f"{V4_LIKE} as part of {V32_LIKE}")
    part.yaxis.set_major_formatter(PercentFormatter(1))
    names = [f"{context // 2**20}M" if context >= 2**20 else f"{context // 2**10}K" for context in contexts]
    for axes in (time, part):
        axes.set(xscale="log", xlabel="context, tokens")
        axes.set_xticks(contexts, names)
        axes.xaxis.minorticks_off()
        axes.grid(alpha=0.3)
    time.legend(loc="upper left")
    part.legend(loc="center left", bbox_to_anchor=(0.01, 0.38), fontsize="small")  # between times and bytes
    figure.savefig(path, dpi=120)


def explained(runs: list[dict[str, dict[str, Any]]]) -> str:
    """Why time is another part than operations, by the profiles of the shortest and the longest context."""
    first, before, last = runs[0], runs[-2], runs[-1]

    def share(run: dict[str, Any], *groups: str) -> str:
        spent = {group: Group(**found).seconds for group, found in run["profile"].items()}
        return f"{sum(spent[group] for group in groups) / sum(spent.values()):.0%}"

    def rate(run: dict[str, Any], group: str) -> str:
        spent = Group(**run["profile"][group])
        return f"{spent.flops / spent.seconds / 1e9:,.0f}"

    def grown(name: str, of: Any) -> float:
        return of(last[name]) - of(before[name])

    measured, counted = (
        grown(V4_LIKE, of) / grown(V32_LIKE, of) for of in (lambda run: run["seconds"], lambda r: r["counted"]["flops"])
    )
    uncounted = ("gathers and conversions", "top-k", "the rest")
    short, long = (run[V4_LIKE]["context"] for run in (first, last))
    return (
        f"Profiled at {short:,} tokens, products with weights take {share(first[V32_LIKE], 'weights')} of V3.2's time "
        f"and {share(first[V4_LIKE], 'weights')} of V4's: for one row they wait for memory, at "
        f"{rate(first[V4_LIKE], 'weights')} GFLOP/s, where V3.2's scores and attention have "
        f"{rate(last[V32_LIKE], 'scores and attention')} at {long:,} tokens, so that what V4 saves costs less than the "
        f"average operation. What no count has (gathers, conversions to float32, top-k and all else) takes "
        f"{share(first[V32_LIKE], *uncounted)} and {share(first[V4_LIKE], *uncounted)} of the time there, and "
        f"{share(last[V32_LIKE], *uncounted)} and {share(last[V4_LIKE], *uncounted)} at {long:,}. From "
        f"{before[V4_LIKE]['context']:,} tokens to {long:,}, V4's time grows by {measured:.1%} of what V3.2's does, "
        f"its operations by {counted:.1%}."
    )


def main() -> None:
    """All contexts; then the medians are recorded and plotted."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    networks = {name: made(config) for name, config in CONFIGS.items()}
    runs = []
    for context in CONTEXTS:
        runs.append(measure(networks, context))
        gc.collect()
        for name, found in runs[-1].items():
            print(context, name, found, flush=True)
    plot(runs, RESULTS / "efficiency.png")
    rows = []
    for run in runs:
        old, new, ratio = run[V32_LIKE], run[V4_LIKE], ratios(run)
        context = old["context"]
        rows.append(
            [
                f"{context:,}",
                f"{1e3 * old['seconds']:,.0f}",
                f"{1e3 * new['seconds']:,.0f}",
                f"{ratio['seconds']:.0%}",
                f"{ratio['counted flops']:.0%}",
                f"{ratio['counted equivalent']:.0%}",
                f"{old['history'] / context:,.0f}",
                f"{new['history'] / context:,.0f}",
                f"{ratio['history']:.1%}",
                f"{ratio['counted history']:.1%}",
            ]
        )
    columns = [
        "context",
        f"{V32_LIKE}, ms a token",
        f"{V4_LIKE}, ms a token",
        "measured",
        "operations counted",
        "FP8-equivalents counted",
        f"{V32_LIKE}, history's bytes a token",
        f"{V4_LIKE}, bytes a token",
        "measured",
        "counted",
    ]
    weights = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    record(
        "efficiency",
        {"table": {"columns": columns, "rows": rows}, "runs": runs, "parameters": weights},
        notes=(
            f"Every width half of V3.2's and V4-Pro's, {LAYERS} layers, {NEW.num_experts_per_tok} of {EXPERTS} "
            f"experts, BF16, {THREADS} threads, one request behind a history of random rows; medians of {ROUNDS} "
            f"rounds of {TOKENS} tokens in turns. Counted: products, unweighted as here and in FP8-equivalents as "
            f"published; bytes of a BF16 history without the inputs of V4's unfinished compressor windows, which are "
            f"float32 and show where the context is short. {explained(runs)}"
        ),
    )


if __name__ == "__main__":
    main()
