"""The attention kernels: what the reference computes, and the same bits in any batch, tiles and number of threads."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from narrows.ops import native
from narrows.ops.pages import Pages
from narrows.ops.row_format import Plain, RowFormat
from narrows.ops.sparse_attention import Entries, Window, sparse_attention
from narrows.ops.tiles import Tiles
from tests.draws import scaled
from tests.ops.computed import Outcome, assert_close, normal, threads

if native.kernels is None:
    pytest.skip("narrows was installed without kernels", allow_module_level=True)


@dataclass(frozen=True)
class Segment:
    """Rows of one sequence, the window's rows that it had before, and its entries."""

    q: Tensor
    kv: Tensor
    entries: Tensor
    visible: Tensor
    selected: Tensor
    upper: Tensor

    @property
    def rows(self) -> int:
        return self.q.shape[0]

    @property
    def past(self) -> int:
        return self.kv.shape[0] - self.rows

    def part(self, begin: int, end: int) -> Segment:
        """Some of its rows, those before them as its past."""
        rows = slice(begin, end)
        return Segment(
            self.q[rows],
            self.kv[: self.past + end],
            self.entries,
            self.visible[rows],
            self.selected[rows],
            self.upper[rows],
        )


@dataclass(frozen=True)
class Scene:
    """Segments in one step. Their entries lie in blocks, the last segment's first."""

    segments: list[Segment]
    window: int
    block: int
    select: bool
    sink: Tensor
    tile: int = 64

    def attend(self, q: Tensor, kv: Tensor, storage: Tensor, sink: Tensor, format: RowFormat | None = None) -> Tensor:
        """q [N, H, c], kv [M, c], storage [E, c] -> [N, H, c]."""
        total, last, first = 0, [], []
        for segment in self.segments:
            own = total + segment.past + torch.arange(segment.rows)
            last.append(own)
            first.append((own - self.window + 1).clamp(min=total))
            total += segment.kv.shape[0]
        window = Window(kv, torch.cat(first), torch.cat(last), self.window)
        visible = torch.cat([segment.visible for segment in self.segments])
        entries, most = None, int(visible.max())
        if most:
            order = torch.arange(len(self.segments) * self._blocks).flip(0).view(len(self.segments), -1)
            selected = torch.cat([segment.selected for segment in self.segments]) if self.select else None
            entries = Entries(Pages(storage, order * self.block, self.block, format), visible, most, selected)
        lengths = [segment.rows for segment in self.segments]
        return sparse_attention(
            q, window, entries, sink, *(Tiles.cut(lengths, size, torch.device("cpu")) for size in (self.tile, 1))
        )

    def inputs(self) -> list[Tensor]:
        """q, kv, storage and sink."""
        storage = [
            torch.cat((segment.entries, segment.entries.new_zeros(self._held - len(segment.entries), self.sink_dim)))
            .view(self._blocks, self.block, -1)
            .flip(0)
            .flatten(0, 1)
            for segment in reversed(self.segments)
        ]
        return [
            torch.cat([segment.q for segment in self.segments]),
            torch.cat([segment.kv for segment in self.segments]),
            torch.cat(storage),
            self.sink,
        ]

    def outcome(self, dtype: torch.dtype = torch.float32) -> Outcome:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in self.inputs()]
        result = self.attend(*leaves)
        upper = torch.cat([segment.upper for segment in self.segments]).to(dtype)
        gradients = torch.autograd.grad(result, leaves, upper, allow_unused=True, materialize_grads=True)
        return [result.detach()], list(gradients)

    def alone(self, number: int) -> Scene:
        """One segment, its entries in as many blocks as it needs."""
        return replace(self, segments=[self.segments[number]])

    def of_segment(self, outcome: Outcome, number: int) -> list[Tensor]:
        """What one segment has of results and gradients, the sinks' aside; its entries in their order."""
        (result,), (by_q, by_kv, by_storage, _) = outcome
        parts = []
        for tensor, sizes in (
            (result, [segment.rows for segment in self.segments]),
            (by_q, [segment.rows for segment in self.segments]),
            (by_kv, [segment.kv.shape[0] for segment in self.segments]),
        ):
            parts.append(tensor.split(sizes)[number])
        blocks = by_storage.view(len(self.segments), self._blocks, self.block, -1)[-1 - number].flip(0)
        return [*parts, blocks.flatten(0, 1)[: len(self.segments[number].entries)]]

    @property
    def sink_dim(self) -> int:
        return self.segments[0].q.shape[2]

    @property
    def _blocks(self) -> int:
        return max(1, *(-(-len(segment.entries) // self.block) for segment in self.segments), 0)

    @property
    def _held(self) -> int:
        return self._blocks * self.block


@st.composite
def scenes(draw: st.DrawFn, segments: int = 3, dims: tuple[int, ...] = tuple(range(1, 71))) -> Scene:
    """Entries as in training, one more visible every `ratio` rows; many, few or none."""
    normals = normal(draw(st.integers(0, 2**31)))
    heads, dim = draw(st.sampled_from([1, 2, 3, 4, 5, 17, 70])), draw(st.sampled_from(dims))
    window, ratio, chosen = draw(st.integers(1, 150)), draw(st.sampled_from([1, 2, 4, 999])), draw(st.integers(1, 20))
    made = []
    for _ in range(draw(st.integers(1, segments))):
        rows, past = draw(st.sampled_from([1, 3, 16, 64, 65, 150])), draw(st.sampled_from([0, 1, 40]))
        position = past + torch.arange(rows)
        visible = (position + 1) // ratio
        count = int(visible.max())
        scores = normals(rows, count).masked_fill(torch.arange(count) >= visible[:, None], -math.inf)
        best = scores.topk(min(chosen, count), dim=1)
        selected = torch.where(best.values > -math.inf, best.indices, -1)
        selected = torch.cat((selected, torch.full((rows, chosen - selected.shape[1]), -1)), dim=1)
        upper = normals(rows, heads, dim)
        made.append(
            Segment(
                normals(rows, heads, dim),
                normals(min(past, window - 1) + rows, dim),
                normals(count, dim),
                visible,
                selected,
                upper,
            )
        )
    return Scene(made, window, draw(st.integers(1, 40)), draw(st.booleans()), normals(heads))


def same(ours: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, others, strict=True))


@pytest.mark.usefixtures("instruction_set")
@given(scenes())
def test_values_and_gradients_are_those_of_float64(scene: Scene) -> None:
    assert_close(scene.outcome(), scene.outcome(torch.float64))


@pytest.mark.usefixtures("instruction_set")
@given(scenes(), st.data())
def test_a_segment_alone_is_the_segment_of_any_batch(scene: Scene, data: st.DataObject) -> None:
    """Its keys' gradients too, which are sums over its rows."""
    number = data.draw(st.integers(0, len(scene.segments) - 1))
    alone = scene.alone(number)
    assert same(scene.of_segment(scene.outcome(), number), alone.of_segment(alone.outcome(), 0))


@pytest.mark.usefixtures("instruction_set")
@given(scenes(segments=1), st.sampled_from([1, 7, 16]), st.data())
def test_a_row_is_the_same_in_any_tile_and_any_chunk(scene: Scene, tile: int, data: st.DataObject) -> None:
    (segment,) = scene.segments
    (whole,), (by_q, *_) = scene.outcome()
    (cut,), (by_q_cut, *_) = replace(scene, tile=tile).outcome()
    assert same([whole, by_q], [cut, by_q_cut])
    begin = data.draw(st.integers(0, segment.rows - 1))
    end = data.draw(st.integers(begin + 1, segment.rows))
    (chunk,), (by_q_chunk, *_) = replace(scene, segments=[segment.part(begin, end)]).outcome()
    assert same([whole[begin:end], by_q[begin:end]], [chunk, by_q_chunk])


@pytest.mark.usefixtures("instruction_set")
@settings(max_examples=scaled(20))
@given(scenes(segments=8))
def test_two_threads_compute_what_one_does(scene: Scene) -> None:
    results, gradients = scene.outcome()
    with threads(2):
        others, their_gradients = scene.outcome()
    assert same([*results, *gradients], [*others, *their_gradients])


@given(scenes())
def test_bfloat16_is_rounded_and_no_more(scene: Scene) -> None:
    rounded = replace(
        scene,
        sink=scene.sink.bfloat16().float(),
        segments=[
            replace(
                segment, **{name: getattr(segment, name).bfloat16().float() for name in ("q", "kv", "entries", "upper")}
            )
            for segment in scene.segments
        ],
    )
    exact, ours = rounded.outcome(), rounded.outcome(torch.bfloat16)
    for one, other in zip((*exact[0], *exact[1]), (*ours[0], *ours[1]), strict=True):
        assert other.dtype == torch.bfloat16
        assert torch.equal(one.bfloat16(), other)


@given(scenes())
def test_entries_that_a_cache_stores_otherwise_are_left_to_the_reference(scene: Scene) -> None:
    """And float32 ones are read where they lie."""
    q, kv, storage, sink = scene.inputs()
    entries = any(len(segment.entries) for segment in scene.segments)
    for dtype in (torch.float32, torch.bfloat16):
        stored = Plain(q.shape[2], dtype)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "kernels", watched := Mock(wraps=native.kernels))
            ours = scene.attend(q, kv, stored.encode(storage), sink, stored)
        assert watched.attention.called == (dtype is torch.float32 or not entries)
        exact = scene.attend(q.double(), kv.double(), storage.to(dtype).double(), sink.double())
        assert_close(([ours], []), ([exact], []))


@pytest.mark.usefixtures("instruction_set")
@given(scenes(dims=(1, 4, 16, 64)), st.sampled_from([128.0, 4096.0]))
def test_extreme_scores_have_a_softmax(scene: Scene, size: float) -> None:
    """Of numbers so short that scores are exact, in float32 as in float64."""
    segments = [
        replace(segment, **{name: (4 * getattr(segment, name)).round() for name in ("q", "kv", "entries")})
        for segment in scene.segments
    ]
    segments = [replace(segment, q=size * segment.q) for segment in segments]
    extreme = replace(scene, segments=segments, sink=size * scene.sink.round())
    assert_close((extreme.outcome()[0], []), (extreme.outcome(torch.float64)[0], []))


@pytest.mark.usefixtures("instruction_set")
@given(scenes(), st.sampled_from([math.nan, math.inf, -math.inf]), st.sampled_from(["q", "kv", "upper"]), st.data())
def test_what_is_not_finite_shows_and_stays_in_its_segment(
    scene: Scene, broken: float, where: str, data: st.DataObject
) -> None:
    """An infinity may vanish, where it makes a score -inf; what is not a number does not."""
    number = data.draw(st.integers(0, len(scene.segments) - 1))
    damaged = getattr(scene.segments[number], where).clone()
    damaged[-1].view(-1)[-1] = broken
    segments = list(scene.segments)
    segments[number] = replace(segments[number], **{where: damaged})
    sound, outcome = scene.outcome(), replace(scene, segments=segments).outcome()
    if math.isnan(broken):
        result, _, by_kv, _ = scene.of_segment(outcome, number)
        assert where == "upper" or not result[-1].isfinite().all()
        assert not by_kv.isfinite().all()
        assert not outcome[1][-1].isfinite().all()
    for other in range(len(segments)):
        if other != number:
            assert same(scene.of_segment(outcome, other), scene.of_segment(sound, other))
