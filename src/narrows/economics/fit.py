"""Fit: whether chips hold so many users of so long a context, and how fast they all write then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from narrows.economics.choose import MOST_NODES
from narrows.economics.layout import layouts
from narrows.economics.money import PICODOLLARS
from narrows.economics.roofline import SIDES, Deployment, Step
from narrows.economics.work import check_context
from narrows.errors import UsageError


@dataclass(frozen=True)
class Fit:
    """Users who all write at once, each behind `context` tokens. `capacity`: how many fit; `step`: of as many as
    there are or, where these do not fit, as do; None where none does."""

    deployment: Deployment
    users: int
    context: int
    capacity: int
    step: Step | None

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
        return self.deployment.layout.chips * hourly / PICODOLLARS / 3600 * self.step.seconds / self.now * 1e6

    @property
    def joules(self) -> float | None:
        """Of a written token, at what the chips draw at most; None where nobody says how much."""
        watts = self.deployment.chip.watts
        if self.step is None or watts is None:
            return None
        return self.deployment.layout.chips * watts * self.step.seconds / self.now

    def advice(self) -> Iterator[str]:
        """What would hold all users, where these chips do not: more of them, or shorter contexts."""
        if self.fits:
            return
        deployment = self.deployment
        chip, count = deployment.chip, deployment.layout.chips
        for nodes in range(1, MOST_NODES + 1):
            more = nodes * chip.node
            if more > count and _most(deployment, more, self.context) >= self.users:
                yield f"{more}x{chip.name} would hold all {self.users:,}."
                break
        shorter = _longest(deployment, self.users, self.context)
        if shorter:
            yield f"{count}x{chip.name} would hold all {self.users:,} with contexts of {shorter:,} tokens."

    def told(self) -> dict[str, Any]:
        """As JSON."""
        deployment, step = self.deployment, self.step
        return {
            "chips": deployment.layout.chips,
            "layout": str(deployment.layout),
            "reached": deployment.reached,
            "users": self.users,
            "context": self.context,
            "fits": self.fits,
            "capacity": self.capacity,
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
                **{f"{side}_seconds": step.stages * step.of(side) / step.reached for side in SIDES},
            },
        }


def fit(deployment: Deployment, users: int, context: int) -> Fit:
    """In this layout. UsageError for a context that the model has no positions for."""
    if users < 1:
        raise UsageError(f"there are {users} users; give at least 1.")
    check_context(deployment.config, context)
    capacity = deployment.capacity(context)
    now = min(users, capacity)
    return Fit(deployment, users, context, capacity, deployment.step(now, context) if now else None)


def best_fit(found: Sequence[Deployment], users: int, context: int) -> Fit:
    """Of several layouts the one that is fastest where all fit or, where they never do, that holds the most."""
    fits = [fit(deployment, users, context) for deployment in found]
    return min(fits, key=lambda one: (-one.now, one.step.seconds if one.step else one.deployment.weight_bytes))


def _most(like: Deployment, count: int, context: int) -> int:
    """The most such requests that so many chips hold, in any layout."""
    made = [
        Deployment(like.config, like.chip, layout, like.precision) for layout in layouts(like.config, like.chip, count)
    ]
    return max((deployment.capacity(context) for deployment in made), default=0)


def _longest(like: Deployment, users: int, context: int) -> int:
    """The longest context, in multiples of 1,024, of which so many requests fit; 0 where none does."""
    low, high = 0, context // 1024
    while low < high:
        middle = (low + high + 1) // 2
        if _most(like, like.layout.chips, middle * 1024) >= users:
            low = middle
        else:
            high = middle - 1
    return low * 1024
