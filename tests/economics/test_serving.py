"""How many requests a deployment serves, what they cost there, and which chips are chosen for a target."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.economics.choose import MOST_NODES, Choice, Target, choose, counts
from narrows.economics.fit import best_fit, fit
from narrows.economics.layout import Layout
from narrows.economics.roofline import Deployment
from narrows.economics.serving import Demand, break_even, cheapest_layout, deployments, most_at_once, serve
from narrows.errors import UsageError
from narrows.model.presets import FLASH, PRO
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
    prefill = served.requests_per_second * HERE.prefill_seconds(demand.prompt - demand.hit, demand.hit)
    assert steps * HERE.step(at_once, demand.halfway).seconds + prefill == pytest.approx(1)
    assert served.tokens_per_second == pytest.approx(steps)
    assert served.hourly == 8 * 3
    assert served.monthly == pytest.approx(24 * 730.5)
    paid = (
        served.requests_per_second
        * 3600
        * (
            demand.output * (served.dollars_per_million_output or 0) / 1e6
            + (demand.prompt - demand.hit) * (served.dollars_per_million_input or 0) / 1e6
        )
    )
    assert paid == pytest.approx(served.hourly)  # what the tokens of an hour cost is what the hour costs


def test_a_mix_is_served_as_its_parts_are() -> None:
    long, short = Demand(100_000, 50_000, 2000), Demand(1000, 0, 100)
    mixed = serve(HERE, [replace(long, share=0.25), replace(short, share=0.75)], 16)
    each = [1 / serve(HERE, [demand], 16).requests_per_second for demand in (long, short)]
    assert 1 / mixed.requests_per_second == pytest.approx(0.25 * each[0] + 0.75 * each[1])
    assert mixed.first_token_seconds == serve(HERE, [long], 16).first_token_seconds


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
    best = cheapest_layout(found, [demand], 20)
    assert best is not None
    rates = []
    for deployment in found:
        at_once = most_at_once(deployment, [demand], 20)
        rates.append(serve(deployment, [demand], at_once).requests_per_second if at_once else 0)
    assert best.requests_per_second == max(rates)
    assert cheapest_layout(found, [demand], 1e6) is None
    with pytest.raises(UsageError, match="the 220 chips of a stage do not divide the 256 routed experts"):
        deployments(FLASH, replace(CHIP, node=5), 220)


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
    more, shorter = many.advice()
    count = int(more.split("x")[0])
    assert any(one.capacity(1 << 20) >= 50 for one in deployments(PRO, many.deployment.chip, count))
    assert all(one.capacity(1 << 20) < 50 for one in deployments(PRO, many.deployment.chip, count - 8))
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
        fewer = [count for count in counts(choice.chip, None) if count < choice.served.chips]
        limited = choose(PRO, [(fewer[-1] if fewer else 1, choice.chip)], target, reached=0.5)
        assert limited[0].served is None or not fewer
    assert found[3].served is None
    assert found[3].missed.endswith(f"hold 0 of {target.users} users")


def test_what_is_in_the_way_is_said() -> None:
    few = [(8, CHIP)]
    assert choose(PRO, few, replace(TARGET, speed=1e5))[0].missed.endswith("tokens/s each")
    assert "give the first token after" in choose(PRO, few, replace(TARGET, first_token=1e-6))[0].missed
    assert "8 hold" in choose(PRO, few, replace(TARGET, users=10**6))[0].missed
    assert (
        choose(PRO, [(5, replace(CHIP, node=1, link=None, network=None))], TARGET)[0].missed
        == "1 give 13.3 tokens/s each"
    )


def test_numbers_of_chips_that_are_tried() -> None:
    assert list(counts(CHIP, None)) == [1, 2, 4, *(8 * nodes for nodes in range(1, MOST_NODES + 1))]
    assert list(counts(CHIP, 6)) == [1, 2, 4]
    assert list(counts(CHIP, 20)) == [1, 2, 4, 8, 16]
    assert list(counts(replace(CHIP, node=1), 3)) == [1, 2, 3]


def test_half_of_a_request() -> None:
    demand = Demand(10, 4, 7)
    assert (demand.context, demand.halfway) == (17, 13)
    assert Demand(0, 0, 1).halfway == 1
