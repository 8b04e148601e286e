"""Exact however it is scheduled: a request's tokens are those of the same request alone and cold.

Random requests with common beginnings arrive at random, share steps of random sizes, are parked, forked, cancelled and
resumed from known prefixes in pools that are too small for all of them. In float64, so that only a wrong history, and
no other order of summing, can change a token.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import pytest
import torch

from benchmarks.record import record
from narrows.engine.core import Core
from narrows.engine.limits import Limits
from narrows.engine.paged_history import PagedHistory
from narrows.engine.sampling import SamplingParameters
from narrows.engine.scheduler import Policy
from narrows.engine.sequence import Drawn, Finished, Prefilled, Request, SequenceState
from narrows.engine.store import Prefixes
from narrows.errors import UsageError
from narrows.model.forward import Forward
from narrows.model.network import Network
from narrows.model.precision import Precision
from narrows.model.presets import TINY
from narrows.ops import native
from tests.draws import SOAK
from tests.model.packing import pack_network
from tests.parity.configurations import Case, cases, for_each_draw, randomised

TOLERANCE = 1e-10
PRECISIONS = (Precision.BF16, Precision.FP8, Precision.OFFICIAL)
LONGEST = 40
SCHEDULES = 3000 if SOAK else 150


@dataclass
class Answer:
    """What came of one sequence."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: str | None = None


