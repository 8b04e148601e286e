"""How fast a deployment serves requests of given sizes, and what a token costs there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from narrows.economics.chips import Chip
from narrows.economics.layout import Layout, layouts
from narrows.economics.money import PICODOLLARS
from narrows.economics.roofline import Deployment
from narrows.economics.step import Step
from narrows.economics.units import HOURS_A_MONTH
from narrows.economics.work import AnyConfig
from narrows.errors import UsageError
from narrows.model.precision import Precision

_HOUR = 3600


@dataclass(frozen=True)
class Demand:
    """Requests of one kind: tokens that each reads, those of them that are known, and tokens that it writes; `share`
    is what part of all requests they are."""

    prompt: int
    hit: int
    output: int
    share: float = 1.0

    @property
    def context(self) -> int:
        """At its end."""
        return self.prompt + self.output

    @property
    def halfway(self) -> int:
        """When half of it is written."""
        return max(1, self.prompt + self.output // 2)


@dataclass(frozen=True)
class Served:
    """A deployment that serves a mix of requests, so many of them at once.

    `prefill_seconds` and `decode_seconds` are what an average request takes of all chips; `step` is the longest of any
    kind that writes, None where none does. `hours`: of a month, those in which requests come.
    """

    deployment: Deployment
    demands: tuple[Demand, ...]
    at_once: int
    prefill_seconds: float
    decode_seconds: float
    step: Step | None
    hours: float = HOURS_A_MONTH

    @property
    def step_seconds(self) -> float:
        """Of the longest step; 0 where nothing is written."""
        return 0.0 if self.step is None else self.step.seconds

    @property
    def chips(self) -> int:
        return self.deployment.layout.chips

    @property
    def requests_per_second(self) -> float:
        """All together, prompts read between steps."""
        return 1 / (self.prefill_seconds + self.decode_seconds)

    @property
    def tokens_per_second(self) -> float:
        """What one request writes while it writes: others' prompts are read between its steps, its own was before.
        Infinite where nothing is written."""
        if not self.step_seconds:
            return inf
        others = self.requests_per_second * self.prefill_seconds * (self.at_once - 1) / self.at_once
        return (1 - others) / self.step_seconds

    @property
    def mean_output(self) -> float:
        return sum(demand.share * demand.output for demand in self.demands)

    @property
    def mean_miss(self) -> float:
        return sum(demand.share * (demand.prompt - demand.hit) for demand in self.demands)

    @property
    def first_token_seconds(self) -> float:
        """Behind the longest of the prompts, as far as it is not known, while nobody else asks."""
        return max(
            self.deployment.first_token_seconds(max(1, demand.prompt - demand.hit), demand.hit)
            for demand in self.demands
        )

    @property
    def hourly(self) -> float | None:
        """Dollars of all chips."""
        each = self.deployment.chip.hourly
        return None if each is None else self.chips * each / PICODOLLARS

    @property
    def monthly(self) -> float | None:
        """Dollars of all chips, busy or not."""
        return None if self.hourly is None else self.hourly * HOURS_A_MONTH

    @property
    def most_a_month(self) -> float:
        """Requests, if there are so many at once through all hours in which any come."""
        return self.requests_per_second * _HOUR * self.hours

    @property
    def dollars_per_million_output(self) -> float | None:
        return self._million(self.decode_seconds, self.mean_output)

    @property
    def dollars_per_million_input(self) -> float | None:
        """Of tokens that are not known."""
        return self._million(self.prefill_seconds, self.mean_miss)

    def _million(self, seconds: float, tokens: float) -> float | None:
        return None if self.hourly is None or not tokens else self.hourly / _HOUR * seconds / tokens * 1e6

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "layout": str(self.deployment.layout),
            "reached": self.deployment.reached,
            "at_once": self.at_once,
            "requests_per_second": self.requests_per_second,
            "binds": self.step.binds if self.step else None,
            "tokens_per_second_each": self.tokens_per_second if self.step_seconds else None,
            "first_token_seconds": self.first_token_seconds,
            "dollars_an_hour": self.hourly,
            "dollars_a_month": self.monthly,
            "most_requests_a_month": self.most_a_month,
            "dollars_per_million_output": self.dollars_per_million_output,
            "dollars_per_million_input": self.dollars_per_million_input,
        }


def serve(deployment: Deployment, demands: Sequence[Demand], at_once: int) -> Served:
    """So many such requests at once, whether or not they fit. UsageError for requests that take nothing: known prompts
    behind which nothing is written."""
    prefill = decode = 0.0
    longest: Step | None = None
    for demand in demands:
        miss = demand.prompt - demand.hit
        prefill += demand.share * deployment.prefill_seconds(miss, demand.hit, requests=at_once)
        if demand.output:
            step = deployment.step(at_once, demand.halfway)
            decode += demand.share * demand.output * step.seconds / at_once
            longest = step if longest is None else max(longest, step, key=lambda one: one.seconds)
    if not prefill + decode:
        raise UsageError("such requests take nothing: their prompts are known and they write nothing.")
    return Served(deployment, tuple(demands), at_once, prefill, decode, longest)


def most_at_once(deployment: Deployment, demands: Sequence[Demand], speed: float) -> int:
    """The most requests at once that fit, each as if it were the longest, and write `speed` tokens a second each;
    0 where one alone does not."""
    fitting = deployment.capacity(max(demand.context for demand in demands))
    return last(fitting, lambda number: serve(deployment, demands, number).tokens_per_second >= speed)


def last(most: int, holds: Callable[[int], bool]) -> int:
    """The last of 1 ... most for which it holds, where it holds up to some number; 0 for none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def in_every_layout(
    config: AnyConfig, chip: Chip, count: int, precision: Precision, reached: float
) -> list[Deployment]:
    """On so many chips, in every layout that can be; nothing where there is none."""
    return [Deployment(config, chip, layout, precision, reached) for layout in layouts(config, chip, count)]


def deployments(
    config: AnyConfig, chip: Chip, count: int, *, precision: Precision = Precision.OFFICIAL, reached: float = 1.0
) -> list[Deployment]:
    """The same. UsageError where there is none."""
    found = in_every_layout(config, chip, count, precision, reached)
    if not found:
        obstacle = Layout(data=count).obstacle(config, chip, count)
        raise UsageError(f"the model cannot be spread over {count} {chip.name}: {obstacle}.")
    return found


def best_layout(found: Iterable[Deployment], demands: Sequence[Demand], speed: float) -> Served | None:
    """The layout that serves the most such requests, each at `speed` tokens a second or more; None where none does."""
    best: Served | None = None
    for deployment in found:
        at_once = most_at_once(deployment, demands, speed)
        if at_once:
            served = serve(deployment, demands, at_once)
            if best is None or served.requests_per_second > best.requests_per_second:
                best = served
    return best


@dataclass(frozen=True)
class BreakEven:
    """What chips cost a month whatever is asked, beside an API that is paid by the token.

    `at`: requests a month from which on the chips are cheaper. `reachable`: whether these can serve so many.
    """

    monthly: float
    at: float
    most: float

    @property
    def reachable(self) -> bool:
        return self.at <= self.most


def break_even(served: Served, dollars_a_request: float) -> BreakEven | None:
    """None where nobody knows what the chips cost, or the API costs nothing."""
    if served.monthly is None or not dollars_a_request:
        return None
    return BreakEven(served.monthly, served.monthly / dollars_a_request, served.most_a_month)
