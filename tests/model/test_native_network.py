"""The network on the CPU kernels: what PyTorch computes with inputs so rounded, and the same bits however a text is
cut, packed with others, parked or rolled back, on any number of threads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from narrows.engine.paged_history import PagedHistory
from narrows.model import native_network
from narrows.model.config import LayerKind, ModelConfig
from narrows.model.native_network import NativeNetwork, why_not
from narrows.model.network import Network, positions_of
from narrows.model.precision import Precision
from narrows.model.presets import TINY
from narrows.model.segments import Segment
from narrows.ops import native
from tests.draws import scaled
from tests.model.packing import pack_network
from tests.ops.computed import INSTRUCTION_SETS, computed, threads
from tests.parity.configurations import configurations, for_each_draw, irregular_chunks, randomised

if not native.available():
    pytest.skip("narrows was installed without kernels", allow_module_level=True)

PRECISIONS = [Precision.BF16, Precision.FP8, Precision.OFFICIAL]


@dataclass(frozen=True)
class Drawn:
    """A network, packed, and texts."""

    config: ModelConfig
    precision: Precision
    instruction_set: str
    seed: int
    lengths: tuple[int, ...]

    @cached_property
    def network(self) -> Network:
        return randomised(Network(self.config), torch.Generator().manual_seed(self.seed)).eval()

    @cached_property
    def packed(self) -> NativeNetwork:
        return pack_network(self.network, self.precision)

    @cached_property
    def texts(self) -> list[Tensor]:
        """A token more than there are rows: what the MTP block is given as the next."""
        random = torch.Generator().manual_seed(self.seed)
        return [torch.randint(0, self.config.vocab_size, (length + 1,), generator=random) for length in self.lengths]


@st.composite
def native_configurations(draw: st.DrawFn, precision: Precision) -> ModelConfig:
    """Those that the kernels take; widths that no vector divides wherever the weights' format allows."""
    drawn = draw(configurations())
    groups = drawn.o_groups
    fields = {
        **drawn.model_dump(),
        "hc_mult": 4,
        "num_attention_heads": groups * draw(st.sampled_from((1, 2, 3, 12, 36 // groups))),
        "o_lora_rank": draw(st.sampled_from((16, 32, 48))),
        "hidden_size": draw(st.one_of(st.integers(3, 40), st.sampled_from((48, 67, 131)))),
        "index_n_heads": draw(st.sampled_from((16, 24, 40, 70))),
        "num_hash_layers": draw(st.sampled_from((0, len(drawn.layer_types), drawn.num_hash_layers))),
        "layer_types": drawn.layer_types,
        "rope_scaling": drawn.rope_scaling,
    }
    if precision is Precision.OFFICIAL:
        fields |= {name: 32 * draw(st.integers(1, 2)) for name in ("hidden_size", "moe_intermediate_size")}
        fields |= {"index_head_dim": draw(st.sampled_from((32, 64)))}
    return ModelConfig(**fields)


@st.composite
def networks(draw: st.DrawFn, most: int = 1, longest: int = 80) -> Drawn:
    precision = draw(st.sampled_from(PRECISIONS))
    config = draw(native_configurations(precision))
    assert why_not(config) is None
    lengths = draw(st.lists(st.one_of(st.integers(1, 9), st.integers(1, longest)), min_size=most, max_size=most))
    return Drawn(
        config, precision, draw(st.sampled_from(INSTRUCTION_SETS)), draw(st.integers(0, 2**31)), tuple(lengths)
    )


# -- what PyTorch computes ------------------------------------------------------------------------------------------


def history_of(drawn: Drawn, slots: int, rollback: int = 0) -> PagedHistory:
    """Room for all texts, twice."""
    config = drawn.config
    each = 1 + max(drawn.lengths) // min(config.csa_ratio, config.hca_ratio)
    return PagedHistory(config, slots=slots, blocks=2 * slots * each, precision=drawn.precision, rollback=rollback)


def in_one(network: Network | NativeNetwork, drawn: Drawn, number: int) -> tuple[Tensor, Tensor]:
    """One text, alone and in one step: logits of the network and of its MTP block."""
    text, history = drawn.texts[number], history_of(drawn, 1)
    mtp = PagedHistory.for_mtp(drawn.config, precision=drawn.precision)
    segments = [Segment(len(text) - 1)]
    history.bind(0, list(range(history.blocks_for(len(text) - 1))))
    positions = positions_of(segments)
    with torch.inference_mode():
        streams = network(text[:-1], positions, segments, history)
        drafts = network.mtp_forward(text[1:], positions, segments, streams, mtp)
        return network.logits(streams), network.mtp_logits(drafts)


def row_errors(ours: Tensor, theirs: Tensor) -> Tensor:
    """Of every row the largest, by the size of all."""
    return (ours - theirs).abs().amax(-1) / theirs.abs().amax()


def test_logits_are_those_of_pytorch_with_rounded_inputs() -> None:
    """Sums in another order are another number in their last bit, and once in some ten thousand it is on the other side
    of where BF16 is rounded. That is a step of 2^-8 of one of some dozen values, and reaches later rows through what
    they attend to; by a router or an indexer that was undecided it is another expert or entry. So rows agree to
    float32's precision in nearly all draws, and where they do not, most differ by little."""
    tight = []

    def check(drawn: Drawn) -> None:
        packed = drawn.packed  # first: it rounds the network's weights
        drawn.network.round_inputs()
        wanted = in_one(drawn.network, drawn, 0)
        with computed(drawn.instruction_set):
            got = in_one(packed, drawn, 0)
        for ours, theirs in zip(got, wanted, strict=True):
            assert ours.isfinite().all()
            errors = row_errors(ours, theirs)
            tight.append(float(errors.median()) < 3e-5)
            assert float(errors.median()) < 1e-2
            assert float((errors > 5e-2).float().mean()) < 0.1

    for_each_draw("native logits", networks(longest=150), check)
    assert sum(tight) > 0.85 * len(tight)


# -- the same bits --------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """Texts computed together step by step, as a random schedule has it. What lies in memory that nobody has written to
    is not a number."""

    drawn: Drawn
    network: NativeNetwork
    random: Random
    rollback: int = 2

    def __post_init__(self) -> None:
        texts = len(self.drawn.lengths)
        self.history = history_of(self.drawn, texts + 2, self.rollback)
        self.mtp = PagedHistory.for_mtp(
            self.drawn.config, slots=texts + 2, precision=self.drawn.precision, rollback=self.rollback
        )
        for history in (self.history, self.mtp):
            for memory in (*history.recent.values(), *history.entries.values()):
                memory.view(torch.uint8).fill_(0xFF)
        self.free = list(range(self.history.blocks))
        self.random.shuffle(self.free)
        self.slots = self.random.sample(range(texts + 2), texts)
        self.blocks: list[list[int]] = [[] for _ in range(texts)]
        self.done = [0] * texts
        self.chunks = [irregular_chunks(length, self.random) for length in self.drawn.lengths]
        vocab = self.drawn.config.vocab_size
        self.logits = [torch.full((length, vocab), torch.nan) for length in self.drawn.lengths]
        self.drafts = [torch.full((length, vocab), torch.nan) for length in self.drawn.lengths]

    def compute(self) -> None:
        while waiting := [number for number, chunks in enumerate(self.chunks) if chunks]:
            number = self.random.choice(waiting)
            match self.random.randint(0, 5):
                case 0 if self.done[number]:
                    self.move(number)
                case 1 if self.done[number]:
                    self.take_back(number)
                case _:
                    with threads(self.random.choice((1, 1, 2, 3))):
                        self.step(self.random.sample(waiting, self.random.randint(1, len(waiting))))

    def step(self, numbers: list[int]) -> None:
        network, rows = self.network, [self.chunks[number].pop(0) for number in numbers]
        for number, count in zip(numbers, rows, strict=True):
            missing = self.history.blocks_for(self.done[number] + count) - len(self.blocks[number])
            new = [self.free.pop() for _ in range(missing)]
            self.history.bind(self.slots[number], new)
            self.blocks[number] += new
        segments = [self.history.segment(count, self.slots[n]) for n, count in zip(numbers, rows, strict=True)]
        parts = [slice(self.done[n], self.done[n] + count) for n, count in zip(numbers, rows, strict=True)]
        texts, positions = self.drawn.texts, positions_of(segments)
        tokens = torch.cat([texts[number][part] for number, part in zip(numbers, parts, strict=True)])
        after = torch.cat([texts[number][1:][part] for number, part in zip(numbers, parts, strict=True)])
        streams = network(tokens, positions, segments, self.history)
        drafts = network.mtp_forward(after, positions, segments, streams, self.mtp)
        for number, part, logits, guessed in zip(
            numbers, parts, network.logits(streams).split(rows), network.mtp_logits(drafts).split(rows), strict=True
        ):
            self.logits[number][part], self.drafts[number][part] = logits, guessed
            self.done[number] = part.stop

    def move(self, number: int) -> None:
        """Parked, and resumed in another slot and other blocks."""
        old, blocks = self.slots[number], self.blocks[number]
        new = self.random.choice([slot for slot in range(self.history.slots) if slot not in self.slots])
        if len(blocks) > len(self.free):
            return
        elsewhere = [self.free.pop() for _ in blocks]
        self.history.write(elsewhere, self.history.read(blocks))
        self.history.restore(new, self.history.state(old), elsewhere)
        self.mtp.restore(new, self.mtp.state(old), [])
        for history in (self.history, self.mtp):
            history.reset(old)
            for rings in history.recent.values():
                rings[old].view(torch.uint8).fill_(0xFF)
        for block in blocks:
            for entries in self.history.entries.values():
                entries[block].view(torch.uint8).fill_(0xFF)
        self.free = [*blocks, *self.free]
        self.slots[number], self.blocks[number] = new, elsewhere

    def take_back(self, number: int) -> None:
        """Some rows, which are then computed again, as they would be whose drafts were wrong."""
        slot = self.slots[number]
        tokens = self.random.randint(0, min(self.rollback, self.done[number], self.history._undoable[slot]))
        if tokens == 0:
            return
        self.history.roll_back(slot, tokens)
        self.mtp.roll_back(slot, tokens)
        self.done[number] -= tokens
        self.chunks[number] = [*([1] * tokens if self.random.random() < 0.5 else [tokens]), *self.chunks[number]]


def test_any_schedule_gives_the_same_bits() -> None:
    def check(drawn: Drawn) -> None:
        with computed(drawn.instruction_set):
            run = Run(drawn, drawn.packed, Random(drawn.seed))
            run.compute()
            for number in range(len(drawn.lengths)):
                logits, drafts = in_one(drawn.packed, drawn, number)
                assert logits.isfinite().all()
                assert torch.equal(run.logits[number], logits)
                assert torch.equal(run.drafts[number], drafts)

    for_each_draw("native schedules", networks(most=3, longest=100), check)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_long_texts_are_the_same_in_one_step_and_in_many(instruction_set: str, precision: Precision) -> None:
    """So many entries that indexers choose few of them, in tiles and one by one, and searches that threads share."""
    config = TINY.model_copy(update={"layer_types": (LayerKind.CSA, LayerKind.HCA), "num_hidden_layers": 2})
    config = config.model_copy(update={"hca_ratio": 8, "index_topk": 5, "num_attention_heads": 36, "o_groups": 4})
    drawn = Drawn(config, precision, instruction_set, 3, (500,))
    with computed(instruction_set):
        whole, _ = in_one(drawn.packed, drawn, 0)
        with threads(5):
            on_five, _ = in_one(drawn.packed, drawn, 0)
        assert torch.equal(on_five, whole)
        run = Run(drawn, drawn.packed, Random(1))
        run.chunks = [[1] * 20 + [300] + [1] * 60 + [119, 1]]
        run.compute()
        assert torch.equal(run.logits[0], whole)


# -- what is not a number -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", [False, True])
def test_scores_without_limits_are_nobody_elses_business(kernels: bool) -> None:
    """A text that sees no more entries than are chosen attends to all of them, also beside one that has to choose."""
    config = TINY.model_copy(update={"layer_types": (LayerKind.CSA,) * 2, "num_hidden_layers": 2, "index_topk": 5})
    network = randomised(Network(config), torch.Generator().manual_seed(3)).eval()
    with torch.no_grad():
        network.layers[1].attn.indexer.weights_proj.weight.fill_(-3e38)  # all scores are -inf
    run = pack_network(network, Precision.BF16) if kernels else network
    text = torch.randint(0, config.vocab_size, (150,), generator=torch.Generator().manual_seed(4))

    def logits(*lengths: int) -> Tensor:
        cache = Precision.BF16 if kernels else Precision.FLOAT32
        history = PagedHistory(config, slots=2, blocks=4, precision=cache)
        for slot in range(2):
            history.bind(slot, [2 * slot, 2 * slot + 1])
        segments = [Segment(length, 0, slot) for slot, length in enumerate(lengths)]
        tokens = torch.cat([text[:length] for length in lengths])
        with torch.inference_mode():
            return run.logits(run(tokens, positions_of(segments), segments, history))

    alone, beside = logits(12), logits(12, 150)[:12]
    assert alone.isfinite().all()
    if kernels:
        assert torch.equal(alone, beside)
    else:
        torch.testing.assert_close(alone, beside)


def test_what_is_not_a_number_stays_in_its_sequence() -> None:
    """A token's embedding: who holds it shows it, all others keep their bits, in the same steps."""

    def check(drawn: Drawn) -> None:
        random = Random(drawn.seed)
        token = int(random.choice(random.choice([text[:-1] for text in drawn.texts])))
        with computed(drawn.instruction_set):
            sound = [in_one(drawn.packed, drawn, number)[0] for number in range(len(drawn.lengths))]
            with torch.no_grad():
                drawn.network.embed.weight[token, -1] = torch.nan
            run = Run(drawn, pack_network(drawn.network, drawn.precision), random, rollback=0)
            run.compute()
        for text, ours, logits in zip(drawn.texts, run.logits, sound, strict=True):
            holders = (text[:-1] == token).nonzero()
            if len(holders):
                assert ours[int(holders[0])].isnan().all()
            else:
                assert torch.equal(ours, logits)

    for_each_draw("native NaN", networks(most=3, longest=40), check, count=scaled(15))


# -- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"hc_mult": 2}, "hc_mult is 2, not 4"),
        ({"o_lora_rank": 24}, "o_lora_rank 24 is no multiple of 16"),
        ({"head_dim": 9}, "18 wide, no multiple of 4"),
        ({"num_experts_per_tok": 65, "n_routed_experts": 65}, "65 exceeds 64"),
        ({"index_n_heads": 257}, "257 exceeds 256"),
        ({"o_groups": 128, "num_attention_heads": 128}, "o_groups 128 exceeds 64"),
        ({"index_head_dim": 4}, "index_head_dim is smaller than qk_rope_head_dim"),
        ({"hc_sinkhorn_iters": 10_001}, "hc_sinkhorn_iters 10001 exceeds 10,000"),
        ({"vocab_size": 2**25}, "vocab_size 33554432 is not from 1 to 16777216"),
    ],
)
def test_shapes_that_the_kernels_do_not_take_are_named(update: dict[str, int], said: str) -> None:
    """By the kernels themselves, whoever asks them."""
    config = TINY.model_copy(update=update)
    assert said in str(why_not(config))
    with pytest.raises(ValueError, match=said):
        NativeNetwork(config, Precision.BF16, {}, {})
    with pytest.raises(ValueError, match=said):
        native.kernels.Network(native_network._sizes(config), {}, {}, 0)


def test_a_step_that_is_refused_says_why() -> None:
    drawn = Drawn(TINY, Precision.BF16, INSTRUCTION_SETS[0], 0, (4,))
    network, text = drawn.packed, drawn.texts[0]

    def step(tokens: Tensor, segment: Segment, history: PagedHistory) -> None:
        history.bind(0, list(range(history.blocks_for(4))))
        network(tokens, positions_of([segment]), [segment], history)

    with pytest.raises(ValueError, match="outside the vocabulary"):
        step(torch.tensor([1, 2, TINY.vocab_size]), Segment(3), history_of(drawn, 1))
    with pytest.raises(ValueError, match="the segments' rows"):
        step(text, Segment(3), history_of(drawn, 1))
    history = history_of(drawn, 1)
    history.bind(0, [0])
    with pytest.raises(ValueError, match="the positions are not those"):
        network(text[:3], torch.tensor([0, 1, 3]), [Segment(3)], history)
    for width in ("head_dim", "index_head_dim"):
        other = replace(drawn, config=TINY.model_copy(update={width: 16}))
        with pytest.raises(ValueError, match="history"):
            step(text[:3], Segment(3), history_of(other, 1))


def test_a_step_that_is_refused_costs_no_slot_its_history() -> None:
    """Whatever is wrong with it: what comes next is computed as if it had not been tried."""
    drawn = Drawn(TINY, Precision.BF16, INSTRUCTION_SETS[0], 0, (6,))
    network, text = drawn.packed, drawn.texts[0]
    history, mtp = history_of(drawn, 1), PagedHistory.for_mtp(TINY, precision=drawn.precision)
    history.bind(0, list(range(history.blocks_for(6))))
    logits, drafts = in_one(network, drawn, 0)
    parts = [(text[:4], text[1:5]), (text[4:6], text[5:7])]
    found = []
    for tokens, after in parts:
        segments = [history.segment(len(tokens))]
        positions, streams = positions_of(segments), torch.zeros(len(tokens), 4, TINY.hidden_size)
        for wrong in (tokens.int(), tokens + TINY.vocab_size, tokens[1:], tokens[None]):
            with pytest.raises((TypeError, ValueError)):
                network(wrong, positions, segments, history)
            with pytest.raises((TypeError, ValueError)):
                network.mtp_forward(wrong, positions, segments, streams, mtp)
        for wrong in (positions + 1, positions.int(), positions[1:]):
            with pytest.raises((TypeError, ValueError)):
                network(tokens, wrong, segments, history)
            with pytest.raises((TypeError, ValueError)):
                network.mtp_forward(after, wrong, segments, streams, mtp)
        streams = network(tokens, positions, segments, history)
        found.append((streams, network.mtp_forward(after, positions, segments, streams, mtp)))
    assert torch.equal(torch.cat([network.logits(streams) for streams, _ in found]), logits)
    assert torch.equal(torch.cat([network.mtp_logits(streams) for _, streams in found]), drafts)
    with pytest.raises(ValueError, match="at least one segment"):
        network(text[:0], text[:0], [], history)


def test_how_streams_lie_in_memory_does_not_matter() -> None:
    drawn = Drawn(TINY, Precision.BF16, INSTRUCTION_SETS[0], 0, (3,))
    network, text, segments = drawn.packed, drawn.texts[0], [Segment(3)]
    streams = torch.randn(TINY.hidden_size, 4, 3).permute(2, 1, 0)

    def computed_from(streams: Tensor) -> tuple[Tensor, Tensor]:
        mtp = PagedHistory.for_mtp(TINY, precision=drawn.precision)
        return network.logits(streams), network.mtp_forward(text[1:], positions_of(segments), segments, streams, mtp)

    for one, other in zip(computed_from(streams), computed_from(streams.contiguous()), strict=True):
        assert torch.equal(one, other)
