"""Drafts: made by the MTP block from what a pass over the whole text would give it, and worth nothing to the text."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from narrows.engine.core import Core
from narrows.engine.limits import Limits
from narrows.engine.request import SamplingParameters
from narrows.engine.sequence import Drawn, Request
from narrows.engine.speculation import Drafter, Followed, Success
from narrows.errors import NarrowsError, UsageError
from narrows.model.network import Network, positions_of
from narrows.model.presets import TINY
from narrows.model.segments import Segment
from tests.parity.configurations import randomised, relative_error

NETWORK = randomised(Network(TINY, dtype=torch.float64), torch.Generator().manual_seed(5))


def whole_pass(tokens: list[int], streams: Tensor) -> Tensor:
    """The block's logits behind every row but the last, which has no next token."""
    segments = [Segment(len(tokens) - 1)]
    out = NETWORK.mtp_forward(torch.tensor(tokens[1:]), positions_of(segments), segments, streams[:-1])
    return NETWORK.mtp_logits(out)


@given(seed=st.integers(0, 2**32))
@torch.inference_mode()
def test_drafts_come_from_the_logits_of_one_pass(seed: int) -> None:
    """However the rows come, and however many drafts were made and taken back between them."""
    random = Random(seed)
    texts = [[random.randrange(TINY.vocab_size) for _ in range(random.randint(8, 60))] for _ in range(2)]
    drafter = Drafter(NETWORK, slots=3, most=3)
    slots = random.sample(range(3), 2)
    segments = [Segment(len(text)) for text in texts]
    flat = torch.tensor([token for text in texts for token in text])
    streams = NETWORK(flat, positions_of(segments), segments).split([len(text) for text in texts])
    wanted = [whole_pass(text, rows) for text, rows in zip(texts, streams, strict=True)]
    done = [0, 0]
    while done[0] < len(texts[0]) - 1 and done[1] < len(texts[1]) - 1:
        followed = []
        for number, text in enumerate(texts):
            rows = min(random.choice((1, 2, 9)), len(text) - 1 - done[number])
            part = slice(done[number], done[number] + rows)
            next_tokens = text[part.start + 1 : part.stop + 1]
            followed.append(Followed(slots[number], streams[number][part], next_tokens, random.randint(0, 3)))
            done[number] += rows
        first: dict[int, Tensor] = {}

        def guess(number: int, logits: Tensor, ahead: int, first: dict[int, Tensor] = first) -> int | None:
            if not ahead:
                first[number] = logits
            return None if random.random() < 0.2 else int(logits.argmax())

        drafts = drafter.draft(followed, guess)
        for number, one in enumerate(followed):
            assert len(drafts[number]) <= one.drafts
            if one.drafts:
                assert relative_error(first[number], wanted[number][done[number] - 1]) < 1e-10


@pytest.mark.parametrize("drafts", [1, 2, 3])
def test_real_drafts_leave_the_text_as_it_is(drafts: int) -> None:
    texts = []
    for most in (0, drafts):
        core = Core(NETWORK, None, Limits(memory=1 << 24, slots=1, drafts=most, draft_rate=0))
        core.submit(Request(tuple(range(2, 30)), SamplingParameters(max_tokens=40, logit_bias={1: -100.0})))
        texts.append([event.token for _ in range(60) for event in core.step() if isinstance(event, Drawn)])
        if most:
            assert core.stats.drafted > 0
    assert texts[0] == texts[1]
    assert len(texts[0]) == 40


def test_a_block_that_fails_ends_drafting_and_no_request(caplog: pytest.LogCaptureFixture) -> None:
    core = Core(NETWORK, None, Limits(memory=1 << 24, slots=1, drafts=1))
    core.submit(Request((3, 4, 5), SamplingParameters(max_tokens=6, logit_bias={1: -100.0})))

    def fail(*_: object) -> None:
        raise MemoryError

    hook = NETWORK.mtp[0].register_forward_pre_hook(fail)
    drawn = [event for _ in range(10) for event in core.step() if isinstance(event, Drawn)]
    hook.remove()
    assert len(drawn) == 6
    assert core.idle
    assert "drafting failed" in caplog.text


def test_a_guess_that_cannot_be_made_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise NarrowsError("no")

    core = Core(NETWORK, None, Limits(memory=1 << 24, slots=1, drafts=1))
    (sequence,) = core.submit(Request((3, 4, 5), SamplingParameters(max_tokens=6, logit_bias={1: -100.0})))
    monkeypatch.setattr(sequence.sampler, "guess", refuse)
    drawn = [event for _ in range(10) for event in core.step() if isinstance(event, Drawn)]
    assert (len(drawn), core.stats.drafted) == (6, 0)
    assert core._drafter is not None


def test_drafts_that_fall_are_given_up_and_tried_again() -> None:
    success = Success()
    assert success.wanted(2, 0.5) == 2
    for _ in range(20):
        success.record(2, 0)
    wanted = [success.wanted(2, 0.5) for _ in range(200)]
    first = wanted.index(2)
    assert first >= 100
    assert set(wanted[:first]) == {0}
    for _ in range(40):
        success.record(2, 2)
    assert success.rate > 0.9


@pytest.mark.parametrize("options", [{"drafts": 1.0}, {"drafts": True}, {"drafts": 9}, {"draft_rate": "x"}])
def test_limits_of_drafts_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(options))} is .*; give a"):
        Limits(**options)  # type: ignore[arg-type]
