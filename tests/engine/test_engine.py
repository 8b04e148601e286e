"""The engine from outside: many threads, asyncio, cancelling, closing; every answer is the core's."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from narrows.engine.engine import Engine
from narrows.engine.grammar import Grammar
from narrows.engine.limits import Limits
from narrows.engine.model import load
from narrows.engine.request import ThinkingBudget
from narrows.engine.sampling import SamplingParameters
from narrows.engine.scheduler import Policy
from narrows.engine.sequence import Drawn, Event, Finished, Scored
from narrows.errors import NarrowsError, UsageError
from narrows.model.network import Network
from narrows.model.presets import TINY
from narrows.model.segments import Segment
from narrows.text.tokenizer import END_OF_THINKING
from tests.parity.configurations import randomised

LIMITS = Limits(memory=1 << 24, slots=3)
PROMPTS = [[place * (number % 4 + 1) % TINY.vocab_size for place in range(5 + 9 * number)] for number in range(8)]


@pytest.fixture(scope="module")
def network() -> Network:
    return randomised(Network(TINY, dtype=torch.float64), torch.Generator().manual_seed(5))


def tokens_of(events: list[Event]) -> list[int]:
    return [event.token for event in events if isinstance(event, Drawn)]


def asked(engine: Engine, prompt: list[int], tokens: int = 6) -> list[int]:
    return tokens_of(list(engine.submit(prompt, SamplingParameters(max_tokens=tokens))))


@pytest.fixture(scope="module")
def wanted(network: Network) -> list[list[int]]:
    found = []
    for prompt in PROMPTS:
        with Engine(network, limits=LIMITS) as engine:
            found.append(asked(engine, prompt))
    return found


def test_many_threads_get_their_own_answers(network: Network, wanted: list[list[int]]) -> None:
    with Engine(network, limits=LIMITS) as engine, ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda prompt: asked(engine, prompt), PROMPTS * 2)) == wanted * 2
        stats = engine.stats()
        assert stats["drawn"] == 2 * sum(map(len, wanted))
        assert stats["free_slots"] == LIMITS.slots


def test_a_prompts_tokens_are_scored_however_it_is_cut(network: Network) -> None:
    prompt = PROMPTS[7]
    step = network(torch.tensor(prompt), torch.arange(len(prompt)), [Segment(len(prompt))])
    wanted = network.logits(step).detach().log_softmax(-1)
    expected = [float(row[token]) for row, token in zip(wanted, prompt[1:], strict=False)]
    parameters = SamplingParameters(max_tokens=2, prompt_logprobs=3, n=2)
    for rows in (1, 3, 1000):
        limits = Limits(memory=1 << 24, slots=3, policy=Policy(rows=rows))
        with Engine(network, limits=limits) as engine:
            list(engine.submit(prompt, SamplingParameters(max_tokens=2)))  # now it is known, and computed all the same
            events = list(engine.submit(prompt, parameters))
        scored = [event for event in events if isinstance(event, Scored)]
        assert [event.start for event in scored] == [1 + rows * turn for turn in range(len(scored))]
        tokens = [token for event in scored for token in event.tokens]
        assert [one.token for one in tokens] == prompt[1:]
        assert [one.logprob for one in tokens] == pytest.approx(expected, abs=1e-9)
        for one, row in zip(tokens, wanted, strict=False):
            assert [logprob for _, logprob in one.alternatives] == pytest.approx(row.topk(3).values.tolist(), abs=1e-9)


def test_asyncio_streams_get_their_own_answers(network: Network, wanted: list[list[int]]) -> None:
    async def ask(engine: Engine, prompt: list[int]) -> list[int]:
        return tokens_of([event async for event in engine.submit(prompt, SamplingParameters(max_tokens=6))])

    async def all_of_them(engine: Engine) -> list[list[int]]:
        return await asyncio.gather(*(ask(engine, prompt) for prompt in PROMPTS))

    with Engine(network, limits=LIMITS) as engine:
        assert asyncio.run(all_of_them(engine)) == wanted


def test_a_cancelled_request_ends_and_others_go_on(network: Network, wanted: list[list[int]]) -> None:
    with Engine(network, limits=LIMITS) as engine:
        long = engine.submit(PROMPTS[0], SamplingParameters(max_tokens=2_000))
        events = iter(long)
        next(event for event in events if isinstance(event, Drawn))
        long.cancel()
        rest = list(events)
        assert isinstance(rest[-1], Finished)
        assert rest[-1].reason == "cancelled"
        assert asked(engine, PROMPTS[1]) == wanted[1]
        assert engine.stats()["free_slots"] == LIMITS.slots


def test_several_answers_come_on_one_handle(network: Network) -> None:
    with Engine(network, limits=LIMITS) as engine:
        handle = engine.submit(PROMPTS[3], SamplingParameters(max_tokens=4, temperature=1.0, seed=1, n=3))
        events = list(handle)
        assert sorted(event.sequence.index for event in events if isinstance(event, Finished)) == [0, 1, 2]
        assert len(handle.sequences) == 3


def test_one_of_several_answers_can_be_cancelled(network: Network) -> None:
    with Engine(network, limits=LIMITS) as engine:
        handle = engine.submit(PROMPTS[3], SamplingParameters(max_tokens=400, temperature=1.0, seed=1, n=3))
        handle.cancel(1)
        reasons = {event.sequence.index: event.reason for event in handle if isinstance(event, Finished)}
        assert reasons == {0: "stop", 1: "cancelled", 2: "stop"}


def test_who_falls_behind_gets_what_has_come_at_once(network: Network, wanted: list[list[int]]) -> None:
    async def ask(engine: Engine) -> list[list[Event]]:
        handle = engine.submit(PROMPTS[2], SamplingParameters(max_tokens=6))
        while engine.stats()["free_slots"] < LIMITS.slots or engine.stats()["drawn"] < 6:
            await asyncio.sleep(0.01)
        return [batch async for batch in handle.batches()]

    with Engine(network, limits=LIMITS) as engine:
        (batch,) = asyncio.run(ask(engine))
        assert tokens_of(batch) == wanted[2]
        assert isinstance(batch[-1], Finished)


@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("drafts", [0, 2])
def test_reasoning_ends_when_its_budget_is_spent(tokens: int, constrained: bool, drafts: int) -> None:
    model = load()
    end = model.tokenizer.control(END_OF_THINKING)
    asked = SamplingParameters(max_tokens=30, logit_bias={end: -100})  # it never ends by itself
    with Engine(model.network, model.tokenizer, Limits(memory=1 << 24, slots=3, drafts=drafts)) as engine:
        options: dict[str, Any] = {}
        if constrained:
            options = {"grammar": Grammar.regex(engine.vocabulary, "[0-9]{9}"), "grammar_after": end}
        drawn = tokens_of(list(engine.submit([5], asked, thinking=ThinkingBudget(tokens, end), **options)))
    assert drawn.index(end) == tokens
    assert drawn.count(end) == 1
    if constrained:
        assert re.fullmatch("[0-9]{9}", model.tokenizer.decode(drawn[tokens + 1 :]))


def test_a_budget_that_is_not_spent_changes_nothing() -> None:
    model = load()
    end = model.tokenizer.control(END_OF_THINKING)
    soon = SamplingParameters(max_tokens=30, temperature=1.0, seed=4, logit_bias={end: 15})
    free = tokens_of(list(model.engine.submit([5], soon)))
    place = free.index(end)
    for tokens in (place, place + 1, 1000):
        assert tokens_of(list(model.engine.submit([5], soon, thinking=ThinkingBudget(tokens, end)))) == free


def test_a_timeout_ends_a_request(network: Network) -> None:
    with Engine(network, limits=LIMITS) as engine:
        events = list(engine.submit(PROMPTS[0], SamplingParameters(max_tokens=2_000), timeout=0.2))
        assert isinstance(events[-1], Finished)
        assert events[-1].reason == "deadline"


def test_closing_ends_what_runs_and_refuses_what_comes(network: Network) -> None:
    engine = Engine(network, limits=LIMITS)
    handle = engine.submit(PROMPTS[0], SamplingParameters(max_tokens=2_000))
    closing = threading.Timer(0.2, engine.close)
    closing.start()
    events = list(handle)
    closing.join()
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "cancelled"
    with pytest.raises(NarrowsError, match="the engine is closed"):
        engine.submit([1], SamplingParameters())
    handle.cancel()
    engine.close()


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "the prompt is empty"),
        ("def f", {}, "the prompt is text; give its token ids"),
        ([10**7], {}, f"token id {10**7} lies outside the vocabulary of {TINY.vocab_size}"),
        ([-1], {}, "token id -1 lies outside the vocabulary"),
        ([1.5], {}, "a token id is 1.5; give a whole number"),
        ([1], {"priority": "x"}, "priority is 'x'; give a whole number"),
        ([1], {"timeout": "1"}, "timeout is '1'; give a number"),
        ([1], {"timeout": float("nan")}, "timeout is nan; choose"),
        ([1], {"parameters": None}, "parameters is None; give SamplingParameters"),
    ],
)
def test_what_cannot_run_is_the_callers_error(
    network: Network, prompt: list[int], options: dict[str, Any], message: str
) -> None:
    parameters = options.get("parameters", SamplingParameters())
    options = {name: value for name, value in options.items() if name != "parameters"}
    with Engine(network, limits=LIMITS) as engine, pytest.raises(UsageError, match=message):
        engine.submit(prompt, parameters, **options)


@pytest.mark.parametrize("options", [{"slots": 0}, {"slots": 1.5}, {"memory": "1G"}, {"snapshot_share": 1.0}])
def test_limits_that_make_no_sense_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        Limits(**options)


def test_who_leaves_the_loop_cancels_the_request(network: Network) -> None:
    async def ask(engine: Engine) -> None:
        async for _ in engine.submit(PROMPTS[0], SamplingParameters(max_tokens=2_000)):
            break

    with Engine(network, limits=LIMITS) as engine:
        for _ in engine.submit(PROMPTS[0], SamplingParameters(max_tokens=2_000)):
            break
        asyncio.run(ask(engine))
        end = time.monotonic() + 10
        while engine.stats()["free_slots"] < LIMITS.slots and time.monotonic() < end:
            time.sleep(0.05)
        assert engine.stats()["free_slots"] == LIMITS.slots


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_in_the_engines_thread_leaves_nobody_waiting(network: Network) -> None:
    engine = Engine(network, limits=LIMITS)
    engine._core.step = lambda: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    (event,) = engine.submit([1], SamplingParameters())
    assert isinstance(event, Finished)
    assert isinstance(event.error, ZeroDivisionError)
    with pytest.raises(NarrowsError, match="the engine is closed"):
        engine.stats()
    engine.close()


def test_an_idle_engine_takes_no_time(network: Network) -> None:
    with Engine(network, limits=LIMITS) as engine:
        asked(engine, PROMPTS[0])
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.15


def test_what_is_no_grammar_of_this_engine_is_refused() -> None:
    model = load()
    with (
        Engine(model.network, model.tokenizer, LIMITS) as engine,
        Engine(model.network, model.tokenizer, LIMITS) as other,
    ):
        ours = Grammar.regex(engine.vocabulary, "[0-9]{3}")
        for options, message in (
            ({"grammar": {"type": "object"}}, "grammar is .*; make one with"),
            ({"grammar": Grammar.regex(other.vocabulary, "a")}, "made with another vocabulary"),
            ({"grammar_after": 5}, "grammar_after is given without a grammar"),
            ({"grammar": ours, "grammar_after": -1}, "grammar_after is -1; give a token id below"),
            ({"thinking": 5}, "thinking is 5; give a ThinkingBudget"),
            ({"thinking": ThinkingBudget(5, 10**6)}, "the end of the thinking budget is 1000000; choose 0 to"),
        ):
            with pytest.raises(UsageError, match=message):
                engine.submit([5], SamplingParameters(), **options)  # type: ignore[arg-type]
        tokens = tokens_of(engine.submit([5], SamplingParameters(max_tokens=20), grammar=ours))
        assert re.fullmatch("[0-9]{3}", model.tokenizer.decode(tokens))


def test_a_handle_has_one_reader(network: Network) -> None:
    with Engine(network, limits=LIMITS) as engine:
        handle = engine.submit(PROMPTS[0], SamplingParameters(max_tokens=3))
        assert len(list(handle)) > 0
        with pytest.raises(NarrowsError, match="has a reader already"):
            list(handle)


@pytest.mark.parametrize("cache", ["fp8", "int4", 5])
def test_caches_that_there_are_not_are_refused(network: Network, cache: object) -> None:
    with pytest.raises(UsageError, match=r"cache is .*, which no history is kept in; choose float32, bf16, official"):
        Engine(network, limits=LIMITS, cache=cache)  # type: ignore[arg-type]
