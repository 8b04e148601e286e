"""Cached rows: each stored for itself, within their format's precision, in the bytes that the report counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from narrows.model.precision import Precision, cache_formats, row_bytes
from narrows.model.presets import PRO, TINY
from narrows.ops.pages import Pages
from narrows.ops.row_format import FP4Keys, FP8Entries, Plain, RowFormat, hadamard

FORMATS: list[tuple[RowFormat, int]] = [
    (FP8Entries(512, 64), 512),
    (FP8Entries(64, 32), 64),
    (FP8Entries(90, 8), 90),
    (FP8Entries(33, 8), 33),
    (FP4Keys(32), 32),
    (FP4Keys(128), 128),
    (Plain(24, torch.bfloat16), 24),
]


def rows_of(seed: int, count: int, features: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    sizes = torch.randint(-8, 9, (count, 1), generator=source)
    return torch.randn(count, features, generator=source) * 2.0**sizes


@given(seed=st.integers(0, 2**32), which=st.integers(0, len(FORMATS) - 1), count=st.integers(1, 9))
def test_rows_are_stored_each_for_itself(seed: int, which: int, count: int) -> None:
    stored, features = FORMATS[which]
    rows = rows_of(seed, count, features)
    together = stored.encode(rows)
    assert together.shape == (count, stored.width)
    assert together.dtype == stored.dtype
    apart = torch.stack([stored.encode(row) for row in rows])
    assert torch.equal(together.view(torch.uint8), apart.view(torch.uint8))
    read = stored.decode(together, torch.float32)
    assert torch.equal(read, torch.stack([stored.decode(row, torch.float32) for row in apart]))
    assert torch.equal(read, stored.decode(together, torch.float64).float())


@given(seed=st.integers(0, 2**32), which=st.sampled_from([0, 1, 2]))
def test_fp8_entries_are_within_a_sixteenth_and_their_rope_dims_are_bf16(seed: int, which: int) -> None:
    stored, features = FORMATS[which]
    assert isinstance(stored, FP8Entries)
    rows = rows_of(seed, 5, features)
    read = stored.decode(stored.encode(rows), torch.float32)
    assert torch.equal(read[:, -stored.rope :], rows[:, -stored.rope :].bfloat16().float())
    plain, got = rows[:, : -stored.rope], read[:, : -stored.rope]
    for block, of in zip(got.split(64, -1), plain.split(64, -1), strict=True):
        # Half a step of 3 bits of mantissa; below the normal numbers, half of the smallest step.
        least = of.abs().amax(-1, keepdim=True) * 2.0**-16
        assert bool(((block - of).abs() <= torch.maximum(of.abs() / 16, least)).all())


@given(seed=st.integers(0, 2**32), features=st.sampled_from([32, 64, 128]))
def test_a_turn_leaves_products_and_fp4_keys_keep_them_roughly(seed: int, features: int) -> None:
    stored = FP4Keys(features)
    keys, queries = rows_of(seed, 7, features).double(), rows_of(seed + 1, 3, features).double()
    wanted = queries @ keys.mT
    scale = queries.norm(dim=-1)[:, None] * keys.norm(dim=-1)
    turned = hadamard(queries) @ hadamard(keys).mT
    assert float(((turned - wanted).abs() / scale).max()) < 1e-14
    read = stored.queries(queries) @ stored.decode(stored.encode(keys), torch.float64).mT
    assert float(((read - wanted).abs() / scale).max()) < 0.2


def test_pages_read_what_was_encoded() -> None:
    stored = FP4Keys(32)
    rows = rows_of(3, 8, 32)
    pages = Pages(stored.encode(rows), torch.tensor([[4, 0]]), 4, stored)
    got = pages.gather(torch.tensor(0), torch.arange(8), torch.float32)
    assert torch.equal(got, stored.decode(stored.encode(rows), torch.float32)[[4, 5, 6, 7, 0, 1, 2, 3]])


def test_bytes_are_those_of_the_report() -> None:
    entry, key = cache_formats(PRO, torch.float32, Precision.OFFICIAL)
    assert (row_bytes(entry), row_bytes(key)) == (584, 68)
    entry, key = cache_formats(PRO, torch.float32, Precision.FP8)
    assert (row_bytes(entry), row_bytes(key)) == (1024, 256)
    assert row_bytes(cache_formats(TINY, torch.bfloat16)[0]) == 2 * TINY.head_dim


@pytest.mark.parametrize("features", [8, 48, 33])
def test_keys_that_fp4_cannot_hold_are_refused(features: int) -> None:
    with pytest.raises(ValueError, match=f"keys of {features} features"):
        FP4Keys(features)


@pytest.mark.parametrize(("stored", "features"), FORMATS)
@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_read_as_such_and_spoils_no_other_row(
    stored: RowFormat, features: int, place: int, value: float
) -> None:
    rows = rows_of(5, 3, features)
    rows[1, place] = value
    read = stored.decode(stored.encode(rows), torch.float32)
    assert not read[1].isfinite().all()
    assert read[[0, 2]].isfinite().all()
