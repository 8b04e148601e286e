"""What the planner's roofline says of this machine, beside the tokens a second that the engine reaches.

The embedded model and the one of the other benchmarks, in the official precision: prompts read alone, and tokens
decoded for one request and for many. The roofline is economics.roofline's, on this machine as `narrows plan --measure`
sees it, measured in turns with the engine. `python -m benchmarks.bench_roofline` records the medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import measured_model
from benchmarks.record import record
from narrows.checkpoints.hub import local
from narrows.checkpoints.native import load_native
from narrows.economics.chips import Chip
from narrows.economics.layout import Layout
from narrows.economics.measure import Machine, measure
from narrows.economics.roofline import Deployment
from narrows.engine.core import Core
from narrows.engine.limits import Limits
from narrows.engine.request import SamplingParameters
from narrows.engine.scheduler import Policy
from narrows.engine.sequence import Drawn, Request
from narrows.model.native_network import NativeNetwork
from narrows.model.precision import Precision

THREADS, RUNS = 2, 5
CHUNK, DECODED = 1024, 64
PREFILLS = (512, 16_384)
DECODES = ((1, 512), (4, 512), (16, 512), (64, 512), (1, 16_384))
"""Requests at once, and the tokens behind which each decodes."""
MODELS = {"embedded": "the embedded model", "bench": "121 M random parameters"}


@dataclass(frozen=True)
class Case:
    """Tokens read or written a second by so many requests of so many tokens."""

    model: str
    kind: str
    requests: int
    tokens: int

    def __str__(self) -> str:
        if self.kind == "prefill":
            return f"prefill of {self.tokens:,}"
        return f"decode behind {self.tokens:,}, {self.requests} at once"


def cases() -> Iterator[Case]:
    """All of them."""
    for model in MODELS:
        yield from (Case(model, "prefill", 1, tokens) for tokens in PREFILLS)
        yield from (Case(model, "decode", requests, tokens) for requests, tokens in DECODES)


def measured(network: NativeNetwork, case: Case) -> float:
    """Tokens a second of the engine: of a prompt until its first token is drawn, or of all requests together once each
    has one."""
    limits = Limits(memory=4 << 30, slots=case.requests, drafts=0, policy=Policy(rows=CHUNK))
    core = Core(network, None, limits)
    most = DECODED + 2 * case.requests + case.tokens * case.requests // CHUNK + 8
    ends = {network.config.eos_token_id: -100.0}  # a text must go on for its tokens to be timed
    source = torch.Generator().manual_seed(case.requests)
    start = time.perf_counter()
    for _ in range(case.requests):
        prompt = torch.randint(2, network.config.vocab_size, (case.tokens,), generator=source).tolist()
        core.submit(Request(tuple(prompt), SamplingParameters(max_tokens=most, temperature=0, logit_bias=ends)))
    drawn = 0
    while drawn < case.requests:
        drawn = sum(isinstance(event, Drawn) for event in core.step())  # all of them in one step: all decode
        if case.kind == "prefill" and drawn:
            return case.tokens / (time.perf_counter() - start)
    start = time.perf_counter()
    for _ in range(DECODED):
        drawn = sum(isinstance(event, Drawn) for event in core.step())
        assert drawn == case.requests
    return case.requests * DECODED / (time.perf_counter() - start)


def predicted(network: NativeNetwork, case: Case, machine: Machine) -> tuple[float, str]:
    """The roofline's tokens a second, and what binds it."""
    here = Chip(
        name="here",
        maker="",
        kind="cpu",
        memory=machine.memory,
        bandwidth=machine.bandwidth,
        rates={"bf16": machine.products},
        node=1,
    )
    deployment = Deployment(network.config, here, Layout(), Precision.OFFICIAL, chunk=CHUNK)
    if case.kind == "prefill":
        step = deployment.prefill_step(case.tokens)
        return case.tokens / deployment.first_token_seconds(case.tokens), step.binds
    step = deployment.step(case.requests, case.tokens + DECODED // 2)
    return case.requests / step.seconds, step.binds


def main() -> None:
    """All cases in turns; then the medians are recorded."""
    torch.set_num_threads(THREADS)
    found: dict[Case, list[tuple[float, float, str]]] = {case: [] for case in cases()}
    machines = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        measured_model.write(Path(folder) / "model")
        networks = {
            "embedded": load_native(local("embedded"), Precision.OFFICIAL),
            "bench": load_native(Path(folder) / "model", Precision.OFFICIAL),
        }
        for case in found:
            measured(networks[case.model], Case(case.model, case.kind, case.requests, 512))  # nobody times the first
        for _ in range(RUNS):
            for case, runs in found.items():
                machines.append(measure(THREADS))
                network = networks[case.model]
                runs.append((measured(network, case), *predicted(network, case, machines[-1])))
                print(case.model, case, runs[-1], flush=True)
    rows, figures = [], []
    for case, runs in found.items():
        speed, limit = statistics.median(run[0] for run in runs), statistics.median(run[1] for run in runs)
        binds = statistics.mode(run[2] for run in runs)
        figures.append({"case": f"{case.model}: {case}", "measured": speed, "roofline": limit, "binds": binds})
        shown = (f"{speed:,.0f}", f"{limit:,.0f}", binds, f"{speed / limit:.0%}", f"{limit / speed:.2f}")
        rows.append([MODELS[case.model], str(case), *shown])
    bandwidth = statistics.median(machine.bandwidth for machine in machines)
    products = statistics.median(machine.products for machine in machines)
    columns = [
        "model",
        "tokens",
        "tokens/s of the engine",
        "tokens/s at the roofline",
        "binds",
        "reached",
        "too high by ×",
    ]
    record(
        "roofline",
        {"runs": [[str(case), *run] for case, runs in found.items() for run in runs], "medians": figures}
        | {"table": {"columns": columns, "rows": rows}},
        notes=(
            f"Official precision, {THREADS} threads, greedy, chunks of {CHUNK:,}; medians of {RUNS} runs in turns with "
            f"the machine's own measurement: {bandwidth / 1e9:.0f} GB/s of memory, {products / 1e9:,.0f} GFLOP/s of "
            "PyTorch's BF16 product. The roofline is too high by what it leaves out: norms, softmaxes, the decoding of "
            "FP4 and FP8 weights, products of few rows, sampling and the engine's own bookkeeping, which is most of a "
            "step of the embedded model."
        ),
    )


if __name__ == "__main__":
    main()
