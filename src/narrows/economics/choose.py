"""Which chips serve a target at the least cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from narrows.economics.chips import Chip
from narrows.economics.explain import of_chips, of_memory, of_served
from narrows.economics.serving import Demand, Served, in_every_layout, serve
from narrows.economics.work import AnyConfig, check_served
from narrows.model.precision import Precision

MOST_NODES = 8
"""What is tried of a chip of which nobody says how many there are."""


@dataclass(frozen=True)
class Target:
    """So many users at once, each of whom asks what `demand` says and reads `speed` tokens a second or more; who asks
    alone has the first token within `first_token` seconds."""

    users: int
    demand: Demand
    speed: float
    first_token: float | None = None


@dataclass(frozen=True)
class Choice:
    """The fewest of one chip that meet the target or, where none do, what is in their way."""

    chip: Chip
    served: Served | None
    missed: str = ""

    def explain(self) -> Iterator[tuple[str, str]]:
        """What the chips cost, hold and take; nothing where the target is missed."""
        served = self.served
        if served is not None:
            context = served.demands[0].context
            yield from of_chips(self.chip, served.chips)
            yield from of_memory(served.deployment, context)
            yield from of_served(served)

    def told(self) -> dict[str, Any]:
        """As JSON."""
        if self.served is None:
            return {"chip": self.chip.name, "missed": self.missed}
        told = {"chip": self.chip.name, "chips": self.served.chips, "bought": self.chip.bought, "bare": self.chip.bare}
        return told | self.served.told()


def choose(
    config: AnyConfig,
    stock: Sequence[tuple[int | None, Chip]],
    target: Target,
    *,
    precision: Precision = Precision.OFFICIAL,
    reached: float = 1.0,
) -> list[Choice]:
    """For every chip, of which there are so many (None: as many as are tried); the cheapest first, those without a
    price behind them, and those that miss the target last. UsageError for a context beyond the model's positions."""
    check_served(config, target.demand.context)
    found = [_choice(config, chip, most, target, precision, reached) for most, chip in stock]
    return sorted(found, key=_order)


def _order(choice: Choice) -> tuple[int, float]:
    if choice.served is None:
        return 2, 0.0
    return (1, choice.served.chips) if choice.served.hourly is None else (0, choice.served.hourly)


def counts(chip: Chip, most: int | None) -> Iterator[int]:
    """Numbers of chips that are tried: all within a node, then whole nodes, from MOST_NODES on twice as many each; and,
    where it is said how many there are, all of them."""
    last = chip.node * MOST_NODES if most is None else most
    yield from range(1, min(chip.node, last + 1))
    nodes = 1
    while chip.node * nodes <= last:
        yield chip.node * nodes
        nodes = nodes + 1 if nodes < MOST_NODES else 2 * nodes
    if most is not None and most > chip.node and most % chip.node:
        yield most


def _choice(
    config: AnyConfig, chip: Chip, most: int | None, target: Target, precision: Precision, reached: float
) -> Choice:
    missed = "no layout divides the model"
    for count in counts(chip, most):
        best: Served | None = None
        found = in_every_layout(config, chip, count, precision, reached)
        capacity = max((deployment.capacity(target.demand.context) for deployment in found), default=0)
        if found:
            missed = f"{count} hold {capacity:,} of {target.users:,} users"
        fastest, soonest = 0.0, float("inf")
        for deployment in found:
            if deployment.capacity(target.demand.context) < target.users:
                continue
            served = serve(deployment, [target.demand], target.users)
            fastest = max(fastest, served.tokens_per_second)
            if served.tokens_per_second < target.speed:
                continue
            if target.first_token is not None and served.first_token_seconds > target.first_token:
                soonest = min(soonest, served.first_token_seconds)
                continue
            if best is None or served.tokens_per_second > best.tokens_per_second:
                best = served
        if best is not None:
            return Choice(chip, best)
        if soonest < float("inf"):
            missed = f"{count} give the first token after {soonest:,.3g} s"
        elif fastest:
            missed = f"{count} give {fastest:,.3g} tokens/s each"
    alone = "; no network is known of more" if chip.network is None else ""
    return Choice(chip, None, missed + alone)
