"""Paged history holds what a contiguous one holds: any walk gives the logits of every sequence's whole text."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
import torch

from narrows.engine.blocks import BlockPool
from narrows.engine.paged_history import Contents, PagedHistory, State, block_tokens
from narrows.model.network import Network
from narrows.model.presets import TINY
from narrows.model.segments import Segment, Step, positions_of
from tests.parity.configurations import Case, cases, for_each_draw, randomised, relative_error
from tests.parity.test_parity import whole_pass

TOLERANCE = 1e-9
ROLLBACK = 5
SLOTS = 3


@dataclass
class Walk:
    """A paged history beside the plain lists of tokens that it should hold; blocks are never in order."""

    case: Case
    network: Network
    random: Random
    history: PagedHistory = field(init=False)
    texts: list[list[int]] = field(default_factory=lambda: [[] for _ in range(SLOTS)])
    blocks: list[list[int]] = field(default_factory=lambda: [[] for _ in range(SLOTS)])
    undoable: list[int] = field(default_factory=lambda: [0] * SLOTS)
    parked: list[tuple[State, Contents, list[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.history = PagedHistory(self.case.config, slots=SLOTS, blocks=200, dtype=torch.float64, rollback=ROLLBACK)
        self.pool = BlockPool(200)
        self.random.shuffle(self.pool._free)

    def extend(self) -> None:
        slots = self.random.sample(range(SLOTS), self.random.randint(1, SLOTS))
        segments, new = [], []
        for slot in slots:
            count = self.random.choice((1, 1, 2, self.random.randint(1, 2 * self.history.block_tokens)))
            count = min(count, 40)
            segments.append(self.history.segment(count, slot))
            wanted = self.history.blocks_for(len(self.texts[slot]) + count) - len(self.blocks[slot])
            more = self.pool.allocate(max(0, wanted))
            self.history.clear(more)
            self.history.bind(slot, more)
            self.blocks[slot] += more
            added = [self.random.randrange(self.case.config.vocab_size) for _ in range(count)]
            self.texts[slot] = self.texts[slot] + added
            self.undoable[slot] = min(self.undoable[slot] + count, ROLLBACK)
            new += added
        streams = self.network(torch.tensor(new), positions_of(segments), segments, self.history)
        whole = whole_pass(self.network, [torch.tensor(self.texts[slot]) for slot in slots])
        wanted_logits = torch.cat([part[-segment.rows :] for part, segment in zip(whole, segments, strict=True)])
        assert relative_error(self.network.logits(streams), wanted_logits) <= TOLERANCE

    def roll_back(self) -> None:
        slot = self.random.randrange(SLOTS)
        count = self.random.randint(0, self.undoable[slot])
        self.history.roll_back(slot, count)
        self.texts[slot] = self.texts[slot][: len(self.texts[slot]) - count]
        self.undoable[slot] -= count

    def park(self) -> None:
        """Copy a sequence out, blocks and all, and spoil what it leaves behind."""
        slot = self.random.randrange(SLOTS)
        needed = self.history.blocks_for(len(self.texts[slot]))
        contents = self.history.read(self.blocks[slot][:needed])
        self.parked.append((self.history.state(slot), contents, self.texts[slot]))
        self._empty(slot)

    def resume(self) -> None:
        """A parked sequence into any slot and any blocks, as often as one likes: that is a fork."""
        if self.parked:
            slot = self.random.randrange(SLOTS)
            self._empty(slot)
            state, contents, text = self.random.choice(self.parked)
            self.blocks[slot] = self.pool.allocate(self.history.blocks_for(len(text)))
            self.history.write(self.blocks[slot], contents)
            self.history.restore(slot, state, self.blocks[slot])
            self.texts[slot] = text

    def move(self) -> None:
        """To another slot with the same blocks, as a known prefix is taken over."""
        source, target = self.random.sample(range(SLOTS), 2)
        self._empty(target)
        state, blocks = self.history.state(source), self.blocks[source]
        self.texts[target], self.texts[source] = self.texts[source], []
        self.blocks[target], self.blocks[source] = blocks, []
        self.undoable[source] = 0
        self.history.reset(source)
        self.history.restore(target, state, blocks)

    def _empty(self, slot: int) -> None:
        for pool in self.history.entries.values():
            pool[self.blocks[slot]] = torch.nan
        self.pool.release(self.blocks[slot])
        self.history.reset(slot)
        self.texts[slot], self.blocks[slot], self.undoable[slot] = [], [], 0


def test_any_walk_over_slots_and_blocks() -> None:
    @torch.no_grad()
    def check(case: Case) -> None:
        walk = Walk(case, case.network(), case.random())
        for _ in range(14):
            actions = (walk.extend, walk.roll_back, walk.park, walk.resume, walk.move)
            walk.random.choices(actions, weights=(8, 3, 2, 3, 2))[0]()
            assert [walk.history.length(slot) for slot in range(SLOTS)] == [len(text) for text in walk.texts]

    for_each_draw("paged walks", cases(longest=1), check)


@pytest.mark.parametrize("rollback", [0, 1, 4])
def test_the_row_of_a_token_lies_at_its_position_modulo_the_rings_capacity(rollback: int) -> None:
    """What computes in the same memory counts on it: of every token that a step may still read, however it came in."""
    config = TINY.model_copy(update={"sliding_window": 6})
    history = PagedHistory.for_mtp(config, slots=2, rollback=rollback)
    (key,), (rings,) = history.layout.recent, history.recent.values()
    kept, capacity = config.sliding_window - 1, config.sliding_window + rollback
    assert history.layout.recent[key].capacity(rollback) == capacity
    assert rings.shape == (2, capacity, config.head_dim)
    random, texts, undoable = Random(rollback), [torch.empty(0, config.head_dim)] * 2, [0, 0]
    for _ in range(300):
        slots = random.sample(range(2), random.randint(1, 2))
        segments = [history.segment(random.choice((1, 1, 1, 3, 9, 40)), slot) for slot in slots]
        new = [torch.randn(segment.rows, config.head_dim) for segment in segments]
        step = Step(config, segments, positions_of(segments))
        history.begin(step.segments)
        got = history.extend_recent(*key, torch.cat(new), step.window, step)
        history.commit(step.segments)
        wanted = [part for slot, rows in zip(slots, new, strict=True) for part in (texts[slot][-kept:], rows)]
        assert torch.equal(got, torch.cat(wanted))
        for slot, rows in zip(slots, new, strict=True):
            back = random.randint(0, min(undoable[slot] + len(rows), rollback))
            undoable[slot] = min(undoable[slot] + len(rows), rollback) - back
            history.roll_back(slot, back)
            texts[slot] = torch.cat((texts[slot], rows))
            texts[slot] = texts[slot][: len(texts[slot]) - back]
        for slot, text in enumerate(texts):
            last = range(max(0, len(text) - kept - undoable[slot]), len(text))
            assert all(torch.equal(rings[slot, position % capacity], text[position]) for position in last)
            assert torch.equal(history.state(slot).recent[key], text[-kept:])


def test_tables_hold_the_blocks_bound_to_a_slot_and_no_more_than_all_positions_need() -> None:
    config = TINY.model_copy(update={"max_position_embeddings": 3 * block_tokens(TINY) - 1})
    history = PagedHistory(config, slots=2, blocks=9)
    history.bind(1, [7])
    history.bind(1, range(3, 5))
    assert (history.tables.dtype, history.tables.tolist()) == (torch.int32, [[0, 0, 0], [7, 3, 4]])
    with pytest.raises(ValueError, match="slot 1 has 3 blocks and cannot have 1 more; 3 is the most"):
        history.bind(1, [5])
    history.restore(1, history.state(0), [8])
    history.bind(1, [2])
    assert history.tables[1, :2].tolist() == [8, 2]


@torch.no_grad()
def test_a_state_at_a_blocks_end_is_small_and_a_history_says_what_it_weighs() -> None:
    network = randomised(Network(TINY), torch.Generator().manual_seed(5))
    history = PagedHistory(TINY, slots=1, blocks=3)
    history.bind(0, [2, 0, 1])
    sizes = []
    for rows in (history.block_tokens - 1, 1):
        segments = [history.segment(rows, 0)]
        network(torch.arange(rows) % TINY.vocab_size, positions_of(segments), segments, history)
        sizes.append(history.state(0).bytes)
    assert sizes[1] < sizes[0] <= history.slot_bytes
    assert history.bytes == 3 * history.block_bytes + history.slot_bytes
    assert history.read([0]).bytes == history.block_bytes


@torch.no_grad()
def test_a_step_without_blocks_for_it_is_refused_and_changes_nothing() -> None:
    network = randomised(Network(TINY), torch.Generator().manual_seed(5))
    history = PagedHistory(TINY, slots=2, blocks=2)
    history.bind(0, [1])
    rows = history.block_tokens + 1
    with pytest.raises(ValueError, match=f"slot 0 has 1 blocks, too few for {rows} tokens"):
        network(torch.zeros(rows, dtype=torch.int64), torch.arange(rows), [Segment(rows)], history)
    assert history.length(0) == 0
