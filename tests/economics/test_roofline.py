"""The roofline: what one chip takes, that nothing is lost where there are several, and what fits."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.economics.chips import Chip
from narrows.economics.layout import Layout, layouts
from narrows.economics.roofline import CHUNK, COLLECTIVE_SECONDS, ROOM, SIDES, Deployment
from narrows.economics.storage import history_read, pool_bytes
from narrows.economics.traffic import weights_read
from narrows.economics.weights import total_bytes, weights
from narrows.economics.work import AnyConfig, Kind, decode_work, prefill_work
from narrows.errors import UsageError
from narrows.model.precision import Precision
from narrows.model.presets import FLASH, PRO, TINY
from narrows.model.v32.config import V32

RATES: dict[Kind, float] = {"bf16": 1e15, "fp8": 2e15, "fp4": 4e15}
CHIP = Chip(
    name="Test",
    maker="",
    kind="gpu",
    memory=10**12,
    bandwidth=4e12,
    rates=RATES,
    node=8,
    link=400e9,
    network=50e9,
    hourly=3 * 10**12,
)

CONFIGS = st.sampled_from([PRO, FLASH, V32])
CONTEXTS = st.integers(1, 1 << 20)
LAYOUTS = st.sampled_from([layout for count in (1, 2, 4, 8, 16) for layout in layouts(FLASH, CHIP, count)])


@given(CONFIGS, CONTEXTS, st.integers(1, 500), st.sampled_from([Precision.OFFICIAL, Precision.FP8, Precision.BF16]))
def test_one_chip_takes_the_longer_of_its_products_and_its_memory(
    config: AnyConfig, context: int, requests: int, precision: Precision
) -> None:
    step = Deployment(config, CHIP, Layout(), precision).step(requests, context)
    rates = RATES if precision is Precision.OFFICIAL else {**RATES, "fp4": RATES["bf16"]}
    if precision is Precision.BF16:
        rates = dict.fromkeys(RATES, RATES["bf16"])
    products = requests * sum(product.flops / rates[product.kind] for product in decode_work(config, context))
    read = weights_read(config, precision, requests)
    read += requests * sum(one.bytes for one in history_read(config, context, precision))
    assert step.of("products") == pytest.approx(products)
    assert step.of("weights") + step.of("history") == pytest.approx(read / CHIP.bandwidth, rel=1e-6)
    assert step.seconds == pytest.approx(max(products, read / CHIP.bandwidth))
    assert step.of("links") == 0


@given(LAYOUTS, CONTEXTS, st.integers(1, 8))
def test_together_chips_do_all_the_products_and_no_more(layout: Layout, context: int, each: int) -> None:
    """Where requests can be divided evenly."""
    requests = each * layout.data * layout.pipeline
    split = Deployment(FLASH, CHIP, layout).step(requests, context)
    whole = Deployment(FLASH, CHIP, Layout()).step(requests, context)
    uneven = math.ceil(FLASH.num_hidden_layers / layout.pipeline) * layout.pipeline / FLASH.num_hidden_layers
    # Of a stage, for a pipeline-th of the requests, on each of the stage's chips.
    done = split.of("products") * layout.stage * layout.pipeline * layout.pipeline
    assert done == pytest.approx(whole.of("products") * uneven)


@given(LAYOUTS)
def test_chips_hold_every_weight_once_or_more(layout: Layout) -> None:
    deployment = Deployment(FLASH, CHIP, layout)
    held = deployment.weight_bytes * layout.chips
    everything = total_bytes(weights(FLASH))
    assert held >= everything
    if layout.chips == 1:
        assert held == everything
    # Experts are most of it, and no chip has one that another of its stage has.
    routed = total_bytes(weight for weight in weights(FLASH) if weight.component == "routed experts")
    stages = math.ceil(FLASH.num_hidden_layers / layout.pipeline) / FLASH.num_hidden_layers
    assert deployment.weight_bytes <= stages * (routed / layout.stage + (everything - routed)) + 1


@given(CONFIGS, LAYOUTS, st.integers(1, 1 << 20), st.integers(20, 300))
def test_no_more_fit_than_memory_holds(config: AnyConfig, layout: Layout, context: int, gigabytes: int) -> None:
    chip = replace(CHIP, memory=gigabytes * 10**9)
    if layout not in list(layouts(config, chip, layout.chips)):
        return
    deployment = Deployment(config, chip, layout)
    capacity = deployment.capacity(context)
    group, rest = divmod(capacity, layout.data)
    room = gigabytes * 1e9 * (1 - ROOM) - deployment.weight_bytes
    assert rest == 0
    assert group * deployment.request_bytes(context) <= max(0, room)
    assert (group + 1) * deployment.request_bytes(context) > room - 1
    share = math.ceil(config.num_hidden_layers / layout.pipeline) / config.num_hidden_layers
    assert deployment.request_bytes(context) == math.ceil(share * pool_bytes(config, context))


@given(CONFIGS, LAYOUTS, CONTEXTS, st.integers(1, 200))
def test_faster_chips_are_faster_by_as_much(config: AnyConfig, layout: Layout, context: int, requests: int) -> None:
    if layout not in list(layouts(config, CHIP, layout.chips)):
        return
    assert CHIP.link
    assert CHIP.network
    fast = replace(
        CHIP,
        rates={kind: 2 * rate for kind, rate in RATES.items()},
        bandwidth=2 * CHIP.bandwidth,
        link=2 * CHIP.link,
        network=2 * CHIP.network,
    )
    slow, quick = (Deployment(config, chip, layout).step(requests, context) for chip in (CHIP, fast))
    for side in SIDES[:3]:
        assert quick.of(side) == pytest.approx(slow.of(side) / 2)
    exchanges = 0
    if layout.tensor > 1:
        exchanges += math.ceil(config.num_hidden_layers / layout.pipeline)
    if layout.stage > 1:
        exchanges += 2 * math.ceil(config.num_hidden_layers / layout.pipeline)
    exchanges += layout.pipeline > 1
    at_least = exchanges * COLLECTIVE_SECONDS
    assert quick.of("links") - at_least == pytest.approx((slow.of("links") - at_least) / 2)


def test_what_is_sent() -> None:
    """By hand: Pro's rows of 7,168 numbers over eight chips of a node, and over sixteen of two."""
    d, layers, experts = 7168, 61, 6
    near = Deployment(PRO, CHIP, Layout(data=8)).step(64, 1000)
    sent = 8 * experts * d * 3 * 7 / 8  # FP8 there, BF16 back; an eighth stays
    assert near.of("links") == pytest.approx(2 * layers * (sent / 2 / 400e9 + COLLECTIVE_SECONDS))
    far = Deployment(PRO, CHIP, Layout(data=16)).step(64, 1000)
    sent = 4 * experts * d * 3 * 15 / 16
    seconds = sent / 2 * (7 / 15 / 400e9 + 8 / 15 / 50e9)
    assert far.of("links") == pytest.approx(2 * layers * (seconds + COLLECTIVE_SECONDS))
    group = Deployment(PRO, CHIP, Layout(tensor=8)).step(64, 1000)
    summed = layers * (2 * 7 / 8 * 64 * d * 2 / 400e9 + COLLECTIVE_SECONDS)
    assert group.of("links") == pytest.approx(near.of("links") + summed)
    stages = Deployment(PRO, CHIP, Layout(pipeline=8)).step(64, 1000)
    assert stages.of("links") == pytest.approx(8 * 4 * d * 2 / 400e9 + COLLECTIVE_SECONDS)
    assert stages.stages == 8
    assert stages.seconds == 8 * stages.stage_seconds


