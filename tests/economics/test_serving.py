"""How many requests a deployment serves, what they cost there, and which chips are chosen for a target."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.economics.choose import MOST_NODES, Choice, Target, choose, counts
from narrows.economics.fit import best_fit, fit, possible
from narrows.economics.layout import Layout
from narrows.economics.roofline import Deployment
from narrows.economics.serving import Demand, best_layout, break_even, deployments, most_at_once, serve
from narrows.economics.step import SIDES
from narrows.economics.storage import history_bytes
from narrows.errors import UsageError
from narrows.model.precision import Precision
from narrows.model.presets import FLASH, PRO
from narrows.model.v32.config import V32
from tests.economics.test_roofline import CHIP

HERE = Deployment(FLASH, CHIP, Layout(1, 8), reached=0.5)
DEMANDS = st.builds(
    lambda prompt, known, output: Demand(prompt, int(prompt * known), output),
    st.integers(0, 200_000),
    st.floats(0, 1),
    st.integers(1, 20_000),
)


@given(DEMANDS, st.integers(1, 400))
def test_a_second_is_divided_between_prompts_and_steps(demand: Demand, at_once: int) -> None:
    served = serve(HERE, [demand], at_once)
    steps = served.requests_per_second * demand.output / at_once  # each a token for all
    step = HERE.step(at_once, demand.halfway).seconds
    miss = demand.prompt - demand.hit
    reading = served.requests_per_second * HERE.prefill_seconds(miss, demand.hit, requests=at_once)
    assert steps * step + reading == pytest.approx(1)
    assert served.hourly == 8 * 3
    assert served.monthly == pytest.approx(24 * 730.5)
    output, read = served.dollars_per_million_output or 0, served.dollars_per_million_input or 0
    paid = served.requests_per_second * 3600 * (demand.output * output + miss * read) / 1e6
    assert paid == pytest.approx(served.hourly)  # what the tokens of an hour cost is what the hour costs


@given(DEMANDS, st.integers(1, 400))
def test_who_writes_waits_for_the_prompts_of_others_alone(demand: Demand, at_once: int) -> None:
    served = serve(HERE, [demand], at_once)
    step = HERE.step(at_once, demand.halfway).seconds
    assert served.tokens_per_second <= 1 / step
    if at_once == 1 or demand.prompt == demand.hit:
        assert served.tokens_per_second == pytest.approx(1 / step)
        return
    # Over the time that it writes, the others' prompts and its own steps.
    writing = demand.output / served.tokens_per_second
    others = served.requests_per_second * writing * (at_once - 1) / at_once
    miss = demand.prompt - demand.hit
    reading = HERE.prefill_seconds(miss, demand.hit, requests=at_once)
    assert writing == pytest.approx(demand.output * step + others * reading)


def test_a_mix_is_served_as_its_parts_are() -> None:
    long, short = Demand(100_000, 50_000, 2000), Demand(1000, 0, 100)
    mixed = serve(HERE, [replace(short, share=0.75), replace(long, share=0.25)], 16)
    each = [1 / serve(HERE, [demand], 16).requests_per_second for demand in (long, short)]
    assert 1 / mixed.requests_per_second == pytest.approx(0.25 * each[0] + 0.75 * each[1])
    assert mixed.first_token_seconds == serve(HERE, [long], 16).first_token_seconds
    assert mixed.first_token_seconds == HERE.first_token_seconds(50_000, 50_000)
    for both in ([short, long], [long, short]):
        assert serve(HERE, both, 16).step_seconds == HERE.step(16, long.halfway).seconds
    # As many fit as if each were the longest.
    assert most_at_once(HERE, mixed.demands, 1e-3) == HERE.capacity(long.context)


def test_requests_that_write_nothing_or_take_nothing() -> None:
    reading = serve(HERE, [Demand(1000, 0, 0)], 8)
    assert reading.tokens_per_second == math.inf
    assert reading.told()["tokens_per_second_each"] is None
    assert reading.dollars_per_million_output is None
    assert most_at_once(HERE, [Demand(1000, 0, 0)], 20.0) == HERE.capacity(1000)
    # One who writes a little among many who read is no slower for the average's sake.
    mixed = serve(HERE, [Demand(1000, 0, 0, share=0.999), Demand(1000, 0, 10, share=0.001)], 1)
    assert mixed.tokens_per_second == pytest.approx(1 / HERE.step(1, 1005).seconds)
    with pytest.raises(UsageError, match="such requests take nothing: their prompts are known"):
        serve(HERE, [Demand(1000, 1000, 0)], 8)


@given(DEMANDS, st.floats(1, 200))
def test_the_most_at_once_is_the_most(demand: Demand, speed: float) -> None:
    most = most_at_once(HERE, [demand], speed)
    assert most <= HERE.capacity(demand.context)
    if most:
        assert serve(HERE, [demand], most).tokens_per_second >= speed
    if most < HERE.capacity(demand.context):
        assert serve(HERE, [demand], most + 1).tokens_per_second < speed


def test_the_best_layout_serves_the_most() -> None:
    demand = Demand(32_768, 26_000, 600)
    found = deployments(PRO, CHIP, 8)
    best = best_layout(found, [demand], 20)
    assert best is not None
    rates = []
    for deployment in found:
        at_once = most_at_once(deployment, [demand], 20)
        rates.append(serve(deployment, [demand], at_once).requests_per_second if at_once else 0)
    assert best.requests_per_second == max(rates)
    assert best_layout(found, [demand], 1e6) is None
    with pytest.raises(
        UsageError, match="cannot be spread over 67 Test: the 67 chips of a stage do not divide the 256"
    ):
        deployments(FLASH, CHIP, 67)
    half = deployments(PRO, CHIP, 8, precision=Precision.FP8, reached=0.25)
    assert {(one.precision, one.reached) for one in half} == {(Precision.FP8, 0.25)}


def test_where_an_api_and_chips_cost_the_same() -> None:
    served = serve(HERE, [Demand(1000, 0, 1000)], 8)
    assert served.monthly is not None
    even = break_even(served, 0.01)
    assert even is not None
    assert even.at * 0.01 == pytest.approx(served.monthly)
    assert even.reachable
    assert not break_even(served, served.monthly / served.most_a_month * 0.99).reachable  # type: ignore[union-attr]
    assert break_even(served, 0.0) is None
    free = serve(replace(HERE, chip=replace(CHIP, hourly=None)), [Demand(1000, 0, 1000)], 8)
    assert (free.monthly, free.dollars_per_million_output, break_even(free, 1.0)) == (None, None, None)


def test_users_who_fit_and_users_who_do_not() -> None:
    found = deployments(PRO, replace(CHIP, memory=141 * 10**9), 8)
    few = best_fit(found, 4, 1 << 20)
    assert few.fits
    holding = [deployment for deployment in found if deployment.capacity(1 << 20) >= 4]
    assert few.step is not None
    assert few.step.seconds == min(deployment.step(4, 1 << 20).seconds for deployment in holding)
    assert list(few.advice()) == []
    many = best_fit(found, 50, 1 << 20)
    assert not many.fits
    assert many.capacity == max(deployment.capacity(1 << 20) for deployment in found) == many.now
    chip = many.deployment.chip
    more, shorter = many.advice()
    count = int(more.split("x")[0])
    assert any(one.capacity(1 << 20) >= 50 for one in deployments(PRO, chip, count))
    tried = [number for number in counts(chip, None) if 8 < number < count]
    assert all(one.capacity(1 << 20) < 50 for number in tried for one in possible(PRO, chip, number))
    context = int(shorter.rsplit(" ", 2)[1].replace(",", ""))
    assert any(one.capacity(context) >= 50 for one in found)
    assert all(one.capacity(context + 1024) < 50 for one in found)
    assert many.told()["step"]["users"] == many.capacity
    nothing = best_fit(deployments(PRO, replace(CHIP, memory=10**9), 8), 1, 1000)
    assert (nothing.capacity, nothing.step, nothing.dollars_per_million) == (0, None, None)
    with pytest.raises(UsageError, match="1,048,577 tokens lies beyond the model's 1,048,576 positions"):
        fit(found[0], 1, (1 << 20) + 1)
    with pytest.raises(UsageError, match="there are 0 users"):
        fit(found[0], 0, 1000)
    with pytest.raises(UsageError, match="163,841 tokens lies beyond the model's 163,840 positions"):
        fit(deployments(V32, CHIP, 8)[0], 1, 163_841)


def test_another_layout_is_advised_where_it_holds_all() -> None:
    chip = replace(CHIP, memory=141 * 10**9)
    narrow = fit(Deployment(PRO, chip, Layout(8)), 64, 1 << 17, 8)
    (said,) = narrow.advice()
    layout = Layout.parse(said.split("layout ")[1].split(" ")[0])
    assert Deployment(PRO, chip, layout).capacity(1 << 17) >= 64 > narrow.capacity
    alone = fit(Deployment(PRO, replace(CHIP, memory=10**9), Layout(8)), 1, 1 << 17, 8)
    assert "all 1" not in "".join(alone.advice())


def test_chips_that_only_hinder_stay_idle() -> None:
    chip = replace(CHIP, memory=141 * 10**9)
    made = best_fit(possible(PRO, chip, 19), 1900, 1 << 17)
    assert made.fits
    assert (made.chips, made.idle) == (19, 1)
    assert max(one.capacity(1 << 17) for one in deployments(PRO, chip, 19)) < 1900
    assert made.step is not None
    written = 1900 / made.step.seconds * 3600
    assert made.dollars_per_million == pytest.approx(19 * 3 / written * 1e6)  # idle ones are paid
    assert dict(made.explain())["all chips an hour"] == "$57 = 19 × $3"


def test_of_users_who_do_not_fit_those_are_told_who_do() -> None:
    chip = replace(CHIP, memory=141 * 10**9, watts=700.0)
    made = best_fit(deployments(PRO, chip, 8), 50, 1 << 20)
    assert made.step is not None
    assert made.step.seconds == made.deployment.step(made.capacity, 1 << 20).seconds
    hour = 3600 / made.step.seconds * made.capacity
    assert made.dollars_per_million == pytest.approx(24 / hour * 1e6)
    assert made.joules == pytest.approx(8 * 700 * 3600 / hour)
    assert made.first_token_seconds == made.deployment.first_token_seconds(1 << 20)


def test_every_figure_of_a_fit_is_explained() -> None:
    made = best_fit(deployments(PRO, replace(CHIP, watts=700.0), 8), 4, 1 << 17)
    lines = dict(made.explain())
    del lines["a chip an hour"]  # which is in words
    of = {name: float(terms.split(" ")[0].replace(",", "").replace("$", "")) for name, terms in lines.items()}
    deployment = made.deployment
    parts = [size for name, size in of.items() if name.startswith("weights: ")]
    assert sum(parts) == pytest.approx(deployment.weight_bytes / 1e9, rel=1e-3)
    kept = [size for name, size in of.items() if name.startswith("a history: ")]
    assert sum(kept) == pytest.approx(history_bytes(PRO, 1 << 17) / 1e9, rel=1e-3)
    assert of["requests that fit"] == made.capacity
    assert made.step is not None
    assert of["a step of 4"] == pytest.approx(made.step.seconds * 1e3, rel=1e-3)
    assert of["first token, alone"] == pytest.approx(made.first_token_seconds, rel=1e-3)
    assert of["a million written"] == pytest.approx(made.dollars_per_million, rel=1e-3)
    assert of["joules each"] == pytest.approx(made.joules, rel=1e-3)
    assert of["all chips an hour"] == 24
    for side in SIDES:
        sides = [time for name, time in of.items() if name.startswith(f"a step of 4: {side}: ")]
        assert sum(sides) / 1e3 == pytest.approx(made.step.of(side), rel=1e-3)


def test_what_a_million_tokens_cost_while_users_write() -> None:
    made = fit(HERE, 16, 4096)
    assert made.step is not None
    hour = 3600 / made.step.seconds * 16
    assert made.dollars_per_million == pytest.approx(8 * 3 / hour * 1e6)
    assert made.joules is None  # nobody says what these draw
    warm = fit(replace(HERE, chip=replace(CHIP, watts=700.0)), 16, 4096)
    assert warm.joules == pytest.approx(8 * 700 * 3600 / hour)


TARGET = Target(20, Demand(60_000, 50_000, 1000), 30.0)


def meets(choice: Choice, target: Target) -> bool:
    served: Any = choice.served
    fits = served.deployment.capacity(target.demand.context) >= target.users
    soon = target.first_token is None or served.first_token_seconds <= target.first_token
    return fits and served.at_once == target.users and served.tokens_per_second >= target.speed and soon


@pytest.mark.parametrize("target", [TARGET, replace(TARGET, first_token=1.0), replace(TARGET, users=60, speed=40.0)])
def test_the_fewest_chips_that_meet_the_target(target: Target) -> None:
    big = replace(CHIP, name="Big", memory=192 * 10**9, hourly=5 * 10**12)
    small = replace(CHIP, name="Small", memory=48 * 10**9, hourly=10**12)
    unpriced = replace(CHIP, name="Unpriced", hourly=None)
    tiny = replace(CHIP, name="Tiny", memory=10**9)
    found = choose(PRO, [(None, chip) for chip in (tiny, big, unpriced, small)], target, reached=0.5)
    assert [choice.chip.name for choice in found][2:] == ["Unpriced", "Tiny"]
    prices = [choice.served.hourly for choice in found[:2] if choice.served]
    assert prices == sorted(prices)  # type: ignore[type-var]
    for choice in found[:3]:
        assert choice.served is not None
        assert meets(choice, target)
        assert choice.served.deployment.reached == 0.5
        fewer = [count for count in counts(choice.chip, None) if count < choice.served.chips]
        if fewer:
            assert choose(PRO, [(fewer[-1], choice.chip)], target, reached=0.5)[0].served is None
        found_there = deployments(PRO, choice.chip, choice.served.chips, reached=0.5)
        able = [serve(one, [target.demand], target.users) for one in found_there]
        best = max(one.tokens_per_second for one in able if meets(Choice(choice.chip, one), target))
        assert choice.served.tokens_per_second == best
    assert found[3].served is None
    assert found[3].missed.endswith(f"hold 0 of {target.users} users")


def test_what_is_in_the_way_is_said() -> None:
    few = [(8, CHIP)]
    assert choose(PRO, few, replace(TARGET, speed=1e5))[0].missed.endswith("tokens/s each")
    assert "give the first token after" in choose(PRO, few, replace(TARGET, first_token=1e-6))[0].missed
    assert "8 hold" in choose(PRO, few, replace(TARGET, users=10**6))[0].missed
    loose = replace(CHIP, node=1, link=None, network=None)
    missed = choose(PRO, [(5, loose)], TARGET)[0].missed
    assert missed.startswith("1 give 13")
    assert missed.endswith("; no network is known of more")


def test_numbers_of_chips_that_are_tried() -> None:
    assert list(counts(CHIP, None)) == [*range(1, 8), *(8 * nodes for nodes in range(1, MOST_NODES + 1))]
    assert list(counts(CHIP, 6)) == [1, 2, 3, 4, 5, 6]
    assert list(counts(CHIP, 20)) == [*range(1, 8), 8, 16, 20]
    assert list(counts(replace(CHIP, node=1), 3)) == [1, 2, 3]
    assert list(counts(CHIP, 300)) == [*counts(CHIP, None), 128, 256, 300]
    assert list(counts(CHIP, 8)) == [*range(1, 9)]
    assert len(list(counts(replace(CHIP, node=1), 100_000))) < 30


def test_precision_is_kept_by_the_choice() -> None:
    choice = choose(FLASH, [(None, CHIP)], TARGET, precision=Precision.BF16)[0]
    assert choice.served is not None
    assert choice.served.deployment.precision is Precision.BF16
    lines = dict(choice.explain())
    assert any(name.startswith("a step of 20: weights") for name in lines)
    assert any(name.startswith("a chunk of ") for name in lines)
    assert dict(choose(PRO, [(1, replace(CHIP, memory=1))], TARGET)[0].explain()) == {}


def test_half_of_a_request() -> None:
    demand = Demand(10, 4, 7)
    assert (demand.context, demand.halfway) == (17, 13)
    assert Demand(0, 0, 1).halfway == 1
