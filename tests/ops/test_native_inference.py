"""The ops that a step of inference on the CPU is made of, one by one: what their references compute, for every
instruction set, and the same bits however rows are put together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from narrows.ops.compress import compress
from narrows.ops.hyper import hyper_pre
from narrows.ops.native import row_format
from narrows.ops.packed import Packed, pack, unpack
from narrows.ops.quantize import quantize_fp8, quantize_mxfp4
from narrows.ops.row_format import FP4Keys, FP8Entries, Plain, RowFormat
from narrows.ops.topk import top_k
from tests.draws import scaled
from tests.ops import fuzzing
from tests.ops.computed import assert_close, computed, kernels, misaligned, normal
from tests.ops.scenes import Scene, Segment, scenes

if kernels is None:
    pytest.skip("narrows was installed without kernels", allow_module_level=True)

seeds = st.integers(0, 2**31)
some = settings(max_examples=scaled(20))


# -- products -------------------------------------------------------------------------------------------------------


def packed(format: str, seed: int, rows: int, columns: int) -> Packed:
    weight = normal(seed)(rows, columns)
    match format:
        case "bf16":
            return pack(weight.bfloat16())
        case "fp8":
            return pack(*quantize_fp8(weight))
        case _:
            return pack(*quantize_mxfp4(weight))


def bound(weight: Packed) -> object:
    return kernels.Matrix(weight.format, weight.rows, weight.columns, weight.values, weight.scales)


def linear(x: Tensor, weight: Packed, *, exact: bool = False, threads: int = 1) -> Tensor:
    out = torch.full((x.shape[0], weight.rows), math.nan)
    kernels.linear(x, bound(weight), exact, threads, out)
    return out


@st.composite
def products(draw: st.DrawFn) -> tuple[Tensor, Packed, bool]:
    """Inputs, a weight, and whether they are taken as they are."""
    format, exact = draw(st.sampled_from([("bf16", False), ("bf16", True), ("fp8", False), ("mxfp4", False)]))
    columns = 32 * draw(st.integers(1, 9)) if format == "mxfp4" else draw(st.integers(1, 300))
    rows = draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 95, 96, 97, 200, 300]))
    seed = draw(seeds)
    return normal(seed)(rows, columns), packed(format, seed, draw(st.integers(1, 200)), columns), exact


@pytest.mark.usefixtures("instruction_set")
@given(products())
def test_products_are_those_of_float64(drawn: tuple[Tensor, Packed, bool]) -> None:
    x, weight, exact = drawn
    read = x if exact else x.bfloat16()
    assert_close(([linear(x, weight, exact=exact)], []), ([read.double() @ unpack(weight).double().mT], []))


@pytest.mark.usefixtures("instruction_set")
@some
@given(products(), st.data())
def test_a_row_of_a_product_is_the_same_in_any_batch_on_any_number_of_threads(
    drawn: tuple[Tensor, Packed, bool], data: st.DataObject
) -> None:
    x, weight, exact = drawn
    whole = linear(x, weight, exact=exact)
    for threads in (2, 3):
        assert torch.equal(whole, linear(x, weight, exact=exact, threads=threads))
    for size in (1, data.draw(st.integers(1, x.shape[0]))):
        begin = data.draw(st.integers(0, x.shape[0] - size))
        assert torch.equal(whole[begin : begin + size], linear(x[begin : begin + size], weight, exact=exact))


@pytest.mark.parametrize("format", ["bf16", "fp8", "mxfp4"])
@pytest.mark.usefixtures("instruction_set")
def test_a_product_of_no_rows_is_one(format: str) -> None:
    assert linear(torch.empty(0, 32), packed(format, 0, 5, 32)).shape == (0, 5)


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
@pytest.mark.usefixtures("instruction_set")
def test_every_code_of_a_quantised_weight_is_what_it_means(rows: int) -> None:
    """Times 1: all of E4M3, all of E2M1, and all scales, NaN among them. Products may take what is below the normal
    numbers for 0."""
    codes = torch.arange(256, dtype=torch.uint8)
    one = torch.full((2, 1), 127, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    fp8 = pack(codes[:, None].view(torch.float8_e4m3fn), one)
    scales = codes.repeat_interleave(16)[:, None].view(torch.float8_e8m0fnu)
    places = (torch.arange(4096) % 16).to(torch.uint8)
    fp4 = pack(torch.nn.functional.pad(places[:, None], (0, 15)).view(torch.int8), scales)
    tiles = codes[:, None].view(torch.float8_e8m0fnu)
    ones = torch.full((256 * 128, 1), 0x38, dtype=torch.uint8).view(torch.float8_e4m3fn)
    for weight in (fp8, fp4, pack(ones, tiles)):
        x = torch.zeros(rows, weight.columns)
        x[:, 0] = 1
        wanted = unpack(weight)[:, 0]
        for ours in linear(x, weight):
            assert torch.equal(ours.isnan(), wanted.isnan())
            normals = wanted.abs() >= torch.finfo(torch.float32).smallest_normal
            assert torch.equal(ours[normals], wanted[normals])
            assert (ours[~normals & ~wanted.isnan()].abs() <= torch.finfo(torch.float32).smallest_normal).all()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("format", "exact"), [("bf16", False), ("bf16", True), ("fp8", False), ("mxfp4", False)])
@pytest.mark.parametrize("rows", [1, 2, 3, 9])
@pytest.mark.usefixtures("instruction_set")
def test_what_is_not_finite_in_a_row_stays_in_it(rows: int, format: str, exact: bool, broken: float) -> None:
    """And what is not in a weight's row in its results."""
    x, weight = normal(1)(rows, 64), packed(format, 1, 70, 64)
    sound = linear(x, weight, exact=exact)
    x[-1, -1] = broken
    out = linear(x, weight, exact=exact)
    assert torch.equal(out[:-1], sound[:-1])
    assert not out[-1].isfinite().any()
    if format == "bf16":
        values = normal(1)(70, 64).bfloat16()
        values[69, 63] = broken
        out = linear(normal(1)(rows, 64), pack(values), exact=exact)
        assert not out[:, 69].isfinite().any()
        assert out[:, :69].isfinite().all()


