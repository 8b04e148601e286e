"""A history continues as if nothing had happened: after a snapshot, a detour, a rollback, beside other sequences."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

import pytest
import torch
from torch import Tensor

from narrows.model.history import ContiguousHistory, Snapshot
from narrows.model.network import Network
from narrows.model.precision import Precision
from narrows.model.presets import TINY
from narrows.model.segments import Segment, positions_of
from tests.parity.configurations import Case, cases, for_each_draw, irregular_chunks, randomised, relative_error
from tests.parity.test_parity import continue_slot, whole_pass

TOLERANCE = 1e-9
ROLLBACK = 9


def history_for(case: Case, slots: int = 1) -> ContiguousHistory:
    return ContiguousHistory(case.config, slots=slots, dtype=torch.float64, rollback=ROLLBACK)


def chunks(tokens: Tensor, random: Random) -> list[Tensor]:
    return list(tokens.split(irregular_chunks(len(tokens), random))) if len(tokens) else []


def in_chunks(network: Network, history: ContiguousHistory, parts: list[Tensor]) -> Tensor:
    """Continue slot 0 part by part -> the logits of all rows."""
    logits = [continue_slot(network, history, part) for part in parts]
    return torch.cat(logits) if logits else torch.empty(0, network.config.vocab_size, dtype=torch.float64)


def other_tokens(case: Case, count: int) -> Tensor:
    source = torch.Generator().manual_seed(case.seed + 3)
    return torch.randint(case.config.vocab_size, (count,), generator=source)


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.OFFICIAL])
def test_what_is_read_is_what_a_quantised_history_stores(precision: Precision) -> None:
    """So chunks change nothing; and reading what was stored differs from reading what was computed."""

    @torch.no_grad()
    def check(case: Case) -> None:
        case = replace(case, config=case.config.model_copy(update={"index_head_dim": 32}))
        network, (tokens,), random = case.network(), case.tokens(), case.random()
        kept = {"dtype": torch.float64, "rollback": ROLLBACK, "precision": precision}
        whole = continue_slot(network, ContiguousHistory(case.config, **kept), tokens)
        exact = continue_slot(network, history_for(case), tokens)
        in_parts = in_chunks(network, ContiguousHistory(case.config, **kept), chunks(tokens, random))
        assert relative_error(in_parts, whole) <= TOLERANCE
        assert relative_error(exact, whole) > TOLERANCE

    for_each_draw(f"history in {precision}", cases(longest=1), check)


def test_a_restored_snapshot_continues_as_if_nothing_had_happened() -> None:
    @torch.no_grad()
    def check(case: Case) -> None:
        network, (tokens,), random = case.network(), case.tokens(), case.random()
        at = random.randint(0, len(tokens))
        head, tail = chunks(tokens[:at], random), chunks(tokens[at:], random)
        wanted = in_chunks(network, history_for(case), head + tail)

        history = history_for(case)
        got = in_chunks(network, history, head)
        snapshot = history.snapshot(0)
        in_chunks(network, history, [other_tokens(case, random.randint(1, 40))])
        history.restore(0, snapshot)
        assert history.length(0) == at
        got = torch.cat((got, in_chunks(network, history, tail)))

        assert torch.equal(got, wanted)  # the same calls on the same state: to the bit
        assert relative_error(wanted, whole_pass(network, [tokens])[0]) <= TOLERANCE

    for_each_draw("snapshots", cases(longest=40), check)


def test_tokens_rolled_back_have_never_been() -> None:
    @torch.no_grad()
    def check(case: Case) -> None:
        network, (tokens,), random = case.network(), case.tokens(), case.random()
        at = random.randint(0, len(tokens))
        rejected = other_tokens(case, random.randint(1, ROLLBACK))
        history = history_for(case)
        got = in_chunks(network, history, chunks(tokens[:at], random))
        in_chunks(network, history, chunks(rejected, random))
        for count in random.choice(([len(rejected)], [1] * len(rejected), [0, len(rejected)])):
            history.roll_back(0, count)
        assert history.length(0) == at
        got = torch.cat((got, in_chunks(network, history, chunks(tokens[at:], random))))
        assert relative_error(got, whole_pass(network, [tokens])[0]) <= TOLERANCE

    for_each_draw("rollbacks", cases(longest=40), check)


@dataclass
class Walk:
    """A history beside the plain lists of tokens that it should hold."""

    case: Case
    network: Network
    history: ContiguousHistory
    random: Random
    texts: list[list[int]]
    undoable: list[int]
    kept: list[tuple[Snapshot, list[int], int]] = field(default_factory=list)

    def extend(self) -> None:
        """Several slots in one step; the logits must be those of each slot's whole text."""
        slots = self.random.sample(range(len(self.texts)), self.random.randint(1, len(self.texts)))
        segments, new = [], []
        for slot in slots:
            count = self.random.choice((1, 1, 2, self.random.randint(1, 12)))
            added = [self.random.randrange(self.case.config.vocab_size) for _ in range(count)]
            segments.append(Segment(count, len(self.texts[slot]), slot))
            self.texts[slot] = self.texts[slot] + added
            self.undoable[slot] = min(self.undoable[slot] + count, ROLLBACK)
            new += added
        positions = torch.cat([torch.arange(s.past, s.past + s.rows) for s in segments])
        logits = self.network.logits(self.network(torch.tensor(new), positions, segments, self.history))
        whole = whole_pass(self.network, [torch.tensor(self.texts[slot]) for slot in slots])
        wanted = torch.cat([part[-segment.rows :] for part, segment in zip(whole, segments, strict=True)])
        assert relative_error(logits, wanted) <= TOLERANCE

    def roll_back(self) -> None:
        slot = self.random.randrange(len(self.texts))
        count = self.random.randint(0, ROLLBACK)
        if count > self.undoable[slot]:
            with pytest.raises(ValueError, match="roll back"):
                self.history.roll_back(slot, count)
        else:
            self.history.roll_back(slot, count)
            self.texts[slot] = self.texts[slot][: len(self.texts[slot]) - count]
            self.undoable[slot] -= count

    def snapshot(self) -> None:
        slot = self.random.randrange(len(self.texts))
        self.kept.append((self.history.snapshot(slot), self.texts[slot], self.undoable[slot]))

    def restore(self) -> None:
        """Any snapshot into any slot: a snapshot is how two requests share a prefix."""
        if self.kept:
            slot = self.random.randrange(len(self.texts))
            snapshot, self.texts[slot], self.undoable[slot] = self.random.choice(self.kept)
            self.history.restore(slot, snapshot)

    def reset(self) -> None:
        slot = self.random.randrange(len(self.texts))
        self.history.reset(slot)
        self.texts[slot], self.undoable[slot] = [], 0

    def step(self) -> None:
        self.random.choices(
            (self.extend, self.roll_back, self.snapshot, self.restore, self.reset), weights=(8, 4, 2, 3, 1)
        )[0]()
        assert [self.history.length(slot) for slot in range(len(self.texts))] == [len(text) for text in self.texts]


