"""Decoding for 1 to 64 requests at once: the time of a step against what memory and arithmetic allow.

The bench model in the official precision, every request behind 512 tokens of its own. The roofline of a step is the
longer of two times: of reading the weights that its rows need and what they attend to, at the bandwidth of this
machine's memory; and of its products, at the rate of PyTorch's fastest. `python -m benchmarks.bench_batch` records the
medians and plots them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import measured_model
from benchmarks.record import RESULTS, record
from narrows.checkpoints.native import load_native
from narrows.economics.chips import Chip
from narrows.economics.layout import Layout
from narrows.economics.measure import product_rate, read_bandwidth
from narrows.economics.roofline import Deployment
from narrows.engine.paged_history import PagedHistory, block_tokens
from narrows.model.native_network import NativeNetwork
from narrows.model.precision import Precision
from narrows.model.segments import positions_of

REQUESTS = (1, 2, 4, 8, 16, 32, 64)
PAST, STEPS, RUNS = 512, 40, 5
THREADS = 2
CONFIG, PRECISION = measured_model.BENCH, Precision.OFFICIAL


def measure(network: NativeNetwork, requests: int) -> float:
    """Seconds of a step that decodes a token for each: the median of STEPS."""
    blocks = -(-(PAST + STEPS) // block_tokens(CONFIG))
    history = PagedHistory(CONFIG, slots=requests, blocks=requests * blocks, precision=PRECISION)
    source = torch.Generator().manual_seed(requests)
    for slot in range(requests):
        history.bind(slot, range(slot * blocks, (slot + 1) * blocks))
        segments = [history.segment(PAST, slot)]
        prompt = torch.randint(2, CONFIG.vocab_size, (PAST,), generator=source)
        network(prompt, positions_of(segments), segments, history)
    times = []
    for _ in range(STEPS):
        tokens = torch.randint(2, CONFIG.vocab_size, (requests,), generator=source)
        segments = [history.segment(1, slot) for slot in range(requests)]
        start = time.perf_counter()
        network.logits(network(tokens, positions_of(segments), segments, history))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def roofline(requests: int, bandwidth: float, rate: float) -> float:
    """The least seconds of such a step."""
    here = Chip("here", "", "cpu", memory=1 << 34, bandwidth=bandwidth, rates={"bf16": rate}, node=1)
    return Deployment(CONFIG, here, Layout(), PRECISION).step(requests, PAST + 1).seconds


def plot(medians: list[dict[str, Any]], path: Path) -> None:
    """Seconds of a step, measured and least, and tokens a second, against the requests."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    step, speed = figure.subplots(1, 2)
    requests = [found["requests"] for found in medians]
    for axes, scale in ((step, lambda found, key: 1e3 * found[key]), (speed, lambda f, key: f["requests"] / f[key])):
        axes.plot(requests, [scale(found, "seconds") for found in medians], marker="o", label="measured")
        axes.plot(requests, [scale(found, "least") for found in medians], "--", label="roofline")
        axes.set(xscale="log", yscale="log", xlabel="requests at once")
        axes.set_xticks(requests, [str(number) for number in requests])
        axes.minorticks_off()
        axes.legend()
    step.set(ylabel="ms a step", title="time of a step")
    speed.set(ylabel="tokens/s", title="all requests together")
    figure.savefig(path, dpi=120)


def main() -> None:
    """All sizes in turns; then the medians are recorded and plotted."""
    torch.set_num_threads(THREADS)
    runs: dict[int, list[dict[str, float]]] = {requests: [] for requests in REQUESTS}
    with tempfile.TemporaryDirectory() as folder:
        measured_model.write(Path(folder) / "model")
        network = load_native(Path(folder) / "model", PRECISION)
        for _ in range(RUNS):
            bandwidth, rate = read_bandwidth(THREADS), product_rate(THREADS)
            for requests in REQUESTS:
                seconds, least = measure(network, requests), roofline(requests, bandwidth, rate)
                runs[requests].append({"seconds": seconds, "least": least, "bandwidth": bandwidth, "rate": rate})
                print(requests, runs[requests][-1], flush=True)
    medians = [
        {"requests": requests} | {key: statistics.median(run[key] for run in found) for key in found[0]}
        for requests, found in runs.items()
    ]
    plot(medians, RESULTS / "batch.png")
    rows = [
        [
            str(found["requests"]),
            f"{1e3 * found['seconds']:.2f}",
            f"{1e3 * found['least']:.2f}",
            f"{found['seconds'] / found['least']:.2f}",
            f"{found['requests'] / found['seconds']:,.0f}",
        ]
        for found in medians
    ]
    columns = ["requests at once", "ms a step", "roofline, ms", "×", "tokens/s together"]
    record(
        "batch",
        {"runs": runs, "medians": medians, "table": {"columns": columns, "rows": rows}},
        notes=(
            f"121 M random parameters in the official precision, {THREADS} threads, every request behind {PAST} "
            f"tokens; medians of {RUNS} runs in turns. Roofline: {medians[0]['bandwidth'] / 1e9:.0f} GB/s of memory, "
            f"{medians[0]['rate'] / 1e9:,.0f} GFLOP/s of PyTorch's BF16 product."
        ),
    )


if __name__ == "__main__":
    main()