def test_groups_share_heads_and_keep_the_same_history() -> None:
    alone, group, rows = (
        Deployment(PRO, CHIP, layout).step(64, 100_000) for layout in (Layout(), Layout(8), Layout(1, 8))
    )
    assert group.of("history") == pytest.approx(alone.of("history"))
    assert rows.of("history") == pytest.approx(alone.of("history") / 8)
    assert rows.of("weights") > group.of("weights") > alone.of("weights") / 8


@given(CONFIGS, st.integers(1, 100_000), st.integers(0, 100_000), st.booleans())
def test_the_products_of_a_prompt_are_those_of_its_tokens(
    config: AnyConfig, tokens: int, past: int, alone: bool
) -> None:
    deployment = Deployment(config, CHIP, Layout())
    step = deployment.prefill_step(tokens, past, alone=alone)
    chunks = math.ceil(tokens / CHUNK)
    wanted = sum(product.flops / RATES[product.kind] for product in prefill_work(config, tokens, past))
    assert step.of("products") * chunks == pytest.approx(wanted)
    assert deployment.first_token_seconds(tokens, past) == pytest.approx(chunks * step.stage_seconds)
    assert deployment.prefill_seconds(tokens, past) == pytest.approx(deployment.first_token_seconds(tokens, past))
    assert deployment.prefill_seconds(0) == 0