def test_any_walk_over_several_slots() -> None:
    """Extensions, rollbacks, snapshots, restores and resets in any order, and no slot notices the others."""

    @torch.no_grad()
    def check(case: Case) -> None:
        history = history_for(case, slots=3)
        walk = Walk(case, case.network(), history, case.random(), [[] for _ in range(3)], [0] * 3)
        for _ in range(16):
            walk.step()

    for_each_draw("walks", cases(longest=1), check)


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.fixture
def network() -> Network:
    return randomised(Network(TINY, dtype=torch.float64), torch.Generator().manual_seed(5))


@pytest.fixture
def history() -> ContiguousHistory:
    return ContiguousHistory(TINY, slots=2, dtype=torch.float64, rollback=3)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([Segment(4, past=7)], "7 past tokens.*slot 0 holds 6"),
        ([Segment(4, past=0)], "0 past tokens.*slot 0 holds 6"),
        ([Segment(4, past=6, slot=2)], "no slot 2"),
        ([Segment(4, past=6, slot=-1)], "no slot -1"),
        ([Segment(2, past=6), Segment(2, past=6)], "share a slot"),
        ([Segment(3, past=6)], "3 rows.*4"),
        ([Segment(4, past=6), Segment(0, past=0, slot=1)], "at least one row"),
        ([Segment(4, past=-6)], "past"),
        ([], "at least one segment"),
    ],
)
@torch.no_grad()
def test_a_step_that_does_not_continue_the_history_is_refused_and_changes_nothing(
    network: Network, history: ContiguousHistory, segments: list[Segment], message: str
) -> None:
    tokens = torch.arange(10) % TINY.vocab_size
    continue_slot(network, history, tokens[:6])
    fits = sum(segment.rows for segment in segments) == 4
    with pytest.raises(ValueError, match=message):
        network(tokens[6:], positions_of(segments) if fits else torch.arange(6, 10), segments, history)
    assert (history.length(0), history.length(1)) == (6, 0)
    got = continue_slot(network, history, tokens[6:])
    assert relative_error(got, whole_pass(network, [tokens])[0][6:]) <= TOLERANCE


@torch.no_grad()
def test_a_past_without_a_history_is_refused(network: Network) -> None:
    with pytest.raises(ValueError, match="history"):
        network(torch.tensor([1, 2]), torch.tensor([3, 4]), [Segment(2, past=3)], None)


@torch.no_grad()
def test_tokens_and_positions_of_different_lengths_are_refused(network: Network) -> None:
    with pytest.raises(ValueError, match="positions"):
        network(torch.tensor([1, 2, 3]), torch.tensor([0, 1]), [Segment(3)], None)


