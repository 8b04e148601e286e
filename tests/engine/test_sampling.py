"""Sampler: what it draws is its distribution, which is the definition's; drafts change neither; a seed is a text."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from narrows.engine.sampling import Sampled, Sampler, SamplingParameters
from narrows.errors import NarrowsError, UsageError
from narrows.ops.sample import draw, sample
from tests.draws import scaled

V = 12

# Few values, so that there are ties.
logit_rows = st.lists(st.integers(-8, 8).map(lambda value: value / 2), min_size=V, max_size=V).map(torch.tensor)
masks = st.lists(st.booleans(), min_size=V, max_size=V).filter(any).map(torch.tensor)
tokens = st.lists(st.integers(0, V - 1), max_size=8)
penalties = st.fixed_dictionaries(
    {
        "presence_penalty": st.sampled_from([0.0, 0.6, -2.0]),
        "frequency_penalty": st.sampled_from([0.0, 0.3, 2.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.3, 0.5]),
        "logit_bias": st.dictionaries(st.integers(0, V - 1), st.floats(-100, 100), max_size=3),
    }
)
probabilities = st.lists(st.integers(0, 9), min_size=5, max_size=5).filter(any)


def normal(weights: list[int]) -> Tensor:
    values = torch.tensor(weights, dtype=torch.float64)
    return values / values.sum()


def random_rows(count: int, seed: int, size: int = V) -> Tensor:
    return 2 * torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


# -- the distribution ---------------------------------------------------------------------------------------------


@given(logit_rows, tokens, tokens, penalties, masks, st.sampled_from([0.4, 1.0, 3.0]))
def test_penalties_bias_mask_and_temperature_are_the_definitions(
    logits: Tensor, prompt: list[int], reply: list[int], given_penalties: dict[str, Any], mask: Tensor, warmth: float
) -> None:
    parameters = SamplingParameters(temperature=warmth, **given_penalties)
    sampler = Sampler(parameters, V, prompt)
    for token in reply:
        sampler.accept(token)
    scores = []
    for token, logit in enumerate(logits.tolist()):
        score = logit
        if token in prompt or token in reply:
            factor = parameters.repetition_penalty
            score = score / factor if score > 0 else score * factor
        score -= parameters.frequency_penalty * reply.count(token) + parameters.presence_penalty * (token in reply)
        scores.append(score + parameters.logit_bias.get(token, 0.0) if mask[token] else -math.inf)
    highest = max(scores)
    weights = [math.exp((score - highest) / warmth) for score in scores]
    expected = torch.tensor([weight / sum(weights) for weight in weights], dtype=torch.float64)
    torch.testing.assert_close(sampler.distribution(logits, mask), expected, rtol=1e-9, atol=1e-12)
    greedy = Sampler(SamplingParameters(**given_penalties), V, prompt)
    for token in reply:
        greedy.accept(token)
    (chosen,) = greedy.distribution(logits, mask).nonzero().flatten().tolist()
    assert scores[chosen] == pytest.approx(highest)
    assert chosen == greedy.draw(logits, mask).token


@given(
    logit_rows | st.integers(0, 9).map(lambda seed: random_rows(1, seed, 3000)[0]),
    st.none() | st.integers(1, V),
    st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)
def test_cuts_keep_the_first_of_the_ranking_and_no_more_than_needed(
    logits: Tensor, top_k: int | None, top_p: float, min_p: float
) -> None:
    def distribution(**cuts: Any) -> Tensor:
        return Sampler(SamplingParameters(temperature=1.5, **cuts), len(logits), []).distribution(logits)

    whole = distribution()
    ranking = sorted(range(len(logits)), key=lambda token: (-float(logits[token]), token))
    cut = distribution(top_k=top_k, top_p=top_p, min_p=min_p)
    kept = int((cut > 0).sum())
    assert sorted(ranking[:kept]) == (cut > 0).nonzero().flatten().tolist()
    torch.testing.assert_close(cut[ranking[:kept]], whole[ranking[:kept]] / whole[ranking[:kept]].sum())
    among = ranking[: top_k or len(logits)]
    shares = (whole[among] / whole[among].sum()).cumsum(-1)
    enough = [kept <= len(among), min_p == 0 or bool(whole[ranking[kept - 1]] >= min_p * whole.max())]
    enough.append(kept == 1 or bool(shares[kept - 2] < top_p + 1e-12))
    assert all(enough)
    # Nothing was cut but for a reason.
    reasons = [kept == len(among), bool(shares[kept - 1] > top_p - 1e-12)]
    reasons.append(kept < len(ranking) and bool(whole[ranking[kept]] < min_p * whole.max()))
    assert any(reasons)


@given(logit_rows, st.integers(1, V))
def test_greedy_takes_the_lower_of_equals_whatever_the_cuts(logits: Tensor, top_k: int) -> None:
    row = logits.tolist()
    sampler = Sampler(SamplingParameters(top_k=top_k, top_p=0.3, min_p=0.5), V, [])
    assert sampler.draw(logits).token == row.index(max(row))
    assert sampler.distribution(logits).nonzero().flatten().tolist() == [row.index(max(row))]


def test_draws_follow_the_distribution() -> None:
    logits = random_rows(1, seed=3)[0]
    mask = torch.arange(V) % 5 > 0
    sampler = Sampler(SamplingParameters(temperature=1.4, top_p=0.9, repetition_penalty=1.2, seed=5), V, [1, 2])
    expected = sampler.distribution(logits, mask)
    drawn = torch.tensor([sampler.draw(logits, mask).token for _ in range(6000)])
    torch.testing.assert_close(drawn.bincount(minlength=V) / 6000, expected.float(), rtol=0, atol=0.03)
    assert not expected[drawn].eq(0).any()


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-12])
def test_the_coldest_temperatures_are_greedy_and_share_among_equals(temperature: float) -> None:
    sampler = Sampler(SamplingParameters(temperature=temperature), 4, [])
    distribution = sampler.distribution(torch.tensor([3, 9.0, 1, 9]))
    assert distribution.tolist() == [0, 0.5, 0, 0.5]


# -- seeds --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**64 - 1), st.sampled_from([0.0, 0.7, 2.0]))
@settings(max_examples=scaled(15))
def test_a_seed_gives_the_tokens_of_the_op(seed: int, temperature: float) -> None:
    """Which are those of narrows.engine.generate."""
    sampler = Sampler(SamplingParameters(temperature=temperature, seed=seed), V, [])
    generator = torch.Generator().manual_seed(seed)
    for row in random_rows(20, seed=seed % 1000):
        assert sampler.draw(row).token == int(sample(row[None], temperature, generator))


def test_a_draw_inverts_the_cumulative_sum() -> None:
    """The one way in which a seed becomes tokens: another would change every text."""
    rows = random_rows(200, seed=1, size=50)
    places = torch.rand(200, 1, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    sums = torch.softmax(rows.double() / 0.8, dim=-1).cumsum(-1)
    expected = (sums <= places * sums[:, -1:]).sum(-1)
    assert torch.equal(sample(rows, 0.8, torch.Generator().manual_seed(9)), expected)


@pytest.mark.parametrize("place", [0.0, 1 - 2**-53], ids=["lowest", "highest"])
@given(probabilities)
def test_what_has_no_weight_is_never_drawn(place: float, weights: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, place, dtype=torch.float64))
        (token,) = draw(torch.tensor([weights], dtype=torch.float64)).tolist()
    assert token == [index for index, weight in enumerate(weights) if weight][-1 if place else 0]


def test_every_reply_has_its_own_draws_and_disturbs_no_other() -> None:
    rows = random_rows(30, seed=2)
    parameters = SamplingParameters(temperature=2.0, seed=7, n=4)

    def texts(count: int) -> list[list[int]]:
        samplers = [Sampler(parameters, V, [], index) for index in range(count)]
        torch.rand(3)  # the global generator is nobody's
        return [list(text) for text in zip(*([one.draw(row).token for one in samplers] for row in rows), strict=True)]

    together = texts(4)
    assert together[:2] == texts(2)
    assert len({tuple(text) for text in together}) == 4
    assert texts(1) == together[:1]


def test_without_a_seed_every_text_is_another() -> None:
    rows = random_rows(30, seed=2)
    parameters = SamplingParameters(temperature=2.0)
    first, second = ([one.draw(row).token for row in rows] for one in (Sampler(parameters, V, []) for _ in range(2)))
    assert first != second


# -- log-probabilities --------------------------------------------------------------------------------------------


@given(logit_rows, st.none() | st.integers(0, 20), penalties)
def test_logprobs_are_the_models_own(logits: Tensor, count: int | None, given_penalties: dict[str, Any]) -> None:
    sampler = Sampler(SamplingParameters(temperature=0.5, logprobs=count, seed=1, **given_penalties), V, [1])
    sampled = sampler.draw(logits)
    expected = torch.log_softmax(logits.double(), -1)
    assert sampled.logprob == pytest.approx(float(expected[sampled.token]))
    ranking = sorted(range(V), key=lambda token: (-float(logits[token]), token))[: count or 0]
    assert [token for token, _ in sampled.alternatives] == ranking
    assert [value for _, value in sampled.alternatives] == pytest.approx(expected[ranking].tolist())
    assert sampled == Sampled(*vars(sampled).values())


# -- drafts -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.7, 1.5]), st.integers(0, 3))
def test_a_guess_is_what_will_be_drawn_if_the_logits_come_true(seed: int, temperature: float, ahead: int) -> None:
    """And guessing draws nothing: the text of a seed is the same with guesses and without."""
    parameters = SamplingParameters(temperature=temperature, top_p=0.9, seed=seed)
    alone, guessing = Sampler(parameters, V, []), Sampler(parameters, V, [])
    rows = random_rows(6, seed=seed)
    drawn = [alone.draw(row).token for row in rows]
    for place, row in enumerate(rows):
        if place + ahead < len(rows):
            assert guessing.guess(rows[place + ahead], ahead=ahead) == drawn[place + ahead]
        assert guessing.draw(row).token == drawn[place]


def test_like_distributions_give_like_guesses() -> None:
    logits = random_rows(1, seed=4)[0]
    near = logits + 0.1 * random_rows(1, seed=6)[0]
    sampler = Sampler(SamplingParameters(temperature=1.0, seed=11), V, [])
    target, draft = sampler.distribution(logits), sampler.distribution(near)
    came_true = [sampler.guess(near) == sampler.draw(logits).token for _ in range(3000)]
    chance = float((target * draft).sum())  # of two draws that know nothing of each other
    assert sum(came_true) / 3000 > (1 + chance) / 2


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(value: float, temperature: float) -> None:
    logits = torch.zeros(V)
    logits[4] = value
    with pytest.raises(NarrowsError, match="logits are not finite"):
        Sampler(SamplingParameters(temperature=temperature), V, []).draw(logits)


def test_a_mask_that_allows_nothing_is_refused() -> None:
    with pytest.raises(NarrowsError, match="the constraint allows no token here"):
        Sampler(SamplingParameters(), V, []).draw(torch.zeros(V), torch.zeros(V, dtype=torch.bool))


def test_logits_are_left_as_they_were() -> None:
    with torch.inference_mode():
        logits = torch.zeros(V, dtype=torch.float64)
    sampler = Sampler(SamplingParameters(temperature=1.0, presence_penalty=1.0, logit_bias={2: 5.0}), V, [])
    sampler.accept(3)
    sampler.draw(logits, torch.arange(V) > 1)
    assert not logits.any()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_tokens", 0, "max_tokens is 0; ask for at least 1."),
        ("temperature", -0.1, "temperature is -0.1; choose 0 (greedy) or more."),
        ("temperature", math.inf, "temperature is inf; choose 0 (greedy) or more."),
        ("seed", 2**64, f"seed is {2**64}; choose one from 0 to 2**64 - 1."),
        ("seed", "1", "seed is '1'; give a whole number."),
        ("top_k", 0, "top_k is 0; choose 1 or more."),
        ("top_k", 2.0, "top_k is 2.0; give a whole number."),
        ("top_p", 0.0, "top_p is 0; choose a number above 0, 1 to leave the distribution as it is."),
        ("top_p", 1.1, "top_p is 1.1; choose 0 to 1."),
        ("top_p", math.nan, "top_p is nan; choose 0 to 1."),
        ("min_p", -1, "min_p is -1; choose 0 to 1."),
        ("min_p", True, "min_p is True; give a number."),
        ("presence_penalty", 2.5, "presence_penalty is 2.5; choose -2 to 2."),
        ("frequency_penalty", "a", "frequency_penalty is 'a'; give a number."),
        ("repetition_penalty", 0, "repetition_penalty is 0; choose a number above 0, 1 to"),
        ("repetition_penalty", -1, "repetition_penalty is -1; choose 0 to 100."),
        ("logit_bias", [1], "logit_bias is [1]; give numbers by token id."),
        ("logit_bias", {-1: 0.0}, "a token id in logit_bias is -1; choose 0 or more."),
        ("logit_bias", {"5": 0.0}, "a token id in logit_bias is '5'; give a whole number."),
        ("logit_bias", {5: 101}, "logit_bias of token 5 is 101; choose -100 to 100."),
        ("stop", "end", "stop is 'end'; give a tuple of strings."),
        ("stop", ("a", 1), "stop is ('a', 1); give a tuple of strings."),
        ("stop", ("a", ""), "a stop string is empty, which every text holds; leave it out."),
        ("logprobs", 21, "logprobs is 21; choose 0 to 20."),
        ("logprobs", True, "logprobs is True; give a whole number."),
        ("n", 0, "n is 0; choose 1 to 128."),
        ("n", 129, "n is 129; choose 1 to 128."),
    ],
)
def test_what_cannot_be_right_is_refused_at_the_door(field: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        SamplingParameters(**{field: value})
    assert str(refused.value).startswith(message)


def test_bounds_themselves_and_pointless_pairs_are_allowed() -> None:
    SamplingParameters(temperature=0, n=128, top_k=1, logprobs=20, top_p=1, min_p=1, seed=2**64 - 1, stop=("a", "a"))


def test_a_bias_outside_the_vocabulary_is_refused_where_the_vocabulary_is_known() -> None:
    Sampler(SamplingParameters(logit_bias={V - 1: 1.0}), V, [])
    with pytest.raises(UsageError, match=f"token {V}, which lies outside the vocabulary of {V}"):
        Sampler(SamplingParameters(logit_bias={V: 1.0}), V, [])


def test_parameters_are_checked_without_waiting_for_torch() -> None:
    code = "import sys, narrows.engine.request as r; r.SamplingParameters(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
