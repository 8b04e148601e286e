"""Tiles: every row once, no tile much longer than its segment, and no group above the element budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from narrows.ops import tiles as tiles_module
from narrows.ops.tiles import ELEMENT_BUDGET, Tiles

CPU = torch.device("cpu")
lengths = st.lists(st.integers(1, 70), min_size=1, max_size=8)


@given(lengths, st.sampled_from([1, 3, 4, 16, 60, 64]), st.sampled_from([1, 50, 5000, 1 << 24]))
def test_every_row_is_in_one_tile_of_its_segment(lengths: list[int], size: int, budget: int) -> None:
    cut = Tiles.cut(lengths, size, CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles_module, "ELEMENT_BUDGET", budget)
        groups = list(cut.groups(lambda rows: 7 * rows))
    segment = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    for group in groups:
        assert group.rows.shape[1] <= size
        assert torch.equal(segment[group.rows], group.segment[:, None].expand_as(group.rows))
        assert group.rows.numel() * 7 <= budget or group.rows.numel() == 1
    assert torch.equal(cut.untile([group.rows for group in groups]), torch.arange(sum(lengths)))
    assert sorted(torch.cat([group.rows[group.real] for group in groups]).tolist()) == list(range(sum(lengths)))


@given(lengths, st.sampled_from([1, 3, 4, 16, 60, 64]))
def test_spans_are_the_tiles_rows_in_their_segments_order(lengths: list[int], size: int) -> None:
    rows: list[list[int]] = [[] for _ in lengths]
    for first, count, segment in Tiles.cut(lengths, size, CPU).spans.tolist():
        assert 1 <= count <= size
        rows[segment] += range(first, first + count)
    assert [len(found) for found in rows] == lengths
    assert [row for found in rows for row in found] == list(range(sum(lengths)))


@given(lengths)
def test_a_decoded_token_beside_a_chunk_is_one_row(lengths: list[int]) -> None:
    cut = Tiles.cut(lengths, 64, CPU)
    for run in cut.runs:
        for segment in run.segment.unique().tolist():
            padded = int((run.segment == segment).sum()) * run.rows.shape[1]
            if lengths[segment] == 1:
                assert padded == 1
            assert padded < max(4 * lengths[segment], lengths[segment] + 64)


def test_the_budget_holds_with_many_heads_and_many_entries() -> None:
    """As in the largest model over a million tokens: a tile of 64 rows would be four times the budget."""
    heads, keys = 128, 8192
    elements = [
        group.rows.shape[0] * group.rows.shape[1] * heads * (keys + 127 + group.rows.shape[1])
        for group in Tiles.cut([1000], 64, CPU).groups(lambda rows: rows * heads * (keys + 127 + rows))
    ]
    assert max(elements) <= ELEMENT_BUDGET