# -- stored rows ----------------------------------------------------------------------------------------------------


def encode(format: RowFormat, rows: Tensor) -> Tensor:
    out = torch.full((len(rows), format.width * format.dtype.itemsize), 0xAA, dtype=torch.uint8)
    kernels.encode_rows(row_format(format), rows, out)
    return out


def decode(format: RowFormat, stored: Tensor, features: int) -> Tensor:
    out = torch.full((len(stored), features), 7.0)
    kernels.decode_rows(row_format(format), stored, out)
    return out


@st.composite
def row_formats(draw: st.DrawFn, features: int | None = None) -> RowFormat:
    features = draw(st.integers(1, 200)) if features is None else features
    choices: list[RowFormat] = [Plain(features, torch.float32), Plain(features, torch.bfloat16)]
    if features > 1:
        choices.append(FP8Entries(features, 2 * draw(st.integers(1, features // 2))))
    return draw(st.sampled_from(choices))


def features_of(format: RowFormat) -> int:
    return format.width if isinstance(format, Plain) else format.features  # type: ignore[attr-defined]


SPECIAL = [0.0, -0.0, 448.0, 449.0, 464.0, 2.0**-9, 2.0**-10, 3 * 2.0**-10, 1e-40, 2.0**-127, 1 + 2**-8, 1 + 3 * 2**-9]
HUGE = [2.0**127, -(2.0**127), 1.8e38, 3.4e38, math.inf, -math.inf, math.nan]


@st.composite
def rows_to_store(draw: st.DrawFn, features: int, *, huge: bool = True) -> Tensor:
    """Of all sizes, each with some values at which formats change their mind."""
    count, normals = draw(st.integers(1, 9)), normal(draw(seeds))
    sizes = [-130, -100, -20, -4, 0, 4, 20, 100]
    rows = normals(count, features) * 2.0 ** draw(st.sampled_from([*sizes, 120] if huge else sizes))
    for _ in range(draw(st.integers(0, 6))):
        value = draw(st.sampled_from(SPECIAL + HUGE if huge else SPECIAL))
        rows[draw(st.integers(0, count - 1)), draw(st.integers(0, features - 1))] = value
    return rows


@pytest.mark.usefixtures("instruction_set")
@given(st.data())
def test_rows_are_stored_in_the_bytes_of_the_reference(data: st.DataObject) -> None:
    format = data.draw(row_formats())
    rows = data.draw(rows_to_store(features_of(format)))
    ours, theirs = encode(format, rows), format.encode(rows).view(torch.uint8)
    number = ~rows.isnan().any(-1)  # of what is not a number, the bits may be others
    assert torch.equal(ours[number], theirs[number])
    for stored in (ours, theirs):
        read = decode(format, stored, rows.shape[1])
        assert same(read, format.decode(theirs.view(format.dtype), torch.float32))


def same(ours: Tensor, others: Tensor) -> bool:
    return bool(((ours == others) | (ours.isnan() & others.isnan())).all())


@pytest.mark.usefixtures("instruction_set")
@given(st.data())
def test_any_bytes_are_read_as_the_reference_reads_them(data: st.DataObject) -> None:
    format = data.draw(st.one_of(row_formats(), st.sampled_from([FP4Keys(32), FP4Keys(64), FP4Keys(256)])))
    shape = (data.draw(st.integers(0, 9)), format.width * format.dtype.itemsize)
    stored = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(data.draw(seeds))).to(torch.uint8)
    features = features_of(format)
    wanted = format.decode(stored.view(format.dtype), torch.float32)
    assert same(decode(format, stored, features), wanted)


E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


@pytest.mark.usefixtures("instruction_set")
@given(st.sampled_from([32, 64, 128, 512]), st.data())
def test_keys_are_turned_and_stored_as_near_as_fp4_can(features: int, data: st.DataObject) -> None:
    """The turn's rounding may be another than the reference's: each value is the nearest to what float64 gives or,
    between two, within that rounding of both; a scale is the least that holds its block."""
    rows, format = data.draw(rows_to_store(features, huge=False)), FP4Keys(features)
    turned = format.queries(rows.double()).unflatten(-1, (-1, 32))
    stored = encode(format, rows)
    bytes_ = stored[:, features // 2 :].double()
    noise = 1e-6 * rows.double().abs().sum(-1)[:, None] + 2.0**-140
    most = turned.abs().amax(-1)
    assert (most <= 6 * 2.0 ** (bytes_ - 127) + noise)[bytes_ < 254].all()
    least = (bytes_ == 0) | (most + noise > 6 * 2.0 ** (bytes_ - 128)) | ((most <= noise) & (bytes_ == 127))
    assert least.all()
    read = decode(format, stored, features).double().unflatten(-1, (-1, 32))
    scale = 2.0 ** (bytes_ - 127)[..., None]
    nearest = (turned.abs()[..., None] / scale[..., None] - E2M1.double()).abs().amin(-1) * scale
    assert ((read - turned).abs() <= nearest + noise[..., None] + 2.0**-149).all()


@pytest.mark.usefixtures("instruction_set")
@given(st.integers(1, 9), seeds)
def test_keys_whose_turn_is_exact_are_stored_in_the_bytes_of_the_reference(count: int, seed: int) -> None:
    rows = normal(seed)(count, 64).mul(8).round()
    assert torch.equal(encode(FP4Keys(64), rows), FP4Keys(64).encode(rows))


@pytest.mark.parametrize("format", [FP8Entries(90, 8), FP4Keys(64), Plain(24, torch.bfloat16)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.usefixtures("instruction_set")
def test_a_row_that_is_not_finite_is_read_as_such(format: RowFormat, value: float) -> None:
    features = features_of(format)
    rows = normal(0)(3, features)
    sound = decode(format, encode(format, rows), features)
    for place in (0, -1):
        rows[1, place] = value
        read = decode(format, encode(format, rows), features)
        assert torch.equal(read[[0, 2]], sound[[0, 2]])
        if isinstance(format, Plain):
            assert not read[1, place].isfinite()
        elif isinstance(format, FP8Entries):
            assert read[1, : features - format.rope].isnan().all()
        else:
            assert read[1].isnan().all()


# -- the indexer ----------------------------------------------------------------------------------------------------


@st.composite
def searches(draw: st.DrawFn) -> tuple[Tensor, ...]:
    """Queries, weights, visible and keys as stored, with their format, of numbers so short that scores are exact and
    often the same; and the table of blocks."""
    random = torch.Generator().manual_seed(draw(seeds))

    def integers(most: int, *shape: int) -> Tensor:
        return torch.randint(-most, most + 1, shape, generator=random).float()

    rows, heads = draw(st.integers(1, 20)), draw(st.sampled_from([1, 2, 3, 4, 5, 8, 9, 16, 17, 64, 65, 130]))
    fp4 = draw(st.booleans())
    dim = draw(st.sampled_from([32, 64, 128])) if fp4 else draw(st.sampled_from([1, 2, 5, 16, 31, 64, 70]))
    block, entries = draw(st.integers(1, 40)), draw(st.sampled_from([0, 1, 5, 31, 32, 33, 64, 100, 300]))
    blocks = -(-max(entries, 1) // block)
    queries, weights = integers(draw(st.sampled_from([1, 3])), rows, heads, dim), integers(4, rows, heads) / 2
    format: RowFormat
    if fp4:
        format = FP4Keys(dim)
        # BF16 takes the keys as they are, but of the least and the largest scales.
        byte = draw(st.sampled_from([3, 7, 8, 9, 127, 130, 247, 248, 249, 250]))
        queries *= 2.0 ** (127 - byte)
        codes = torch.randint(0, 256, (blocks, block, dim // 2), generator=random).to(torch.uint8)
        keys = torch.cat((codes, torch.full((blocks, block, dim // 32), byte, dtype=torch.uint8)), dim=-1)
    else:
        format = Plain(dim, draw(st.sampled_from([torch.float32, torch.bfloat16])))
        keys = format.encode(integers(3, blocks, block, dim)).view(torch.uint8)
    table = torch.randperm(blocks, generator=random).to(torch.int32)[None]
    visible = torch.randint(0, entries + 1, (rows,), generator=random).sort().values
    return queries, weights, visible, keys.contiguous(), table, format  # type: ignore[return-value]


def scores_of(queries: Tensor, weights: Tensor, keys: Tensor, table: Tensor, format: RowFormat) -> Tensor:
    """[N, entries of all blocks], in float64."""
    read = format.decode(keys[table[0].long()].flatten(0, 1).view(format.dtype), torch.float64)
    return torch.einsum("nhe,nh->ne", torch.relu(queries.double() @ read.mT), weights.double())


def index_topk(
    queries: Tensor,
    weights: Tensor,
    visible: Tensor,
    keys: Tensor,
    table: Tensor,
    format: RowFormat,
    k: int,
    splits: int,
) -> Tensor:
    out = torch.full((len(queries), k), -7)
    kernels.index_topk(queries, weights, visible, keys, table, row_format(format), splits, out)
    return out


@pytest.mark.usefixtures("instruction_set")
@given(searches(), st.sampled_from([1, 2, 7, 40, 400]), st.sampled_from([1, 2, 3, 64]))
def test_the_best_entries_are_chosen_and_of_equals_the_lower(drawn: tuple, k: int, splits: int) -> None:
    queries, weights, visible, keys, table, format = drawn
    scores = scores_of(queries, weights, keys, table, format)
    scores = scores.masked_fill(torch.arange(scores.shape[1]) >= visible[:, None], -math.inf)
    wanted = top_k(scores, k) if scores.shape[1] else torch.full((len(queries), k), -1)
    wanted = torch.nn.functional.pad(wanted, (0, k - wanted.shape[1]), value=-1)
    assert torch.equal(index_topk(*drawn, k, splits), wanted)


@pytest.mark.usefixtures("instruction_set")
@some
@given(st.integers(1, 20), st.sampled_from([1, 3, 8, 16, 70]), st.sampled_from([5, 32, 64]), seeds, st.data())
def test_what_a_query_chooses_does_not_depend_on_who_else_asks(
    rows: int, heads: int, dim: int, seed: int, data: st.DataObject
) -> None:
    """Of numbers whose scores are not exact: their bits follow from query and key alone."""
    draw, format = normal(seed), Plain(dim, torch.float32)
    queries, weights, keys = (
        draw(rows, heads, dim),
        draw(rows, heads),
        format.encode(draw(3, 50, dim)).view(torch.uint8),
    )
    visible, table = torch.arange(150 - rows, 150), torch.tensor([[2, 0, 1]], dtype=torch.int32)
    together = index_topk(queries, weights, visible, keys, table, format, 9, 1)
    begin = data.draw(st.integers(0, rows - 1))
    part = slice(begin, data.draw(st.integers(begin + 1, rows)))
    alone = index_topk(
        queries[part], weights[part], visible[part], keys, table, format, 9, data.draw(st.integers(1, 8))
    )
    assert torch.equal(together[part], alone)


@pytest.mark.usefixtures("instruction_set")
def test_a_key_that_is_not_a_number_is_never_chosen() -> None:
    """Where there is a choice."""
    format, draw = Plain(16, torch.float32), normal(0)
    keys = draw(1, 40, 16)
    keys[0, 11:13, 3] = math.nan
    stored, table = format.encode(keys).view(torch.uint8), torch.zeros(1, 1, dtype=torch.int32)
    found = index_topk(draw(4, 8, 16), draw(4, 8), torch.full((4,), 40), stored, table, format, 39, 2)
    assert found.tolist() == [[*(i for i in range(40) if i not in (11, 12)), -1]] * 4


# -- attention ------------------------------------------------------------------------------------------------------


def attend(scene: Scene, format: RowFormat, *, tile: int = 16) -> Tensor:
    q, kv, storage, sink = scene.inputs()
    out, most = torch.full_like(q, math.nan), int(scene.visible.max())
    entries = format.encode(storage).view(torch.uint8).view(-1, scene.block, format.width * format.dtype.itemsize)
    kernels.attention_stored(
        *(q, format.encode(kv).view(torch.uint8), scene.first, scene.last, scene.cut(tile).spans),
        *(entries if most else None, scene.table.to(torch.int32), scene.visible if most else None),
        *(scene.selected if most else None, sink, row_format(format), out),
    )
    return out


@pytest.mark.usefixtures("instruction_set")
@given(scenes(), st.data())
def test_attention_over_stored_rows_is_that_of_float64(scene: Scene, data: st.DataObject) -> None:
    q, kv, storage, sink = scene.inputs()
    format = data.draw(row_formats(q.shape[2]))
    kv64, storage64 = (format.decode(format.encode(rows), torch.float64) for rows in (kv, storage))
    with computed("reference"):
        wanted = scene.attend(q.double(), kv64, storage64, sink.double())
    assert_close(([attend(scene, format)], []), ([wanted], []))


@pytest.mark.usefixtures("instruction_set")
@given(scenes(), st.sampled_from([1, 5, 64]), st.data())
def test_a_row_attends_to_the_same_in_any_tile_and_any_batch(scene: Scene, tile: int, data: st.DataObject) -> None:
    format = data.draw(row_formats(scene.segments[0].q.shape[2]))
    whole = attend(scene, format)
    assert torch.equal(whole, attend(scene, format, tile=tile))
    begin = 0
    for number, segment in enumerate(scene.segments):
        assert torch.equal(whole[begin : begin + segment.rows], attend(scene.alone(number), format))
        begin += segment.rows


@pytest.mark.parametrize("heads", [1, 2, 3, 5])
@pytest.mark.parametrize("entries", [90, 130, 170, 400])
@pytest.mark.usefixtures("instruction_set")
def test_rows_that_share_a_block_may_choose_more_than_there_is(heads: int, entries: int) -> None:
    """Sixteen rows of one head, each with nearly its own selection, of few more entries than eight times that."""
    draw, rows, k, dim = normal(entries), 16, entries // 9, 8
    selected = torch.stack(
        [torch.randperm(entries, generator=torch.Generator().manual_seed(n))[:k] for n in range(rows)]
    )
    visible = torch.full((rows,), entries)
    q, kv, stored = draw(rows, heads, dim), draw(rows, dim), draw(entries, dim)
    scene = Scene([Segment(q, kv, stored, visible, selected, draw(rows, heads, dim))], 1, 7, True, draw(heads))
    assert_close(scene.outcome(), scene.outcome(torch.float64))
    ours = attend(scene, Plain(dim, torch.float32))
    assert_close(([ours], []), (scene.outcome(torch.float64)[0], []))
    for number in range(rows):
        alone = replace(scene, segments=[scene.segments[0].part(number, number + 1)])
        assert torch.equal(attend(alone, Plain(dim, torch.float32))[0], ours[number])


# -- compressors and hyper-connections ------------------------------------------------------------------------------


@pytest.mark.usefixtures("instruction_set")
@given(seed=seeds, count=st.integers(1, 3000), size=st.sampled_from((0.1, 10.0, 1e4)), tied=st.booleans())
def test_what_sampling_asks_of_logits_is_what_float64_says(seed: int, count: int, size: float, tied: bool) -> None:
    logits = normal(seed)(count).round() if tied else normal(seed)(count) * size
    finite, largest, log_sum = kernels.summarize(logits)
    assert finite
    assert largest == int((logits == logits.max()).nonzero()[0])  # of equals the first
    assert log_sum == pytest.approx(float(logits.double().logsumexp(-1)), rel=1e-6, abs=1e-6)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@given(count=st.integers(1, 100), data=st.data())
def test_logits_that_are_not_finite_are_found_out(value: float, count: int, data: st.DataObject) -> None:
    logits = torch.zeros(count)
    logits[data.draw(st.integers(0, count - 1))] = value
    assert not kernels.summarize(logits)[0]


@pytest.mark.usefixtures("instruction_set")
@given(seeds, st.integers(1, 40), st.integers(1, 70), st.sampled_from(["alone", "first", "overlapping"]))
def test_a_window_is_compressed_as_float64_does(seed: int, tokens: int, dim: int, kind: str) -> None:
    draw = normal(seed)
    overlap = kind != "alone"
    given_ = 2 * tokens if kind == "overlapping" else tokens
    width = 2 * dim if overlap else dim
    rows, ape, out = 3 * draw(given_, 2 * width), draw(tokens, width), torch.full((dim,), math.nan)
    kernels.compress(rows, ape, overlap, out)
    kv, gate = rows.double().chunk(2, dim=-1)
    gate = gate + ape.double().repeat(given_ // tokens, 1)
    if overlap:
        first, own = slice(0, given_ - tokens), slice(given_ - tokens, given_)
        kv, gate = (torch.cat((part[first, :dim], part[own, dim:])) for part in (kv, gate))
    assert_close(([out], []), ([compress(kv[None], gate[None])[0]], []))


@pytest.mark.usefixtures("instruction_set")
@given(seeds, st.integers(0, 40), st.integers(1, 70), st.data())
def test_what_is_read_of_the_streams_is_what_float64_reads(seed: int, rows: int, d: int, data: st.DataObject) -> None:
    draw = normal(seed)
    inputs = draw(rows, 4, d), draw(24, 4 * d) / math.sqrt(4 * d), draw(24), draw(3)
    options = {"iterations": data.draw(st.sampled_from([1, 3, 20])), "eps": 0.03, "norm_eps": 0.2}

    def read(streams: Tensor) -> list[Tensor]:
        count = len(streams)
        out, post, comb = torch.empty(count, d), torch.empty(count, 4), torch.empty(count, 16)
        iterations, eps, norm_eps = options.values()
        kernels.hyper_pre(streams, *inputs[1:], eps, norm_eps, iterations, out, post, comb)
        return [out, post, comb.view(-1, 4, 4)]

    together = read(inputs[0])
    assert_close((together, []), (list(hyper_pre(*(tensor.double() for tensor in inputs), **options)), []))
    if rows:
        begin = data.draw(st.integers(0, rows - 1))
        part = slice(begin, data.draw(st.integers(begin + 1, rows)))
        for alone, whole in zip(read(inputs[0][part]), together, strict=True):
            assert torch.equal(alone, whole[part])


# -- arguments that do not fit --------------------------------------------------------------------------------------

BIG = 2**63 - 1


def a_search(visible: list[int], *, block: int = 4, shape: tuple[int, int] = (1, 1), splits: int = 1) -> None:
    rows, heads = shape
    keys, table = torch.zeros(2, block, 16, dtype=torch.uint8), torch.tensor([[0, 1]], dtype=torch.int32)
    index_topk(
        *(torch.zeros(rows, heads, 8), torch.zeros(rows, heads), torch.tensor(visible), keys, table),
        *(Plain(8, torch.bfloat16), 2, splits),
    )


def an_attention(
    first: int = 0, last: int = 0, visible: list[int] | None = None, block: int = 1, chosen: int | None = None
) -> None:
    kernels.attention_stored(
        *(torch.zeros(1, 1, 8), torch.zeros(1, 16, dtype=torch.uint8), torch.tensor([first]), torch.tensor([last])),
        *(torch.tensor([[0, 1, 0]]), torch.zeros(1, block, 16, dtype=torch.uint8) if visible is not None else None),
        *(
            torch.zeros(1, 1, dtype=torch.int32),
            torch.tensor(visible, dtype=torch.int64) if visible is not None else None,
        ),
        *(None if chosen is None else torch.zeros(1, chosen).long(), torch.zeros(1), ("bf16", 8, 0)),
        torch.zeros(1, 1, 8),
    )


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: a_search([9]), "as long as what is visible"),
        (lambda: a_search([BIG]), "as long as what is visible"),
        (lambda: a_search([-1]), "ascending"),
        (lambda: a_search([2, 1], shape=(2, 1)), "ascending"),
        (lambda: a_search([0], block=0), "at least one entry"),
        (lambda: a_search([1], shape=(1, 257)), "1 to 256 heads"),
        (lambda: an_attention(last=1), "rows of the window"),
        (lambda: an_attention(first=-1), "rows of the window"),
        (lambda: an_attention(first=5, last=-BIG), "rows of the window"),
        (lambda: an_attention(visible=[2]), "as long as what is visible"),
        (lambda: an_attention(visible=[BIG]), "as long as what is visible"),
        (lambda: an_attention(visible=[0], block=0), "at least one entry"),
        (lambda: an_attention(visible=[]), r"visible \[N\]"),
        (lambda: an_attention(visible=[1], chosen=0), "selected"),
        (lambda: kernels.Matrix("bf16", 2**32, 2**32, torch.empty(0).byte(), torch.empty(0).byte()), r"2\^48"),
        (lambda: kernels.Matrix("fp8", 0, 1, torch.empty(0).byte(), torch.empty(0).byte()), "at least one row"),
        (lambda: kernels.Matrix("mxfp4", 1, 33, torch.empty(0).byte(), torch.empty(0).byte()), "in 32s"),
        (lambda: kernels.Matrix("int8", 1, 1, torch.empty(0).byte(), torch.empty(0).byte()), "no format int8"),
        (
            lambda: kernels.encode_rows(("fp4_keys", 48, 0), torch.zeros(0, 48), torch.zeros(0, 1).byte()),
            "power of two",
        ),
        (lambda: kernels.encode_rows(("fp8_entries", 4, 6), torch.zeros(0, 4), torch.zeros(0, 1).byte()), "more RoPE"),
        (lambda: linear(torch.zeros(1, 32), packed("fp8", 0, 1, 32), exact=True), "need bf16 weights"),
        (lambda: linear(torch.zeros(1, 32), packed("fp8", 0, 1, 32), threads=0), "^threads must be at least 1"),
        (lambda: a_search([0], splits=65), "^splits must be from 1 to 64"),
        (lambda: linear(torch.zeros(1, 33), packed("fp8", 0, 1, 32)), "columns"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_numbers_that_lie_at_any_byte_are_refused(offset: int) -> None:
    """Or read like others: but a loop that a compiler made may fault there."""
    x = torch.frombuffer(bytearray(4 * 64 + offset), dtype=torch.float32, offset=offset).view(2, 32)
    with pytest.raises(ValueError, match="an address is no multiple of 4: x"):
        linear(x, packed("bf16", 0, 70, 32))
    with pytest.raises(ValueError, match="an address is no multiple of 4: out"):
        kernels.linear(torch.zeros(2, 32), bound(packed("bf16", 0, 32, 32)), False, 1, x)


@pytest.mark.parametrize("op", fuzzing.OPS, ids=lambda op: op.__name__)
def test_every_op_refuses_numbers_that_lie_at_any_byte(op: Callable[[Random], list[Any]]) -> None:
    """But for bytes, which do."""
    for seed in range(20):
        fitting = op(Random(seed))
        getattr(kernels, op.__name__)(*fitting)
        for place, argument in enumerate(fitting):
            if isinstance(argument, Tensor) and argument.numel() and argument.element_size() > 1:
                passed = [*fitting[:place], misaligned(argument), *fitting[place + 1 :]]
                with pytest.raises(ValueError, match="an address is no multiple of"):
                    getattr(kernels, op.__name__)(*passed)
