"""The public model: generation follows the logits, streaming follows generation, bad requests are refused."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import narrows
from narrows.checkpoints.hub import local
from narrows.checkpoints.shards import Shards
from narrows.cli.complete import with_imports
from narrows.engine import prefill as prefilling
from narrows.engine.model import _say_once
from narrows.engine.sequence import Event
from narrows.engine.text import TextStream
from narrows.errors import NarrowsError, UsageError
from narrows.model.network import Network, positions_of
from narrows.model.segments import Segment
from narrows.ops import native
from narrows.text.fim import fim_prompt
from narrows.text.tokenizer import USER
from tests.draws import scaled

MODEL = narrows.load("embedded")
EXACT = narrows.load("embedded", precision="float32")

some_tokens = st.lists(st.integers(0, MODEL.config.vocab_size - 1), min_size=1, max_size=300)


@given(some_tokens)
@settings(max_examples=scaled(10))
def test_logits_are_one_whole_pass(tokens: list[int]) -> None:
    segments = [Segment(len(tokens))]
    network = EXACT.network
    assert isinstance(network, Network)
    with torch.no_grad():
        streams = network(torch.tensor(tokens), positions_of(segments), segments)
        whole = network.logits(streams)
    ours = EXACT.logits(tokens)
    assert ours.dtype == torch.float32
    assert ours.shape == (len(tokens), EXACT.config.vocab_size)
    torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-4)


@given(some_tokens)
@settings(max_examples=scaled(10))
def test_chunks_of_any_size_prefill_alike(tokens: list[int]) -> None:
    whole = MODEL.logits(tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefilling, "PREFILL_ROWS", 7)
        torch.testing.assert_close(MODEL.logits(tokens), whole, rtol=1e-4, atol=1e-4)


@given(some_tokens)
@settings(max_examples=scaled(5))
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
@settings(max_examples=scaled(10))
def test_a_stream_is_its_completion_and_a_seed_its_text(prompt: str, seed: int, temperature: float) -> None:
    completion = MODEL.generate(prompt, max_tokens=24, temperature=temperature, seed=seed)
    stream = MODEL.stream(prompt, max_tokens=24, temperature=temperature, seed=seed)
    assert "".join(stream) == completion.text == text_of(completion.token_ids)
    assert (stream.token_ids, stream.finish_reason) == (completion.token_ids, completion.finish_reason)


def text_of(token_ids: list[int]) -> str:
    """Their text without control tokens, which end a character as they end a text."""
    runs = groupby(token_ids, MODEL.tokenizer.is_control)
    return "".join(MODEL.tokenizer.decode(run) for control, run in runs if not control)


def test_control_tokens_are_no_text() -> None:
    user = MODEL.tokenizer.control(USER)
    ids = [*MODEL.tokenizer.encode("a€"), user, *MODEL.tokenizer.encode("b")]
    text = TextStream(MODEL.tokenizer, ())
    assert "".join(map(text.push, ids)) + text.finish() == "a€b"
    assert TextStream(MODEL.tokenizer, ()).push(user) == ""


def test_weights_without_finite_logits_are_named() -> None:
    model = narrows.load("embedded", precision="float32")
    assert isinstance(model.network, Network)
    with torch.no_grad():
        model.network.norm.weight.fill_(float("inf"))
    for temperature in (0.0, 1.0):
        with pytest.raises(NarrowsError, match="logits are not finite"):
            model.generate("x", max_tokens=2, temperature=temperature)


def test_what_they_are_is_shown() -> None:
    assert re.fullmatch(r"Model\([\d,]+ parameters, official on cpu\)", repr(MODEL))
    assert re.fullmatch(r"Model\([\d,]+ parameters, float32 on cpu\)", repr(EXACT))
    assert re.fullmatch(r"Tokenizer\([\d,]+ tokens, .*tokenizer\.json\)", repr(MODEL.tokenizer))
    stream = MODEL.stream("import os", max_tokens=2)
    assert repr(stream) == "Generation(0 tokens so far)"


def test_a_lack_of_kernels_is_mentioned_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """In float32 too, whose ops they would do."""
    _say_once.cache_clear()
    monkeypatch.setattr(native, "kernels", None)
    for precision in ("float32", "official", None, "float32"):
        narrows.load("embedded", precision=precision)
    assert [record.getMessage() for record in caplog.records if record.name == "narrows"] == [
        "The kernels cannot run this model (the package was installed without a compiler; install one, and narrows "
        "again): PyTorch does, and slower."
    ]
    _say_once.cache_clear()


def test_a_damaged_tokenizer_is_noticed(tmp_path: Path) -> None:
    folder = shutil.copytree(local("embedded"), tmp_path / "model")
    with (folder / "SHA256SUMS").open("a") as file:
        file.write("0" * 64 + "  tokenizer.json\n")
    with pytest.raises(NarrowsError, match=r"tokenizer\.json is damaged"):
        narrows.load(folder)


def test_other_seeds_give_other_texts() -> None:
    texts = {MODEL.generate("def ", max_tokens=16, temperature=1.0, seed=seed).text for seed in range(4)}
    assert len(texts) > 1


def test_a_suffix_asks_for_the_middle() -> None:
    stream = MODEL.stream("def one():\n    ", suffix="\n\ndef two():\n    return 2\n", max_tokens=8)
    assert "".join(stream) != MODEL.generate("def one():\n    ", max_tokens=8).text


@pytest.mark.parametrize("layout", ["psm", "spm"])
def test_a_suffix_stands_where_the_model_learned_it(layout: Literal["psm", "spm"], tmp_path: Path) -> None:
    network = narrows.load("embedded").network
    network.config = network.config.model_copy(update={"fim_layout": layout})
    model = narrows.Model(network, MODEL.tokenizer)
    asked: list[list[int]] = []

    def events(token_ids: Sequence[int], _: object) -> Iterator[Event]:
        asked.append(list(token_ids))
        yield from ()

    model._events = events  # type: ignore[method-assign]
    model.generate("import os\n", suffix="\nx = 1\n")
    prompt, _ = with_imports(model, tmp_path / "a.py", "import os\n\nx = 1\n", "import os\n", "\nx = 1\n", 8)
    assert asked == [prompt] == [fim_prompt(MODEL.tokenizer, "import os\n", "\nx = 1\n", layout=layout)]


def test_a_generation_ends_at_the_last_position() -> None:
    config = MODEL.config.model_copy(
        update={"max_position_embeddings": 40, "trained_context": 40, "eos_token_id": -1}  # so that no token ends it
    )
    network = narrows.load("embedded").network
    network.config = config
    short = narrows.Model(network, MODEL.tokenizer)
    ids = MODEL.tokenizer.encode("import os\n") * 20
    completion = short.generate(ids[:30], max_tokens=64, temperature=2.0)
    assert (len(completion.token_ids), completion.finish_reason) == (10, "length")
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
        ({"prompt": "x", "seed": 2**64}, f"seed is {2**64}; choose one from 0"),
        ({"prompt": "x", "seed": -1}, "seed is -1; choose one from 0"),
        ({"prompt": [1.5]}, "a token id is "),
        ({"prompt": torch.ones(2, 3, dtype=torch.int64)}, "a token id is "),
        ({"prompt": ["a"]}, "a token id is "),
        ({"prompt": [[1, 2]]}, "a token id is "),
        ({"prompt": [True]}, "a token id is "),
        ({"prompt": np.ones((2, 2), dtype=int)}, "a token id is "),
        ({"prompt": np.array([0.5])}, "a token id is "),
        ({"prompt": 5}, "int holds no token ids; give text, a flat list"),
        ({"prompt": None}, "NoneType holds no token ids"),
        ({"prompt": {1, 2}}, "set holds no token ids"),
        ({"prompt": b"abc"}, "bytes holds no token ids"),
        ({"prompt": torch.tensor(5)}, "Tensor holds no token ids"),
        ({"prompt": "x", "suffix": 5}, "the suffix is 5; give text"),
        ({"prompt": "x", "max_tokens": 1.5}, "max_tokens is 1.5; give a whole number"),
        ({"prompt": "x", "max_tokens": None}, "max_tokens is None; give a whole number"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens is True; give a whole number"),
        ({"prompt": "x", "seed": "1"}, "seed is '1'; give a whole number"),
        ({"prompt": "x", "temperature": "a"}, "temperature is 'a'; give a number"),
        ({"prompt": "x", "temperature": None}, "temperature is None; give a number"),
        ({"prompt": torch.tensor([], dtype=torch.int64)}, "the prompt is empty; give it at least one token of text."),
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
        ("a--b/c", "is no directory here and cannot be a hub id either"),
    ]:
        with pytest.raises(NarrowsError, match=message):
            narrows.load(source)
    for options in ({"source": None}, {"source": 5}, {"device": None}, {"precision": 5}):
        with pytest.raises(UsageError):
            narrows.load(**options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"precision 'fp7' is not one .*; choose float32, bf16, fp8 or official"):
        narrows.load("embedded", precision="fp7")


@pytest.mark.parametrize("device", ["foo", "meta", "cuda:99"])
@pytest.mark.parametrize("precision", [None, "float32"])
def test_bad_devices_are_refused(device: str, precision: str | None) -> None:
    with pytest.raises(UsageError, match=device):
        narrows.load("embedded", device=device, precision=precision)


def test_token_ids_may_be_a_tensor() -> None:
    tokens = MODEL.tokenizer.encode("import os\n")
    for tensor in (torch.tensor(tokens), torch.tensor(tokens, dtype=torch.int32), np.array(tokens)):
        assert torch.equal(MODEL.logits(tensor), MODEL.logits(tokens))
        assert MODEL.generate(tensor, max_tokens=4) == MODEL.generate(tokens, max_tokens=4)
    assert MODEL.generate(torch.tensor([5]), max_tokens=1).token_ids  # of one token, whose truth value would be its own


def test_the_largest_seed() -> None:
    assert MODEL.generate("x", max_tokens=2, temperature=1.0, seed=2**64 - 1).token_ids


def test_a_tokenizer_of_another_model_is_noticed_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one damaged id is so large that a list up to it would fill the memory."""
    folder = shutil.copytree(local("embedded"), tmp_path / "model")
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["added_tokens"].append({**definition["added_tokens"][0], "content": "<damaged>", "id": 10**13})
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    (folder / "SHA256SUMS").unlink()  # which would report it sooner
    monkeypatch.setattr(Shards, "tensor", lambda *_: pytest.fail("a weight was read"))
    with pytest.raises(NarrowsError, match=r"has 10000000000001 tokens but .* has vocab_size"):
        narrows.load(folder)


def test_the_version_is_the_installed_one() -> None:
    assert narrows.__version__ == importlib.metadata.version("narrows")


def test_bf16_says_nearly_the_same() -> None:
    ids = MODEL.tokenizer.encode("import os\n\n\ndef main(arguments):\n    for argument in arguments:\n")
    exact = torch.log_softmax(MODEL.logits(ids), -1)
    rounded = torch.log_softmax(narrows.load("embedded", precision="bf16").logits(ids), -1)
    divergence = (exact.exp() * (exact - rounded)).sum(-1).mean()
    assert divergence < 0.02
