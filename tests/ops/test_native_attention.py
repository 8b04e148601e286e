"""The attention kernels: what the reference computes, and the same bits in any batch, tiles and number of threads."""

from __future__ import annotations

import math
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from narrows.ops import native
from narrows.ops.row_format import Plain
from tests.draws import scaled
from tests.ops.computed import assert_close, threads
from tests.ops.scenes import Scene, scenes

if native.kernels is None:
    pytest.skip("narrows was installed without kernels", allow_module_level=True)


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
