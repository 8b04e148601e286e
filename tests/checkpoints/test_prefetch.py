"""Experts asked for ahead: the same bits, whatever is in memory and however little may be asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from narrows.checkpoints import native as module
from narrows.checkpoints.native import bind
from narrows.checkpoints.prepared import Prepared, prepare
from narrows.engine.paged_history import PagedHistory
from narrows.model.native_network import NativeNetwork
from narrows.model.precision import Precision
from narrows.model.presets import TINY
from narrows.model.segments import positions_of
from narrows.ops import native
from tests.checkpoints.models import write

pytestmark = pytest.mark.skipif(not native.available(), reason="there was no compiler")

# The second layer's experts follow from the tokens too, so that they are known ahead of a step; official formats fit.
MODEL = TINY.model_copy(update={"num_hash_layers": 2, "moe_intermediate_size": 96, "n_routed_experts": 12})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NARROWS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write(tmp_path / "model", MODEL, precision="float32")
    return tmp_path / "model"


def network(prepared: Prepared, monkeypatch: pytest.MonkeyPatch, memory: int | None) -> NativeNetwork:
    """As it is bound where there is so much memory; None: where the file fits."""
    monkeypatch.setattr(module, "usable_memory", lambda: 1 << 60 if memory is None else memory)
    return bind(prepared)


def run(network: NativeNetwork) -> list[Tensor]:
    """A prompt, more of it, and single tokens -> the streams of all steps, the MTP block's, and logits."""
    history = PagedHistory(network.config, slots=1, blocks=4, precision=network.cache)
    draft = PagedHistory.for_mtp(network.config, slots=1, precision=network.cache)
    history.bind(0, range(4))
    tokens = torch.randint(network.config.vocab_size, (180,), generator=torch.Generator().manual_seed(1))
    found = []
    for chunk in tokens.split([130, 47, 1, 1, 1]):
        segments, drafts = [history.segment(len(chunk))], [draft.segment(len(chunk))]
        streams = network(chunk, positions_of(segments), segments, history)
        found += [streams, network.mtp_forward(chunk, positions_of(drafts), drafts, streams, draft)]
    return [*found, network.logits(streams)]


def forget(prepared: Prepared) -> None:
    """Have the system drop the file's pages, if nobody maps them."""
    assert prepared.path
    with prepared.path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("precision", ["bf16", "fp8", "official"])
def test_prefetching_changes_no_bit(directory: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(directory, precision)
    expected = run(network(prepared, monkeypatch, None))
    for memory in (1, 16 * 40_000, prepared.bytes):  # an expert at a time, a few, all of a layer
        limited = network(prepared, monkeypatch, memory)
        assert same(run(limited), expected), memory
        assert limited.prefetched().needed > 0


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be told to forget a file")
def test_what_is_not_in_memory_is_read(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = prepare(directory, Precision.OFFICIAL).path
    assert path
    with path.open("rb") as file:
        prepared = Prepared(file, path)
    forget(prepared)
    cold = network(prepared, monkeypatch, prepared.bytes)
    found = run(cold)
    assert same(found, run(network(prepared, monkeypatch, None)))
    warm = network(prepared, monkeypatch, prepared.bytes)
    run(warm)
    assert warm.prefetched().needed == cold.prefetched().needed
    assert warm.prefetched().absent == 0


def test_experts_begin_inside_a_page(directory: Path) -> None:
    """The pages that are asked for reach beyond what is needed."""
    prepared = prepare(directory, Precision.OFFICIAL)
    matrices = [prepared.packed(name) for name in prepared.names if ".experts." in name]
    starts = {part.data_ptr() % 4096 for packed in matrices for part in (packed.values, packed.scales)}
    assert len(starts) > 10


def test_a_file_that_was_deleted_still_runs(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(directory, Precision.OFFICIAL)
    expected = run(network(prepared, monkeypatch, None))
    assert prepared.path
    prepared.path.unlink()
    assert same(run(network(prepared, monkeypatch, prepared.bytes)), expected)


def test_what_fits_is_left_alone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = network(prepare(directory, Precision.OFFICIAL), monkeypatch, None)
    run(fits)
    assert fits.prefetched() == (0, 0, 0, 0, 0)


def test_guesses_are_counted(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(directory, Precision.OFFICIAL)
    limited = network(prepared, monkeypatch, 16 * prepared.bytes)
    assert limited.prefetched() == (0, 0, 0, 0, 0)  # it fits
    limited = bind(prepared, prefetch=True)
    run(limited)
    counts = limited.prefetched()
    assert 0 < counts.right <= counts.guessed
    assert counts.right <= counts.chosen
