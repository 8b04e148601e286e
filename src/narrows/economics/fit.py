"""Fit: whether chips hold so many users of so long a context, and how fast they all write then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from narrows.economics.chips import Chip
from narrows.economics.choose import counts
from narrows.economics.explain import of_chips, of_first_token, of_memory, of_step
from narrows.economics.money import PICODOLLARS
from narrows.economics.roofline import Deployment
from narrows.economics.serving import deployments, in_every_layout, last
from narrows.economics.step import SIDES, Step
from narrows.economics.work import AnyConfig, check_served
from narrows.errors import UsageError
from narrows.model.precision import Precision


@dataclass(frozen=True)
class Fit:
    """Users who all write at once, each behind `context` tokens. `capacity`: how many fit; `step`: of as many as
    there are or, where these do not fit, as do; None where none does; `chips`: all that there are."""

    deployment: Deployment
    users: int
    context: int
    capacity: int
    step: Step | None
    chips: int

    @property
    def fits(self) -> bool:
        return self.capacity >= self.users

    @property
    def now(self) -> int:
        """Users of the step."""
        return min(self.users, self.capacity)

    @property
    def first_token_seconds(self) -> float:
        """Of a whole context that nobody read before, for one who asks alone."""
        return self.deployment.first_token_seconds(self.context)

    @property
    def dollars_per_million(self) -> float | None:
        """Of written tokens, while all these users write."""
        hourly = self.deployment.chip.hourly
        if self.step is None or hourly is None:
            return None
        return self.chips * hourly / PICODOLLARS / 3600 * self.step.seconds / self.now * 1e6

    @property
    def joules(self) -> float | None:
        """Of a written token, at what the chips draw at most; None where nobody says how much."""
        watts = self.deployment.chip.watts
        if self.step is None or watts is None:
            return None
        return self.deployment.layout.chips * watts * self.step.seconds / self.now

    @property
    def idle(self) -> int:
        """Chips that are left out, where fewer hold more or are faster."""
        return self.chips - self.deployment.layout.chips

    def advice(self) -> Iterator[str]:
        """What would hold all users, where these chips do not in this layout: another layout, more chips, shorter
        contexts."""
        if self.fits:
            return
        deployment = self.deployment
        chip = deployment.chip
        what = "the user" if self.users == 1 else f"all {self.users:,} users"
        other = best_fit(_possible(deployment, self.chips), self.users, self.context)
        if other.fits:
            yield f"In the layout {other.deployment.layout} they would hold {what}."
            return
        for more in counts(chip, None):
            if more > self.chips and _most(deployment, more, self.context) >= self.users:
                yield f"{more}x{chip.name} would hold {what}."
                break
        shorter = _longest(deployment, self.chips, self.users, self.context)
        if shorter:
            yield f"{self.chips}x{chip.name} would hold {what} with contexts of {shorter:,} tokens."

    def explain(self) -> Iterator[tuple[str, str]]:
        """What lies on a chip, a step, the first token, dollars and joules."""
        step, chips, chip = self.step, self.deployment.layout.chips, self.deployment.chip
        yield from of_memory(self.deployment, self.context)
        if step is None:
            return
        yield from of_step(f"a step of {self.now:,}", step)
        yield from of_first_token(self.deployment, self.context)
        yield from of_chips(chip, self.chips)
        if self.dollars_per_million is not None:
            hour = 3600 / step.seconds * self.now
            yield "a million written", f"${self.dollars_per_million:,.4g}, of {hour:,.0f} tokens an hour"
        if self.joules is not None:
            watts = f"{chips} × {chip.watts:,g} W × {step.seconds * 1e3:.4g} ms ÷ {self.now:,} tokens"
            yield "joules each", f"{self.joules:,.4g} = {watts}"

    def told(self) -> dict[str, Any]:
        """As JSON."""
        deployment, step = self.deployment, self.step
        return {
            "chips": self.chips,
            "idle": self.idle,
            "layout": str(deployment.layout),
            "reached": deployment.reached,
            "users": self.users,
            "context": self.context,
            "fits": self.fits,
            "capacity": self.capacity,
            "advice": list(self.advice()),
            "memory_bytes": deployment.memory,
            "weight_bytes": deployment.weight_bytes,
            "request_bytes": deployment.request_bytes(self.context),
            "step": None
            if step is None
            else {
                "users": self.now,
                "seconds": step.seconds,
                "tokens_per_second_each": 1 / step.seconds,
                "binds": step.binds,
                "first_token_seconds": self.first_token_seconds,
                "dollars_per_million_output": self.dollars_per_million,
                "joules_per_output": self.joules,
                **{f"{side}_seconds": step.shown(side) for side in SIDES},
            },
        }


def fit(deployment: Deployment, users: int, context: int, chips: int | None = None) -> Fit:
    """In this layout, of so many chips (None: no more than it takes). UsageError for a context that the model has no
    positions for."""
    if users < 1:
        raise UsageError(f"there are {users} users; give at least 1.")
    check_served(deployment.config, context)
    capacity = deployment.capacity(context)
    now = min(users, capacity)
    step = deployment.step(now, context) if now else None
    return Fit(deployment, users, context, capacity, step, chips or deployment.layout.chips)


def best_fit(found: Sequence[Deployment], users: int, context: int) -> Fit:
    """Of several layouts the one that is fastest where all fit or, where they never do, that holds the most. Those of
    fewer chips leave some idle."""
    chips = max(deployment.layout.chips for deployment in found)
    fits = [fit(deployment, users, context, chips) for deployment in found]
    return min(fits, key=lambda one: (-one.now, one.step.seconds if one.step else one.deployment.weight_bytes))


def possible(
    config: AnyConfig, chip: Chip, count: int, *, precision: Precision = Precision.OFFICIAL, reached: float = 1.0
) -> list[Deployment]:
    """In every layout of so many chips, and of somewhat fewer: 19 chips may hold less than 18 of them. UsageError where
    there is none."""
    found = deployments(config, chip, count, precision=precision, reached=reached)
    for fewer in range(count - count // 4, count):
        found += in_every_layout(config, chip, fewer, precision, reached)
    return found


def _possible(like: Deployment, count: int) -> list[Deployment]:
    return possible(like.config, like.chip, count, precision=like.precision, reached=like.reached)


def _most(like: Deployment, count: int, context: int) -> int:
    """The most such requests that so many chips hold, in any layout."""
    found = in_every_layout(like.config, like.chip, count, like.precision, like.reached)
    return max((deployment.capacity(context) for deployment in found), default=0)


def _longest(like: Deployment, count: int, users: int, context: int) -> int:
    """The longest context, in multiples of 1,024, of which so many requests fit; 0 where none does."""
    return 1024 * last(context // 1024, lambda blocks: _most(like, count, 1024 * blocks) >= users)
