"""Batches: every token once an epoch, samples kept apart, fill-in-the-middle that gives the text back."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from narrows.errors import NarrowsError
from narrows.ops.cross_entropy import IGNORED
from narrows.text.fim import Layout
from narrows.text.tokenizer import FIM_BEGIN, FIM_END, FIM_HOLE
from narrows.training.batches import TrainingBatches, pack
from narrows.training.samples import TokenStream, fim_sample, middle_of
from tests.training.corpora import STREAM, TOKENIZER

samples = st.lists(st.lists(st.integers(0, 2047), min_size=2, max_size=40), min_size=1, max_size=6)


@given(samples)
def test_packed_rows_predict_the_next_token_of_their_own_sample(drawn: list[list[int]]) -> None:
    batch = pack(drawn)
    assert batch.rows == sum(segment.rows for segment in batch.segments)
    first = 0
    for sample, segment in zip(drawn, batch.segments, strict=True):
        rows = slice(first, first + segment.rows)
        assert (segment.past, segment.rows) == (0, len(sample) - 1)
        assert batch.tokens[rows].tolist() == sample[:-1]
        assert batch.positions[rows].tolist() == list(range(segment.rows))
        assert batch.targets[rows].tolist() == sample[1:]
        assert batch.second_targets[rows].tolist() == [*sample[2:], IGNORED]
        first += segment.rows


@given(st.integers(1, 60), st.integers(1, 200), st.integers(0, 5))
def test_an_epoch_holds_every_token_once(length: int, rows: int, seed: int) -> None:
    batches = TrainingBatches(STREAM, length=length, rows=rows, fim_rate=0, seeds=(seed,))
    targets: list[int] = []
    while True:
        batch = batches.next()
        if batches.epoch == 1:
            break
        assert batch.rows <= max(rows, length)
        assert all(segment.rows <= length for segment in batch.segments)
        targets += batch.targets.tolist()
    assert sorted(targets) == sorted(STREAM.tokens.tolist())


@given(st.integers(1, 200), st.integers(0, 5))
def test_no_sample_holds_tokens_of_two_packages(length: int, seed: int) -> None:
    pieces = STREAM.cut(length, np.random.default_rng(seed))
    ends = [0, *STREAM.package_ends.tolist()]
    assert all(any(a <= start < end <= b for a, b in pairwise(ends)) for start, end in pieces.tolist())


def test_samples_fall_elsewhere_in_the_next_epoch() -> None:
    batches = TrainingBatches(STREAM, length=50, rows=50, fim_rate=0, seeds=(0,))
    first = {tuple(batches.next().tokens.tolist()) for _ in range(12)}
    batches.seek(1, 0)
    assert first != {tuple(batches.next().tokens.tolist()) for _ in range(12)}


@given(st.integers(0, 12), st.floats(0, 1))
def test_a_reader_can_go_on_where_another_stopped(read: int, fim_rate: float) -> None:
    def reader() -> TrainingBatches:
        return TrainingBatches(STREAM, length=40, rows=100, fim_rate=fim_rate, seeds=(3,))

    one, other = reader(), reader()
    for _ in range(read):
        one.next()
    other.seek(one.epoch, one.position)
    for _ in range(4):
        mine, its = one.next(), other.next()
        assert mine.segments == its.segments
        assert torch.equal(mine.targets, its.targets)


@pytest.mark.parametrize("processes", [1, 3])
def test_samples_made_ahead_are_the_same_ones(processes: int) -> None:
    def reader(processes: int) -> TrainingBatches:
        return TrainingBatches(STREAM, length=40, rows=100, fim_rate=0.5, seeds=(3,), processes=processes)

    plain, ahead = reader(0), reader(processes)
    try:
        for start in ((0, 0), (0, 5), (2, 1)):
            plain.seek(*start)
            ahead.seek(*start)
            for _ in range(30):
                mine, its = plain.next(), ahead.next()
                assert (plain.epoch, plain.position) == (ahead.epoch, ahead.position)
                assert torch.equal(mine.targets, its.targets)
    finally:
        ahead.close()


@pytest.mark.parametrize("layout", ["psm", "spm"])
@given(text=st.text(max_size=300), seed=st.integers(0, 1000))
def test_a_fim_sample_is_its_text_rearranged(text: str, seed: int, layout: Layout) -> None:
    text = text.strip("\ufffd")
    tokens = [*TOKENIZER.encode(text), TOKENIZER.eos_id]
    sample = fim_sample(TOKENIZER, tokens, 10_000, np.random.default_rng(seed), layout)
    prefix, middle, suffix = parts(sample)
    assert TOKENIZER.decode(prefix) + TOKENIZER.decode(middle) + TOKENIZER.decode(suffix) == text
    assert sample[-1] == TOKENIZER.eos_id


@given(st.integers(40, 400), st.integers(0, 200))
def test_a_fim_sample_that_is_too_long_loses_what_is_farthest_from_the_hole(most: int, seed: int) -> None:
    tokens = STREAM.tokens[: STREAM.package_ends[0] - 1].tolist()  # several files
    whole = fim_sample(TOKENIZER, tokens, 10_000, np.random.default_rng(seed))
    cut = fim_sample(TOKENIZER, tokens, most, np.random.default_rng(seed))
    assert len(cut) == min(most, len(whole))
    begin = TOKENIZER.control(FIM_BEGIN)
    context, kept = whole[1 : whole.index(begin)], cut[1 : cut.index(begin)]
    assert kept == context[len(context) - len(kept) :]
    prefix, middle, suffix = parts(cut)
    if len(parts(whole)[1]) + 5 <= most:  # the middle always fits
        assert middle == parts(whole)[1]
        assert parts(whole)[0][len(parts(whole)[0]) - len(prefix) :] == prefix
        assert parts(whole)[2][: len(suffix)] == suffix
        assert kept == [] or prefix == parts(whole)[0]


@given(st.integers(40, 400), st.integers(0, 200))
def test_suffix_first_it_is_the_same_sample_in_another_order(most: int, seed: int) -> None:
    tokens = STREAM.tokens[: STREAM.package_ends[0] - 1].tolist()
    psm = fim_sample(TOKENIZER, tokens, most, np.random.default_rng(seed))
    spm = fim_sample(TOKENIZER, tokens, most, np.random.default_rng(seed), "spm")
    assert len(spm) == len(psm) <= most
    if psm[-1] == TOKENIZER.eos_id:  # the middle fitted
        prefix, middle, suffix = parts(psm)
        begin, hole, end = map(TOKENIZER.control, (FIM_BEGIN, FIM_HOLE, FIM_END))
        before = psm[: psm.index(begin)]
        assert spm == [*before, begin, hole, *suffix, end, *prefix, *middle, TOKENIZER.eos_id]


@given(st.text(alphabet="ab \n", max_size=80), st.integers(0, 1000))
def test_a_middle_lies_inside_its_text(text: str, seed: int) -> None:
    start, end = middle_of(text, np.random.default_rng(seed))
    assert 0 <= start <= end <= len(text)


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_the_share_of_fim_samples_is_the_one_asked_for(rate: float) -> None:
    batches = TrainingBatches(STREAM, length=20, rows=20, fim_rate=rate, seeds=(0,))
    hole = TOKENIZER.control(FIM_HOLE)
    found = [hole in batches.next().tokens.tolist() for _ in range(300)]
    assert abs(sum(found) / 300 - rate) < 0.1


def test_batches_are_laid_out_as_asked() -> None:
    begin, hole = TOKENIZER.control(FIM_BEGIN), TOKENIZER.control(FIM_HOLE)

    def adjacent(layout: Layout) -> list[bool]:
        batches = TrainingBatches(STREAM, length=60, rows=60, fim_rate=1, seeds=(0,), fim_layout=layout)
        samples = [batches.next().tokens.tolist() for _ in range(30)]
        return [sample[sample.index(begin) + 1] == hole for sample in samples]

    assert all(adjacent("spm"))
    assert not all(adjacent("psm"))


def test_a_corpus_without_documents_is_refused() -> None:
    with pytest.raises(NarrowsError, match="no document to train on"):
        TokenStream(TOKENIZER, [[], []])


def parts(sample: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Prefix, middle and suffix of a fill-in-the-middle sample, as tokens."""
    begin, hole, end = (sample.index(TOKENIZER.control(content)) for content in (FIM_BEGIN, FIM_HOLE, FIM_END))
    middle = sample[end + 1 :]
    if middle and middle[-1] == TOKENIZER.eos_id:
        middle = middle[:-1]
    return sample[begin + 1 : hole], middle, sample[hole + 1 : end]
