"""What a network needs for a text, and how far it is from another: as the definitions have it, from all logits."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from narrows.checkpoints.hub import local
from narrows.checkpoints.load import load_network, load_reference
from narrows.engine import real_source
from narrows.engine.divergence import Predictions, compare
from narrows.engine.real_source import library_samples
from narrows.errors import NarrowsError
from narrows.model.network import Network, positions_of
from narrows.model.segments import Segment
from narrows.text.tokenizer import Tokenizer
from narrows.training.evaluate import bits_per_byte

EMBEDDED = local("embedded")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(EMBEDDED)


@pytest.fixture(scope="module")
def texts(tokenizer: Tokenizer) -> list[list[int]]:
    """Of lengths that end within and at steps and chunks, the first longer than one step of a prefill."""
    samples = library_samples(tokenizer, 2000, 2400)
    return [samples[0] + samples[1][:700], samples[1][:128], samples[0][:1]]


def logs(network: Network, tokenizer: Tokenizer, text: list[int]) -> Tensor:
    """log p of all tokens, one pass without a history: float64 [len(text), vocab]."""
    tokens = torch.tensor([tokenizer.bos_id, *text[:-1]])
    segments = [Segment(len(tokens))]
    with torch.no_grad():
        return network.logits(network(tokens, positions_of(segments), segments)).double().log_softmax(-1)


def test_they_are_what_all_logits_give(tokenizer: Tokenizer, texts: list[list[int]]) -> None:
    first, second = load_reference(EMBEDDED, "float32"), load_reference(EMBEDDED, "float32")
    second.round_inputs()
    found = compare(*(Predictions(network, tokenizer, texts) for network in (first, second)), tokenizer, texts)
    nats = divergence = 0.0
    for text in texts:
        theirs, ours = (logs(network, tokenizer, text) for network in (first, second))
        nats -= float(ours[torch.arange(len(text)), text].sum())
        divergence += float(torch.nn.functional.kl_div(ours, theirs, reduction="sum", log_target=True))
    count = sum(map(len, texts))
    size = len(b"".join(tokenizer.bytes_of(token) for text in texts for token in text))
    assert found.tokens == count
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    assert found.divergence == pytest.approx(divergence / count, rel=1e-2)


def test_bits_per_byte_are_those_of_training(tokenizer: Tokenizer, texts: list[list[int]]) -> None:
    network = load_network(EMBEDDED)
    seen = Predictions(network, tokenizer, texts)
    found = compare(seen, seen, tokenizer, texts)
    assert found.bits_per_byte == pytest.approx(bits_per_byte(network, tokenizer, texts, 4096), rel=1e-4)
    assert found.divergence == 0


def test_the_cache_of_a_precision_counts(tokenizer: Tokenizer, texts: list[list[int]]) -> None:
    """The embedded model's weights are the same in bf16 and official; what its histories hold is not."""
    whole, small = (Predictions(load_reference(EMBEDDED, name), tokenizer, texts) for name in ("bf16", "official"))
    assert compare(whole, small, tokenizer, texts).divergence > 1e-5


def test_what_is_not_finite_is_said(tokenizer: Tokenizer, texts: list[list[int]]) -> None:
    network = load_network(EMBEDDED)
    whole = Predictions(network, tokenizer, texts)
    with torch.no_grad():
        network.norm.weight.fill_(torch.inf)
    spoilt = Predictions(network, tokenizer, texts)
    with pytest.raises(NarrowsError, match="not finite"):
        compare(whole, spoilt, tokenizer, texts)


def test_samples_are_beginnings_of_files(tokenizer: Tokenizer) -> None:
    samples = library_samples(tokenizer, 300, 1000)
    assert sum(map(len, samples)) == 1000
    assert max(map(len, samples)) == 300
    sources = list(zip(samples, real_source.library_sources(), strict=False))
    assert len(sources) == len(samples)
    for sample, text in sources:
        assert sample == tokenizer.encode(text)[: len(sample)]
    assert samples == library_samples(tokenizer, 300, 1000)


def test_a_library_without_sources_gives_none(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_source.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "nowhere")})
    assert library_samples(tokenizer, 10, 10) == []
    monkeypatch.setattr(real_source.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    (tmp_path / "empty.py").touch()
    (tmp_path / "test").mkdir()
    (tmp_path / "test/one.py").write_text("x = 1\n")
    assert library_samples(tokenizer, 10, 10) == []
    (tmp_path / "short.py").write_text("x = 1\n")
    assert library_samples(tokenizer, 100, 100) == [tokenizer.encode("x = 1\n")]
