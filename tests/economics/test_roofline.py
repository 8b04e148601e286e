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
from narrows.economics.roofline import CHUNK, COLLECTIVE_SECONDS, ROOM, Deployment
from narrows.economics.step import SIDES, Step, Term
from narrows.economics.storage import history_bytes, history_read, pool_bytes
from narrows.economics.traffic import weights_read
from narrows.economics.weights import total_bytes, weights
from narrows.economics.work import AnyConfig, Kind, decode_work, prefill_work
from narrows.errors import UsageError
from narrows.model.layer_kind import LayerKind
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
    requests = each * layout.stage * layout.pipeline * 100  # so many that every expert has rows
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
    # Experts are most of it, and no chip has one that another of its stage has. Groups share what has heads.
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
    for side in SIDES[:4]:
        assert quick.of(side) == pytest.approx(slow.of(side) / 2)
    layers = math.ceil(config.num_hidden_layers / layout.pipeline)
    exchanges = 2 * layers * (layout.stage > 1) + (layout.pipeline > 1)
    if layout.tensor > 1:
        kinds = config.layer_types if config is not V32 else ()  # type: ignore[union-attr]
        indexers = sum(kind is LayerKind.CSA for kind in kinds) or config.num_hidden_layers
        exchanges += layers + math.ceil(indexers * layers / config.num_hidden_layers)
    assert quick.of("latency") == slow.of("latency") == pytest.approx(exchanges * COLLECTIVE_SECONDS)


def test_what_is_sent() -> None:
    """By hand: Pro's rows of 7,168 numbers over eight chips of a node, and over sixteen of two."""
    d, layers, experts, csa, chosen = 7168, 61, 6, 30, 1024
    near = Deployment(PRO, CHIP, Layout(data=8)).step(64, 1000)
    sent = 8 * experts * d * 3 * 7 / 8  # FP8 there, BF16 back; an eighth stays
    assert near.of("links") == pytest.approx(layers * sent / 400e9)
    assert near.of("latency") == pytest.approx(2 * layers * COLLECTIVE_SECONDS)
    far = Deployment(PRO, CHIP, Layout(data=16)).step(64, 1000)
    sent = 4 * experts * d * 3 * 15 / 16
    assert far.of("links") == pytest.approx(layers * sent * (7 / 15 / 400e9 + 8 / 15 / 50e9))
    group = Deployment(PRO, CHIP, Layout(tensor=8)).step(64, 1000)
    summed = layers * 2 * 7 / 8 * 64 * d * 2 / 400e9
    selected = csa * 7 / 8 * 64 * chosen * 4 / 400e9
    assert group.of("links") == pytest.approx(near.of("links") + summed + selected)
    stages = Deployment(PRO, CHIP, Layout(pipeline=8)).step(64, 1000)
    assert stages.of("links") == pytest.approx(8 * 4 * d * 2 / 400e9)  # four streams
    assert stages.stages == 8
    assert stages.seconds == 8 * stages.stage_seconds
    nodes = Deployment(PRO, CHIP, Layout(tensor=8, pipeline=2)).step(64, 1000)
    streams = next(part.seconds for part in nodes.parts if part.name == "streams to the next stage")
    assert streams == pytest.approx(32 * 4 * d * 2 / 8 / 50e9)  # each chip of a group sends its part, to another node


def test_chips_with_a_link_to_each_other_have_fewer_where_they_are_few() -> None:
    meshed = replace(CHIP, links=7)
    assert [meshed.link_of(chips) for chips in (2, 5, 8)] == [400e9 / 7, 400e9 * 4 / 7, 400e9]
    for count, factor in ((2, 7), (8, 1)):
        layout = Layout(data=count)
        plain, mesh = (Deployment(PRO, chip, layout).step(64, 1000).of("links") for chip in (CHIP, meshed))
        assert mesh == pytest.approx(factor * plain)


