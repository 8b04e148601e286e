"""The public model: generation follows the logits, streaming follows generation, bad requests are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import narrows
from narrows.engine import generate as generation
from narrows.errors import NarrowsError, UsageError
from narrows.model.network import positions_of
from narrows.model.segments import Segment

MODEL = narrows.load("embedded")

some_tokens = st.lists(st.integers(0, MODEL.config.vocab_size - 1), min_size=1, max_size=300)


@given(some_tokens)
@settings(max_examples=10)
def test_logits_are_one_whole_pass(tokens: list[int]) -> None:
    segments = [Segment(len(tokens))]
    with torch.no_grad():
        streams = MODEL.network(torch.tensor(tokens), positions_of(segments), segments)
        whole = MODEL.network.logits(streams)
    ours = MODEL.logits(tokens)
    assert ours.dtype == torch.float32
    assert ours.shape == (len(tokens), MODEL.config.vocab_size)
    torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-4)


@given(some_tokens)
@settings(max_examples=10)
def test_chunks_of_any_size_prefill_alike(tokens: list[int]) -> None:
    whole = MODEL.logits(tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "PREFILL_ROWS", 7)
        torch.testing.assert_close(MODEL.logits(tokens), whole, rtol=1e-4, atol=1e-4)


@given(some_tokens)
@settings(max_examples=5)
def test_greedy_tokens_are_the_best_of_a_teacher_forced_pass(prompt: list[int]) -> None:
    completion = MODEL.generate(prompt, max_tokens=12)
    logits = MODEL.logits([*prompt, *completion.token_ids])
    for index, token in enumerate(completion.token_ids):
        row = logits[len(prompt) - 1 + index]
        assert row[token] >= row.max() - 1e-3
    if completion.finish_reason == "stop":
        end = logits[len(prompt) - 1 + len(completion.token_ids)]
        assert end[MODEL.config.eos_token_id] >= end.max() - 1e-3
    else:
        assert len(completion.token_ids) == 12


@given(st.text(min_size=1, max_size=40), st.integers(0, 2**31), st.sampled_from([0.0, 0.7, 3.0]))
@settings(max_examples=10)
def test_a_stream_is_its_completion_and_a_seed_its_text(prompt: str, seed: int, temperature: float) -> None:
    completion = MODEL.generate(prompt, max_tokens=24, temperature=temperature, seed=seed)
    stream = MODEL.stream(prompt, max_tokens=24, temperature=temperature, seed=seed)
    assert "".join(stream) == completion.text == MODEL.tokenizer.decode(completion.token_ids)
    assert (stream.token_ids, stream.finish_reason) == (completion.token_ids, completion.finish_reason)


def test_other_seeds_give_other_texts() -> None:
    texts = {MODEL.generate("def ", max_tokens=16, temperature=1.0, seed=seed).text for seed in range(4)}
    assert len(texts) > 1


def test_a_suffix_asks_for_the_middle() -> None:
    stream = MODEL.stream("def one():\n    ", suffix="\n\ndef two():\n    return 2\n", max_tokens=8)
    assert "".join(stream) != MODEL.generate("def one():\n    ", max_tokens=8).text


def test_a_generation_ends_at_the_last_position() -> None:
    config = MODEL.config.model_copy(update={"max_position_embeddings": 40, "trained_context": 40})
    network = narrows.load("embedded").network
    network.config = config
    short = narrows.Model(network, MODEL.tokenizer)
    ids = MODEL.tokenizer.encode("import os\n") * 20
    completion = short.generate(ids[:30], max_tokens=64, temperature=2.0)
    assert len(completion.token_ids) <= 10
    with pytest.raises(UsageError, match=r"the prompt has 41 tokens but the model 40 positions; shorten it\."):
        short.generate(ids[:41])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "the prompt is empty; give it at least one token of text."),
        ({"prompt": []}, "the prompt is empty; give it at least one token of text."),
        ({"prompt": [1_000_000]}, "token id 1000000 lies outside the vocabulary"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens is 0; ask for at least 1."),
        ({"prompt": "x", "temperature": -1.0}, "temperature is -1.0; choose 0"),
        ({"prompt": "x", "temperature": float("nan")}, "temperature is nan; choose 0"),
        ({"prompt": [5], "suffix": "y"}, "a suffix goes with a prompt of text"),
    ],
)
def test_bad_requests_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        MODEL.generate(**options)  # type: ignore[arg-type]


def test_bad_sources_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("{}")
    for source, message in [
        (tmp_path / "absent" / "model", "does not exist; name a directory"),
        (file, "is a file; name the directory that holds config.json"),
        ("nobody/nothing-of-that-name", "could not be fetched from the hub"),
    ]:
        with pytest.raises(NarrowsError, match=message):
            narrows.load(source)
    with pytest.raises(UsageError, match="precision 'fp7' is not one that a model computes in; choose float32 or bf16"):
        narrows.load("embedded", precision="fp7")


def test_bf16_says_nearly_the_same() -> None:
    ids = MODEL.tokenizer.encode("import os\n\n\ndef main(arguments):\n    for argument in arguments:\n")
    exact = torch.log_softmax(MODEL.logits(ids), -1)
    rounded = torch.log_softmax(narrows.load("embedded", precision="bf16").logits(ids), -1)
    divergence = (exact.exp() * (exact - rounded)).sum(-1).mean()
    assert divergence < 0.02