def test_prompts_of_all_groups_take_less_each_and_stages_work_at_once() -> None:
    tokens = 10 * CHUNK
    one, groups, stages = (Deployment(FLASH, CHIP, layout) for layout in (Layout(), Layout(1, 8), Layout(1, 1, 8)))
    # Eight groups read eight prompts in the time that one chip takes for one, and what their links take.
    assert one.prefill_seconds(tokens) / 8 < groups.prefill_seconds(tokens) < one.prefill_seconds(tokens) / 5
    # A single prompt has its attention done by one group, so it gains less.
    assert groups.prefill_seconds(tokens) < groups.first_token_seconds(tokens) < one.first_token_seconds(tokens)
    # Ten chunks through eight stages take seventeen of their times.
    step = stages.prefill_step(tokens, 0, alone=True)
    assert stages.first_token_seconds(tokens) == pytest.approx(17 * step.stage_seconds)
    assert stages.prefill_seconds(tokens) == pytest.approx(10 * step.stage_seconds)


def test_what_is_reached_divides_all_times() -> None:
    whole = Deployment(PRO, CHIP, Layout(1, 8))
    half = replace(whole, reached=0.5)
    assert half.step(8, 1000).seconds == pytest.approx(2 * whole.step(8, 1000).seconds)
    assert half.first_token_seconds(1000) == pytest.approx(2 * whole.first_token_seconds(1000))
    assert half.prefill_seconds(1000) == pytest.approx(2 * whole.prefill_seconds(1000))
    for share in (0, -0.1, 1.01, math.nan):
        with pytest.raises(UsageError, match="the share of the roofline that is reached is"):
            replace(whole, reached=share)


def test_longer_contexts_take_longer() -> None:
    for config in (PRO, FLASH, V32):
        times = [Deployment(config, CHIP, Layout()).step(32, 1 << power).seconds for power in range(6, 21)]
        assert all(before <= after for before, after in pairwise(times))
        assert times[0] < times[-1]


def test_a_weightless_slot_of_the_smallest_model() -> None:
    tiny = Deployment(TINY, replace(CHIP, memory=10**6), Layout())
    assert tiny.capacity(1000) == max(0, (900_000 - tiny.weight_bytes) // tiny.request_bytes(1000)) > 0


@pytest.mark.parametrize(
    ("layout", "count", "said"),
    [
        ("tp=3,dp=1,pp=1", 3, "tp=3 does not divide the 128 query heads"),
        ("tp=16", 16, "tp=16 does not divide the 8 chips of a node"),
        ("tp=32", 32, "tp=32 does not divide the 16 output groups"),
        ("dp=5", 5, "the 5 chips of a stage do not divide the 384 routed experts"),
        ("tp=2,dp=2", 8, "it has 2 × 2 × 1 = 4 chips, and there are 8"),
        ("pp=62", 62, "there are more stages than the 61 layers"),
    ],
)
def test_layouts_that_do_not_divide(layout: str, count: int, said: str) -> None:
    with pytest.raises(UsageError) as told:
        Layout.parse(layout).check(PRO, CHIP, count)
    assert str(told.value).startswith("the layout tp=")
    assert said in str(told.value)


@pytest.mark.parametrize("text", ["", "tp=0", "tp=2;dp=2", "tp=2,tp=2", "ep=2", "tp=-1", "tp=1.5", "8"])
def test_what_is_no_layout(text: str) -> None:
    with pytest.raises(UsageError, match="give tensor, data and pipeline parallelism such as"):
        Layout.parse(text)


def test_chips_without_links_stand_alone() -> None:
    loose = replace(CHIP, network=None)
    with pytest.raises(UsageError, match="nothing connects 16 Test: a node has 8, and others are not reached"):
        Layout(data=16).check(PRO, loose, 16)
    Layout(data=8).check(PRO, loose, 8)
    assert not list(layouts(PRO, loose, 16))
    assert not list(layouts(PRO, replace(loose, node=1, link=None), 2))


@given(CONFIGS, st.integers(1, 64))
def test_every_layout_that_is_found_can_be(config: AnyConfig, count: int) -> None:
    found = list(layouts(config, CHIP, count))
    assert len(set(found)) == len(found)
    for layout in found:
        assert layout.chips == count
        layout.check(config, CHIP, count)
        assert Layout.parse(str(layout)) == layout
        Deployment(config, CHIP, layout).step(1, 1)