@pytest.mark.parametrize("positions", [[0, 1, 2, 3], [5, 6, 7, 7], [0, 0, 0, 0]])
@torch.no_grad()
def test_positions_that_contradict_the_segments_are_refused(
    network: Network, history: ContiguousHistory, positions: list[int]
) -> None:
    continue_slot(network, history, torch.arange(2))
    with pytest.raises(ValueError, match="positions are not those"):
        network(torch.arange(4), torch.tensor(positions), [Segment(2, past=2), Segment(2, slot=1)], history)
    assert (history.length(0), history.length(1)) == (2, 0)


@pytest.mark.parametrize("layer", range(TINY.num_hidden_layers))
@pytest.mark.parametrize("module", ["attn", "ffn"])
@torch.no_grad()
def test_a_step_that_fails_midway_leaves_slots_that_refuse_to_go_on(
    network: Network, history: ContiguousHistory, layer: int, module: str
) -> None:
    tokens = torch.arange(12) % TINY.vocab_size
    continue_slot(network, history, tokens[:6])
    snapshot = history.snapshot(0)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    hook = network.layers[layer].get_submodule(module).register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        continue_slot(network, history, tokens[6:10])
    hook.remove()

    for call in (
        lambda: network(tokens[6:8], torch.arange(6, 8), [Segment(2, past=6)], history),
        lambda: history.length(0),
        lambda: history.segment(1),
        lambda: history.snapshot(0),
        lambda: history.roll_back(0, 0),
    ):
        with pytest.raises(ValueError, match="slot 0 failed"):
            call()
    assert (
        relative_error(continue_slot(network, history, tokens, slot=1), whole_pass(network, [tokens])[0]) <= TOLERANCE
    )

    history.restore(0, snapshot)
    got = continue_slot(network, history, tokens[6:])
    assert relative_error(got, whole_pass(network, [tokens])[0][6:]) <= TOLERANCE
    history.reset(0)
    assert history.length(0) == 0


@torch.no_grad()
def test_a_token_outside_the_vocabulary_spoils_no_slot(network: Network, history: ContiguousHistory) -> None:
    with pytest.raises(IndexError):
        continue_slot(network, history, torch.tensor([TINY.vocab_size]))
    assert history.length(0) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_narrow_types_decode_what_they_prefill(dtype: torch.dtype) -> None:
    """With all experts and all entries chosen, so that rounding flips no choice."""
    config = TINY.model_copy(update={"num_experts_per_tok": TINY.n_routed_experts, "index_topk": 64})
    network = randomised(Network(config, dtype=dtype), torch.Generator().manual_seed(8))
    exact = randomised(Network(config, dtype=torch.float64), torch.Generator().manual_seed(8))
    exact.load_state_dict(network.state_dict())
    tokens = torch.randint(config.vocab_size, (70,), generator=torch.Generator().manual_seed(9))
    history = ContiguousHistory(config, dtype=dtype)
    decoded = torch.cat([continue_slot(network, history, part) for part in tokens.split([40] + [1] * 30)])
    (prefilled,), (wanted,) = whole_pass(network, [tokens]), whole_pass(exact, [tokens])
    assert decoded.dtype == prefilled.dtype == torch.float32
    rounding = relative_error(prefilled, wanted)
    assert rounding < 32 * torch.finfo(dtype).eps
    assert relative_error(decoded, wanted) < 2 * rounding


@torch.no_grad()
def test_more_tokens_than_positions_are_refused() -> None:
    config = TINY.model_copy(update={"max_position_embeddings": 8, "rope_scaling": None})
    network = randomised(Network(config, dtype=torch.float64), torch.Generator().manual_seed(6))
    history = ContiguousHistory(config, dtype=torch.float64)
    continue_slot(network, history, torch.arange(8))  # exactly full
    with pytest.raises(ValueError, match="max_position_embeddings 8"):
        continue_slot(network, history, torch.tensor([1]))
    with pytest.raises(ValueError, match="max_position_embeddings 8"):
        whole_pass(network, [torch.arange(9)])


@torch.no_grad()
def test_rolling_back_further_than_is_kept_is_refused(network: Network, history: ContiguousHistory) -> None:
    with pytest.raises(ValueError, match="roll back"):
        history.roll_back(0, 1)  # nothing there yet
    continue_slot(network, history, torch.arange(6))
    for tokens in (4, -1):
        with pytest.raises(ValueError, match="roll back"):
            history.roll_back(0, tokens)
    history.roll_back(0, 2)
    with pytest.raises(ValueError, match="roll back"):
        history.roll_back(0, 2)  # four in all, and only three are kept
    assert history.length(0) == 4


@pytest.mark.parametrize("slot", [-1, 2])
def test_an_unknown_slot_is_refused(network: Network, history: ContiguousHistory, slot: int) -> None:
    snapshot = history.snapshot(0)
    for call in (
        lambda: history.length(slot),
        lambda: history.reset(slot),
        lambda: history.snapshot(slot),
        lambda: history.restore(slot, snapshot),
        lambda: history.roll_back(slot, 0),
    ):
        with pytest.raises(ValueError, match=f"no slot {slot}"):
            call()
