"""The native path's table sets each speed beside the right one, and its run computes every token."""

from pathlib import Path

import pytest
import torch

from benchmarks import bench_native
from benchmarks.bench_native import BF16, Q8_0, SIDES, TRANSFORMERS, ours, plot, run_network, table
from narrows.model.network import Network
from narrows.model.precision import Precision
from narrows.model.presets import TINY
from narrows.model.segments import Segment

OFFICIAL = Precision.OFFICIAL


def test_ratios_are_to_the_better_of_two_and_to_the_same_width(tmp_path: Path) -> None:
    speeds = {side: {"prefill": 100.0, "decode": 10.0} for side in SIDES}
    speeds[Q8_0] = {"prefill": 1000.0, "decode": 300.0}
    speeds[BF16] = {"prefill": 2000.0, "decode": 200.0}
    speeds[TRANSFORMERS] = {"prefill": 500.0, "decode": 50.0}
    speeds[ours(OFFICIAL, "network")] = {"prefill": 3000.0, "decode": 600.0}
    speeds[ours(Precision.BF16, "network")] = {"prefill": 1000.0, "decode": 300.0}
    medians = {512: speeds, 16_384: speeds}
    limits = {length: {OFFICIAL: 1000.0, Precision.BF16: 500.0} for length in medians}
    shown = table(medians, limits)
    assert shown["columns"][1:] == ["prefill of 512", "prefill of 16,384", "decode behind 512", "decode behind 16,384"]
    rows = {row[0]: row[1::2] for row in shown["rows"]}
    assert rows[Q8_0] == ["1,000", "300"]
    assert rows["narrows official, engine"] == ["100", "10.0"]
    assert rows["narrows official, network, × the better of llama.cpp"] == ["1.50", "2.00"]
    assert rows["narrows bf16, network, × llama.cpp BF16"] == ["0.50", "1.50"]
    assert rows["narrows official, network, × transformers"] == ["6.00", "12.00"]
    assert rows["narrows official, engine, × the better of llama.cpp"] == ["0.05", "0.03"]
    assert rows["narrows official, network, of memory's limit"] == ["–", "60%"]
    assert rows["narrows bf16, network, of memory's limit"] == ["–", "60%"]
    plot(medians, tmp_path / "native.png")
    assert (tmp_path / "native.png").stat().st_size > 10_000


def test_a_run_computes_the_prompt_in_chunks_and_then_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = Network(TINY)
    network.initialise()
    steps: list[tuple[int, int]] = []

    def seen(module: Network, given: tuple[torch.Tensor, torch.Tensor, list[Segment], object]) -> None:
        (segment,) = given[2]
        steps.append((segment.past, segment.rows))

    network.register_forward_pre_hook(seen)
    monkeypatch.setattr(bench_native, "load", lambda directory, precision: network)
    monkeypatch.setattr(bench_native, "CHUNK", 128)
    run = run_network(Path("anywhere"), OFFICIAL)
    start, prefilled, end = run(list(range(300)), 3)
    assert start < prefilled < end
    assert steps == [(0, 128), (128, 128), (256, 44), (300, 1), (301, 1), (302, 1)]
