"""What a token costs against the context, for one network beside another: R's figure 1, computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from narrows.economics.storage import history_bytes
from narrows.economics.work import AnyConfig, decode_work, total
from narrows.errors import UsageError


@dataclass(frozen=True)
class Cost:
    """Of one token behind a context of so many, itself included: FP8-equivalent operations, and the history's bytes."""

    context: int
    flops: Fraction
    bytes: int


def curve(config: AnyConfig, contexts: Sequence[int]) -> list[Cost]:
    """The costs at these contexts. UsageError for one that the network has no positions for."""
    return [Cost(one, total(decode_work(config, one)), history_bytes(config, one)) for one in contexts]


def contexts_up_to(most: int, least: int = 4096, each: int = 1) -> list[int]:
    """From `least` on, `each` a doubling, and `most` at the end. UsageError where there is nothing between."""
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise UsageError(f"the longest context is {most!r}; give a whole number of tokens from 1.")
    found = []
    step = 0
    while (context := round(least * 2 ** (step / each))) < most:
        found.append(context)
        step += 1
    return [*dict.fromkeys(found), most]  # the first few may round to the same
