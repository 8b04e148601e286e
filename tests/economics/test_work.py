"""R's claims, recounted: FLOPs and bytes of V3.2, V4-Pro and V4-Flash, from their configurations alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.economics.storage import history_bytes, key_bytes, latent_bytes
from narrows.economics.work import AnyConfig, decode_work, prefill_work, total
from narrows.errors import UsageError
from narrows.model.presets import FLASH, PRO, TINY
from narrows.model.v32.config import V32

MILLION = 1 << 20  # as R counts it: 1,024 times 1,024


@pytest.mark.parametrize(
    ("context", "gigaflops"),
    [(4096, (151, 123, 33)), (131_072, (278, 147, 44)), (MILLION, (1195, 319, 121))],
)
def test_the_flops_of_a_token(context: int, gigaflops: tuple[int, ...]) -> None:
    """The recount that reproduces R's figure 1."""
    counted = tuple(round(total(decode_work(config, context)) / 10**9) for config in (V32, PRO, FLASH))
    assert counted == gigaflops


@pytest.mark.parametrize(
    ("context", "gigabytes"),
    [(4096, (0.20, 0.03, 0.02)), (131_072, (6.30, 0.66, 0.46)), (MILLION, (50.4, 5.28, 3.69))],
)
def test_the_bytes_of_a_history(context: int, gigabytes: tuple[float, ...]) -> None:
    counted = (history_bytes(config, context) / 1e9 for config in (V32, PRO, FLASH))
    assert [float(f"{one:.3g}") if one >= 1 else round(one, 2) for one in counted] == list(gigabytes)


def test_what_a_million_tokens_take_of_the_predecessor() -> None:
    """R: 27 % of the FLOPs and 10 % of the cache for Pro, 10 % and 7 % for Flash."""
    work = [total(decode_work(config, MILLION)) for config in (V32, PRO, FLASH)]
    kept = [history_bytes(config, MILLION) for config in (V32, PRO, FLASH)]
    assert [round(100 * one / work[0]) for one in work[1:]] == [27, 10]
    assert [round(100 * one / kept[0]) for one in kept[1:]] == [10, 7]
    assert [round(float(work[0] / one), 3) for one in work[1:]] == [3.740, 9.899]
    assert [round(kept[0] / one, 3) for one in kept[1:]] == [9.545, 13.666]


def test_an_entry_of_the_predecessor() -> None:
    assert (latent_bytes(V32), key_bytes(V32)) == (512 + 16 + 128, 132)


@given(st.sampled_from([TINY, PRO, V32]), st.integers(0, 700), st.integers(1, 300))
def test_a_prefill_is_the_sum_of_its_tokens(config: AnyConfig, past: int, tokens: int) -> None:
    whole = prefill_work(config, tokens, past, logits=tokens)
    by_name: dict[tuple[str, str], int] = {}
    for context in range(past + 1, past + tokens + 1):
        for product in decode_work(config, context):
            place = product.component, product.name
            by_name[place] = by_name.get(place, 0) + product.macs
    assert {(product.component, product.name): product.macs for product in whole} == by_name


def test_what_cannot_be_counted() -> None:
    for context in (0, -1, True, 2.0):
        with pytest.raises(UsageError, match="whole number of tokens from 1"):
            decode_work(PRO, context)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="1,048,577 tokens lies beyond the model's 1,048,576 positions"):
        decode_work(PRO, MILLION + 1)
    decode_work(V32, MILLION)  # whose formulas go on behind its positions, or nothing could be compared
    for tokens, past, logits in ((0, 0, 0), (4, -1, 1), (4, 0, 5)):
        with pytest.raises(UsageError, match="give numbers that can be"):
            prefill_work(PRO, tokens, past, logits=logits)