def test_groups_share_heads_and_keep_the_same_history() -> None:
    """Heads are shared; rows of everything else are, and the keys that an indexer reads go with its rows."""
    found = (Deployment(PRO, CHIP, layout) for layout in (Layout(), Layout(8), Layout(1, 8)))
    alone, group, rows = (deployment.step(64, 100_000) for deployment in found)

    def of(step: Step, *names: str) -> float:
        return sum(part.seconds for part in step.parts if part.name in names)

    attended = ("window", "CSA entries", "HCA entries")
    assert of(group, *attended) == pytest.approx(of(alone, *attended))
    assert of(group, "index keys") == pytest.approx(of(alone, "index keys") / 8)
    assert rows.of("history") == pytest.approx(alone.of("history") / 8)
    assert rows.of("weights") > group.of("weights") > alone.of("weights") / 8
    assert of(group, "head") == pytest.approx(of(alone, "head") / 8)
    assert of(group, "head: logits") == pytest.approx(of(alone, "head: logits") / 8)
    assert of(rows, "head") == of(alone, "head")
    # One request cannot be divided but by its heads.
    one, eight = (Deployment(PRO, CHIP, layout).step(1, 100_000) for layout in (Layout(), Layout(8)))
    assert of(eight, "attention core: window") == pytest.approx(of(one, "attention core: window") / 8)
    assert of(eight, "indexer: scores") == of(one, "indexer: scores")


def test_an_expert_cannot_be_divided() -> None:
    """A row's six experts lie on six chips of 64; each of these reads one of every layer, and multiplies with it."""
    expert = 3 * PRO.hidden_size * PRO.moe_intermediate_size
    step = Deployment(PRO, CHIP, Layout(data=64)).step(1, 1000)
    parts = {(part.side, part.name): part.seconds for part in step.parts}
    assert parts["products", "experts: routed"] == pytest.approx(61 * 2 * expert / RATES["fp8"])
    assert parts["weights", "routed experts"] == pytest.approx(61 * expert * (1 / 2 + 1 / 32) / CHIP.bandwidth)


def test_what_binds() -> None:
    def step(**sides: float) -> Step:
        return Step(tuple(Term(side, "", seconds, "") for side, seconds in sides.items()), 2, 0.5)

    assert step(products=3, weights=2, history=1.9, links=1).binds == "weights"  # together longer than the products
    assert step(products=5, weights=2, history=2.5).binds == "products"
    assert step(products=1, weights=2, history=2.5).binds == "history"
    assert step(products=5, weights=2, links=6).binds == "links"
    assert step(products=5, latency=9).binds == "products"  # of which twice as much is waited for
    assert step(products=5, latency=11).binds == "latency"
    assert step(products=3, weights=2, history=1.9, links=1, latency=4).stage_seconds == (3.9 + 1) / 0.5 + 4
    assert step(products=3, latency=4).shown("products") == 12
    assert step(products=3, latency=4).shown("latency") == 8