class Collector:
    """Runs a core to its end, and keeps every sequence's answer."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.answers: dict[SequenceState, Answer] = {}

    def submit(self, request: Request) -> list[SequenceState]:
        sequences = self.core.submit(request)
        self.answers.update((sequence, Answer()) for sequence in sequences)
        return sequences

    def step(self) -> None:
        for event in self.core.step():
            answer = self.answers[event.sequence]
            assert answer.reason is None, "an event behind the end"
            if isinstance(event, Drawn):
                answer.tokens.append(event.token)
                answer.logprobs.append(event.logprob)
            elif isinstance(event, Prefilled):
                assert 0 <= event.reused < event.tokens <= len(event.sequence.request.prompt)
            else:
                assert event.error is None, event.error
                answer.reason = event.reason

    def finish(self) -> None:
        for _ in range(5000):
            if self.core.idle:
                return
            self.step()
        raise AssertionError("the core never came to rest")


def limits_for(network: Forward, blocks: int, cache: Precision | None, **others: object) -> Limits:
    """Memory for so many blocks, beside the states and a few snapshots."""
    shape = PagedHistory(
        network.config,
        slots=0,
        blocks=0,
        dtype=network.dtype,
        precision=cache or network.cache,
        rollback=int(others.get("drafts", 1)),  # type: ignore[call-overload]
    )
    slots = int(others.get("slots", 3))  # type: ignore[call-overload]
    memory = int((slots * shape.slot_bytes + blocks * shape.block_bytes) / 0.7) + 8
    return Limits(memory=memory, snapshot_share=0.3, **others)  # type: ignore[arg-type]


def alone(network: Forward, request: Request, cache: Precision | None) -> list[Answer]:
    """The same request in a core of its own."""
    limits = limits_for(network, 400, cache, slots=1, drafts=0)
    collector = Collector(Core(network, None, limits, cache=cache))
    sequences = collector.submit(request)
    collector.finish()
    return [collector.answers[sequence] for sequence in sequences]


def requests_of(case: Case, random: Random) -> list[Request]:
    """Some requests, most of which begin like another."""
    vocab = case.config.vocab_size
    stems = [[random.randrange(vocab) for _ in range(random.randint(1, LONGEST))] for _ in range(2)]
    made = []
    for _ in range(random.randint(2, 6)):
        stem = random.choice(stems)
        prompt = stem[: random.randint(1, len(stem))]
        prompt = prompt + [random.randrange(vocab) for _ in range(random.choice((0, 0, 1, 7)))]
        parameters = SamplingParameters(
            max_tokens=random.choice((1, 2, 5, 12)),
            temperature=random.choice((0.0, 1.0)),
            seed=random.randrange(3),
            n=random.choice((1, 1, 1, 3)),
        )
        made.append(Request(tuple(prompt or [0]), parameters, priority=random.choice((0, 0, 1))))
    return made


def for_kernels(case: Case, random: Random) -> tuple[Case, Forward]:
    """The case with widths that the kernels and every precision take, and its network on them in some precision."""
    widths = {
        "hidden_size": 64,
        "moe_intermediate_size": 32,
        "o_lora_rank": 16,
        "head_dim": 32,
        "qk_rope_head_dim": 8,
        "index_head_dim": 32,
        "hc_mult": 4,
    }
    case = replace(case, config=case.config.model_copy(update=widths))
    return case, pack_network(case.network(torch.float32), random.choice(PRECISIONS))


def assert_answered(answer: Answer, lone: Answer, cancelled: bool, tolerance: float) -> None:
    """A sequence was answered as the one that ran alone; a cancelled one with the beginning of that."""
    assert lone.reason in ("stop", "length")
    if cancelled:
        assert answer.reason == "cancelled"
        assert answer.tokens == lone.tokens[: len(answer.tokens)]
    else:
        assert (answer.tokens, answer.reason) == (lone.tokens, lone.reason)
    for ours, theirs in zip(answer.logprobs, lone.logprobs, strict=False):
        assert abs(ours - theirs) <= tolerance * max(1.0, abs(theirs))


def run_schedule(case: Case, *, on_kernels: bool = False) -> Core:
    """One drawn schedule; every answer is the one of the request alone, cancelled ones a beginning of it.

    `on_kernels`: where log-probabilities are the same bits, whatever the number of threads.
    """
    random = case.random()
    cache = random.choice((None, None, Precision.BF16, Precision.OFFICIAL))
    network: Forward
    if on_kernels:
        case, network = for_kernels(case, random)
    else:
        if cache is Precision.OFFICIAL:  # FP4 keys come in powers of two
            case = replace(case, config=case.config.model_copy(update={"index_head_dim": 32}))
        network = case.network()
    wanted = requests_of(case, random)
    policy = Policy(rows=random.choice((3, 8, 64)), least=random.choice((1, 4)), patience=random.choice((2, 8, 32)))
    shape = PagedHistory(case.config, slots=0, blocks=0, dtype=torch.float64)
    most = max(shape.blocks_for(len(r.prompt) + r.parameters.max_tokens) for r in wanted)
    blocks = most + random.choice((0, 1, 5, 60))
    every = random.choice((1, 16, 2048))
    limits = limits_for(
        network,
        max(1, blocks),
        cache,
        slots=random.randint(1, 4),
        policy=policy,
        snapshot_every=every,
        drafts=random.choice((0, 1, 3)),
        draft_rate=0,
    )
    directory = Path(tempfile.mkdtemp()) if random.random() < 0.5 else None
    prefixes = None if directory is None else Prefixes(directory, random.choice((1 << 30, 20_000)))

    if on_kernels:
        torch.set_num_threads(1)
    future = {id(request): alone(network, request, cache) for request in wanted}
    if on_kernels:
        torch.set_num_threads(random.choice((1, 2)))

    class Clairvoyant(Core):
        """Drafts what will be drawn, more often than not."""

        def _draft(self, computed: Sequence[tuple[SequenceState, torch.Tensor]]) -> None:
            super()._draft(computed)
            for sequence, _ in computed:
                coming = future[id(sequence.request)][sequence.index].tokens[sequence.produced :]
                if random.random() < 0.7:
                    sequence.drafts = [*coming, *sequence.drafts][: len(sequence.drafts)]

    def start() -> Core:
        return Clairvoyant(network, None, limits, prefixes=prefixes, cache=cache)

    collector = Collector(start())
    reused = accepted = 0
    waiting = [request for request in wanted for _ in range(random.choice((1, 1, 2)))]
    random.shuffle(waiting)
    submitted: list[tuple[Request, list[SequenceState]]] = []
    cancelled: set[SequenceState] = set()
    while waiting or not collector.core.idle:
        if collector.core.idle and random.random() < 0.3:
            reused += collector.core.stats.reused
            accepted += collector.core.stats.accepted
            collector.core = start()
        if waiting and random.random() < 0.4:
            request = waiting.pop()
            submitted.append((request, collector.submit(request)))
        if submitted and random.random() < 0.05:
            victim = random.choice(random.choice(submitted)[1])
            if collector.answers[victim].reason is None:
                collector.core.cancel(victim)
                cancelled.add(victim)
        collector.step()
    for request, sequences in submitted:
        for sequence, lone in zip(sequences, future[id(request)], strict=True):
            assert_answered(collector.answers[sequence], lone, sequence in cancelled, 0.0 if on_kernels else TOLERANCE)
    if directory is not None:
        shutil.rmtree(directory)
    core = collector.core
    core.stats.reused += reused
    core.stats.accepted += accepted
    assert core.free_slots == limits.slots
    core.known.tree.clear()
    assert (core.pool.free, core.known.tree.held_bytes) == (core.pool.count, 0), "a block or a snapshot was lost"
    return core


def test_every_request_is_answered_as_if_it_were_alone() -> None:
    """And over all draws, everything that could have gone wrong has happened."""
    seen = dict.fromkeys(("schedules", "drawn", "reused", "parked", "evicted", "drafted", "accepted"), 0)

    @torch.no_grad()
    def check(case: Case) -> None:
        stats = run_schedule(case).stats
        seen["schedules"] += 1
        for what in list(seen)[1:]:
            seen[what] += getattr(stats, what)

    for_each_draw("schedules", cases(longest=1), check, count=SCHEDULES)
    assert all(seen.values()), seen
    if SOAK:
        rows = [[what, f"{count:,}"] for what, count in seen.items()]
        record(
            "schedules",
            {"table": {"columns": ["in random schedules", "count"], "rows": rows}, "seen": seen},
            notes=(
                "Every sequence's tokens are those of the same request alone and cold, and its log-probabilities "
                f"within {TOLERANCE:.0e}, in float64."
            ),
        )


@pytest.mark.skipif(not native.available(), reason="narrows was installed without kernels")
def test_on_the_kernels_it_is_answered_with_the_same_bits() -> None:
    seen = dict.fromkeys(("drawn", "reused", "parked", "evicted", "drafted", "accepted"), 0)
    before = torch.get_num_threads()

    def check(case: Case) -> None:
        stats = run_schedule(case, on_kernels=True).stats
        for what in seen:
            seen[what] += getattr(stats, what)

    try:
        for_each_draw("native schedules", cases(longest=1), check, count=SCHEDULES // 3)
    finally:
        torch.set_num_threads(before)
    assert all(seen.values()), seen


@pytest.fixture
def network() -> Network:
    return randomised(Network(TINY, dtype=torch.float64), torch.Generator().manual_seed(5))


def greedy(prompt: list[int], tokens: int = 4) -> Request:
    return Request(tuple(prompt), SamplingParameters(max_tokens=tokens))


def test_a_known_prefix_is_not_computed_again(network: Network) -> None:
    core = Core(network, None, Limits(memory=1 << 24, slots=2))
    size = core.history.block_tokens
    prompt = [(7 * place) % TINY.vocab_size for place in range(3 * size + 5)]
    collector = Collector(core)
    for last in (1, 2, 3):
        collector.submit(greedy([*prompt, last]))
        collector.finish()
    assert core.stats.reused == 2 * 3 * size
    assert core.stats.computed < 2 * len(prompt)


def test_a_known_prefix_outlives_the_process(network: Network, tmp_path: Path) -> None:
    prompt = [(7 * place) % TINY.vocab_size for place in range(400)]
    answers, computed = [], []
    for identity in (
        network,
        network,
        randomised(Network(TINY, dtype=torch.float64), torch.Generator().manual_seed(6)),
    ):
        core = Core(identity, None, Limits(memory=1 << 24, slots=2), prefixes=Prefixes(tmp_path))
        collector = Collector(core)
        (sequence,) = collector.submit(greedy(prompt))
        collector.finish()
        answers.append(collector.answers[sequence])
        computed.append(core.stats.computed)
    assert answers[0] == answers[1]
    assert computed[1] == computed[0] - 400 // core.history.block_tokens * core.history.block_tokens
    assert computed[2] == computed[0], "another model's prefix was used"


def test_a_prompt_of_known_blocks_alone_leaves_a_token_to_compute(network: Network) -> None:
    core = Core(network, None, Limits(memory=1 << 24, slots=2))
    size = core.history.block_tokens
    prompt = [(5 * place) % TINY.vocab_size for place in range(2 * size)]
    collector = Collector(core)
    answers = []
    for _ in range(3):
        (sequence,) = collector.submit(greedy(prompt))
        collector.finish()
        answers.append(collector.answers[sequence].tokens)
    assert answers[0] == answers[1] == answers[2]
    assert core.stats.reused == 2 * size


def test_a_fork_that_was_seen_gets_a_snapshot(network: Network) -> None:
    """Two prompts part in the middle of a known text: the third that comes by resumes there."""
    core = Core(network, None, Limits(memory=1 << 24, slots=2))
    size = core.history.block_tokens
    stem = [(3 * place) % TINY.vocab_size for place in range(2 * size)]
    collector = Collector(core)
    reused = []
    for tail in (1, 2, 3):
        (sequence,) = collector.submit(greedy(stem + [tail] * (2 * size)))
        collector.finish()
        reused.append(sequence.reused)
    assert reused == [0, 0, 2 * size]


def test_a_conversation_goes_on_from_the_last_answer(network: Network) -> None:
    core = Core(network, None, Limits(memory=1 << 24, slots=2))
    size = core.history.block_tokens
    collector = Collector(core)
    (first,) = collector.submit(greedy([1] * (size // 2), tokens=2 * size))
    collector.finish()
    (second,) = collector.submit(greedy([*first.tokens, 5, 6]))
    collector.finish()
    assert second.reused == len(first.tokens) // size * size


def test_a_deadline_ends_a_request_and_frees_what_it_held(network: Network) -> None:
    now = 0.0
    core = Core(network, None, Limits(memory=1 << 24, slots=1), clock=lambda: now)
    collector = Collector(core)
    parameters = SamplingParameters(max_tokens=50, n=2)
    sequences = collector.submit(Request((1, 2, 3), parameters, deadline=5.0))
    for _ in range(3):
        collector.step()
    now = 5.0
    collector.finish()
    assert [collector.answers[sequence].reason for sequence in sequences] == ["deadline"] * 2
    core.known.tree.clear()
    assert (core.pool.free, core.free_slots) == (core.pool.count, 1)


@pytest.mark.parametrize(
    ("prompt", "tokens", "message"),
    [
        ([], 1, "the prompt is empty"),
        ([1] * 300, 1, "300 tokens but the model 256 positions"),
        ([1] * 200, 90, "blocks and the engine has"),
    ],
)
def test_what_can_never_run_is_refused(prompt: list[int], tokens: int, message: str) -> None:
    config = TINY.model_copy(update={"max_position_embeddings": 256, "rope_scaling": None})
    shape = PagedHistory(config, slots=0, blocks=0, dtype=torch.float64)
    memory = int((shape.slot_bytes + shape.block_bytes) / 0.8) + 1
    core = Core(Network(config, dtype=torch.float64), None, Limits(memory=memory, slots=1, drafts=0))
    with pytest.raises(UsageError, match=message):
        core.submit(greedy(prompt, tokens))
    assert core.idle


def test_too_little_memory_is_refused_with_what_would_do(network: Network) -> None:
    with pytest.raises(UsageError, match=r"hold no request of 4 at once; give the engine ([\d,]+)") as refused:
        Core(network, None, Limits(memory=1000, slots=4))
    least = int(str(refused.value).split("give the engine ")[1].split(" ")[0].replace(",", ""))
    assert Core(network, None, Limits(memory=least, slots=4)).pool.count >= 1


def test_a_step_that_fails_ends_those_who_took_part_and_no_others(network: Network) -> None:
    core = Core(network, None, Limits(memory=1 << 24, slots=1))
    collector = Collector(core)
    (broken,) = core.submit(greedy([3]))
    (other,) = collector.submit(greedy([1, 2]))

    def fail(*_: object) -> None:
        raise MemoryError

    hook = network.layers[1].register_forward_pre_hook(fail)
    (event,) = core.step()
    hook.remove()
    assert isinstance(event, Finished)
    assert (event.sequence, event.reason) == (broken, "error")
    assert isinstance(event.error, MemoryError)
    collector.finish()
    assert collector.answers[other].reason == "length"
