"""What the server's page shows of plans: curves against the context, and a month's cost against what is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from fractions import Fraction
from functools import lru_cache
from typing import Any

from narrows.economics.bill import Bill, bill
from narrows.economics.efficiency import Cost, contexts_up_to, curve
from narrows.economics.models import CONFIGS, PREDECESSOR
from narrows.economics.money import plain
from narrows.economics.prices import OTHERWISE, Entry, PriceBook, Tokens
from narrows.errors import UsageError

SHOWN = (PREDECESSOR, "deepseek-v4-pro", "deepseek-v4-flash")

MOST_CONTEXT = 1 << 20
"""The most that the published models have positions for."""

MOST_TOKENS = 10**15

_STEPS = 20
"""Parts of the way from nothing known to all."""


def overview(
    book: PriceBook, on: date, *, context: int, cached: Fraction, tokens: int, written: Fraction
) -> dict[str, Any]:
    """Operations and history bytes of the published models at `context` and up to it, and what so many tokens a month
    cost with every model that has a price on that day: the share `written` of them written, and of the rest the share
    `cached` known. Money is text, dollars. UsageError for what lies outside: contexts from 1 to MOST_CONTEXT, tokens
    from 1 to MOST_TOKENS, shares from 0 to 1.
    """
    for name, number, most in (("context", context, MOST_CONTEXT), ("tokens", tokens, MOST_TOKENS)):
        if not 1 <= number <= most:
            raise UsageError(f"{name} is {number}; give a whole number from 1 to {most:,}.")
    for name, part in (("cached", cached), ("written", written)):
        if not 0 <= part <= 1:
            raise UsageError(f"{name} is {float(part):g}; give a share from 0 to 1.")
    named = [name for name in book.names if name != OTHERWISE]  # which is nobody's offer, and low to invite to try
    entries = [entry for name in named if (entry := book.known(name, on)) is not None]
    shares = [Fraction(step, _STEPS) for step in range(_STEPS + 1)]
    return {
        "context": context,
        "efficiency": {name: _efficiency(name, context) for name in SHOWN},
        "month": {
            "tokens": _told(_month(tokens, cached, written)),
            "costs": [_cost(bill(_month(tokens, cached, written), entry)) for entry in entries],
            "by_cached": {
                "shares": [float(part) for part in shares],
                "costs": {entry.model: _totals(entry, tokens, shares, written) for entry in entries},
            },
        },
    }


def _efficiency(name: str, context: int) -> dict[str, Any]:
    *_, last = costs = _curve(name, context)
    return {
        "flops": float(last.flops),
        "history_bytes": last.bytes,
        "curve": [[cost.context, float(cost.flops), cost.bytes] for cost in costs],
    }


@lru_cache(256)
def _curve(name: str, context: int) -> Sequence[Cost]:
    """From a 256th of the context on, where a picture of it begins, four points a doubling."""
    return curve(CONFIGS[name], contexts_up_to(context, least=max(1, context // 256), each=4))


def _month(tokens: int, cached: Fraction, written: Fraction) -> Tokens:
    output = int(tokens * written)
    hit = int((tokens - output) * cached)
    return Tokens(hit=hit, miss=tokens - output - hit, output=output)


def _told(tokens: Tokens) -> Mapping[str, int]:
    return {kind: getattr(tokens, kind) for kind in ("hit", "miss", "output")}


def _cost(found: Bill) -> dict[str, Any]:
    parts = {"hit": found.hit, "miss": found.miss, "output": found.output, "total": found.total}
    told = {name: plain(int(amount)) for name, amount in parts.items()}
    entry = found.entry
    return {"model": entry.model, "since": entry.since.isoformat(), "source": entry.source} | told


def _totals(entry: Entry, tokens: int, shares: Sequence[Fraction], written: Fraction) -> list[str]:
    return [plain(int(bill(_month(tokens, part, written), entry).total)) for part in shares]