@given(CONFIGS, st.integers(1, 100_000), st.integers(0, 100_000))
def test_the_products_of_a_prompt_are_its_tokens(config: AnyConfig, tokens: int, past: int) -> None:
    deployment = Deployment(config, CHIP, Layout())
    step = deployment.prefill_step(tokens, past)
    chunks = math.ceil(tokens / CHUNK)
    wanted = sum(product.flops / RATES[product.kind] for product in prefill_work(config, tokens, past))
    assert step.of("products") * chunks == pytest.approx(wanted)
    # Every chunk reads the weights that its rows choose, and what is kept of the tokens before it, on average.
    chosen = Deployment(config, CHIP, Layout()).step(math.ceil(tokens / chunks), 1).of("weights")
    assert step.of("weights") == pytest.approx(chosen)
    assert step.of("history") == pytest.approx(history_bytes(config, past + tokens // 2) / CHIP.bandwidth)
    assert deployment.first_token_seconds(tokens, past) == pytest.approx(chunks * step.stage_seconds)
    for requests in (1, 5):
        seconds = deployment.prefill_seconds(tokens, past, requests=requests)
        assert seconds == pytest.approx(deployment.first_token_seconds(tokens, past))
    assert deployment.prefill_seconds(0, requests=1) == 0


def test_prompts_of_all_groups_take_less_each_and_stages_work_at_once() -> None:
    tokens = 10 * CHUNK
    one, groups, stages = (Deployment(FLASH, CHIP, layout) for layout in (Layout(), Layout(1, 8), Layout(1, 1, 8)))
    alone = one.first_token_seconds(tokens)
    # Eight groups read eight prompts in the time that one chip takes for one, and what their links take.
    assert alone / 8 < groups.prefill_seconds(tokens, requests=8) < alone / 5
    assert groups.prefill_seconds(tokens, requests=800) == groups.prefill_seconds(tokens, requests=8)
    # Fewer prompts keep fewer groups busy, whose chips help with the experts all the same.
    times = [groups.prefill_seconds(tokens, requests=number) for number in range(1, 9)]
    assert all(fewer > more for fewer, more in pairwise(times))
    assert alone / 8 < groups.first_token_seconds(tokens) == times[0] < alone
    # Ten chunks through eight stages take seventeen of their times.
    step = stages.prefill_step(tokens)
    assert stages.first_token_seconds(tokens) == pytest.approx(17 * step.stage_seconds)
    assert stages.prefill_seconds(tokens, requests=2) == pytest.approx(10 * step.stage_seconds)


def test_a_prompts_chunk_by_hand() -> None:
    """Two groups of four chips read 16,384 tokens of Pro each."""
    deployment = Deployment(PRO, CHIP, Layout(4, 2))
    step = deployment.prefill_step(2 * CHUNK, groups=2)
    parts = {(part.side, part.name): part.seconds for part in step.parts}
    expert = 3 * PRO.hidden_size * PRO.moe_intermediate_size
    assert parts["products", "experts: routed"] == pytest.approx(2 * CHUNK * 61 * 6 * 2 * expert / 8 / RATES["fp8"])
    queries = 61 * 2 * PRO.q_lora_rank * PRO.num_attention_heads * PRO.head_dim
    assert parts["products", "attention projections: query up"] == pytest.approx(CHUNK * queries / 4 / RATES["fp8"])
    router = 61 * 2 * PRO.hidden_size * 384
    assert parts["products", "router: affinities"] == pytest.approx(CHUNK * router / 4 / RATES["bf16"])
    assert parts["weights", "routed experts"] == pytest.approx(61 * 384 * expert * (17 / 32) / 8 / CHIP.bandwidth)
    assert parts["history", "all that is kept"] == pytest.approx(history_bytes(PRO, CHUNK) / CHIP.bandwidth)
    sent = 2 * CHUNK / 8 * 6 * PRO.hidden_size * 3 * 7 / 8
    assert parts["links", "rows to experts and back"] == pytest.approx(61 * sent / 400e9)
    summed = 2 * 3 / 4 * CHUNK * PRO.hidden_size * 2
    assert parts["links", "sums over a tensor group"] == pytest.approx(61 * summed / 400e9)


def test_what_is_reached_divides_all_times_but_latency() -> None:
    whole = Deployment(PRO, CHIP, Layout(1, 8))
    half = replace(whole, reached=0.5)
    for one, two in (
        (whole.step(8, 1000), half.step(8, 1000)),
        (whole.prefill_step(1000), half.prefill_step(1000)),
    ):
        latency = one.of("latency")
        assert two.seconds - latency == pytest.approx(2 * (one.seconds - latency))
    assert half.first_token_seconds(1000) > whole.first_token_seconds(1000)
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
    with pytest.raises(UsageError, match="no network is known of more than 8 of them, unless a file of chips"):
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


@pytest.mark.parametrize("config", [PRO, FLASH, V32])
def test_what_has_heads_is_shared_and_nothing_else(config: AnyConfig) -> None:
    """Of weights: projections of all heads, and the vocabulary's; experts are spread."""
    shared = {"query up", "output down", "output up", "latent up", "output", "head", "embedding"}
    found = weights(config)
    on_a_chip = sum(
        weight.bytes
        / (8 if weight.component == "routed experts" or (weight.name in shared and weight.component != "norms") else 1)
        for weight in found
    )
    assert Deployment(config, CHIP, Layout(8)).weight_bytes == pytest.approx(on_a_chip)
    # Of products: those with these weights, and attention itself, of 64 rows behind 8 chips.
    alone, group = (Deployment(config, CHIP, layout).step(8, 100_000) for layout in (Layout(), Layout(8)))
    times = {part.name: part.seconds for part in alone.parts if part.side == "products"}
    for part in group.parts:
        if part.side == "products":
            # Eight rows on eight chips: shared or not, an eighth; a single one tells them apart.
            assert part.seconds == pytest.approx(times[part.name] / 8)
    alone, group = (Deployment(config, CHIP, layout).step(1, 100_000) for layout in (Layout(), Layout(8)))
    times = {part.name: part.seconds for part in alone.parts if part.side == "products"}
    split = {
        part.name
        for part in group.parts
        if part.side == "products" and part.seconds < 0.99 * times[part.name] and "routed" not in part.name
    }
    projections = {f"attention projections: {name}" for name in ("query up", "absorbed", "output")} & times.keys()
    assert split == projections | {name for name in times if name.startswith("attention core")} | {"head: logits"}
