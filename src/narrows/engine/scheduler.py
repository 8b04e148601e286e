"""Who runs next, and with how many tokens: plain numbers, no tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(eq=False)
class Job:
    """What scheduling knows of a sequence.

    `length` tokens are known, of which `computed` are in its history; `priority`: higher goes first; `number`: the
    order of arrival; `waited`: steps since it last got a row; `slot`: it holds one; `boundaries`: lengths at which a
    step must end, because a snapshot is wanted there; `drafts`: guessed tokens behind the known ones, worth a row each
    where there are rows to spare.
    """

    number: int
    length: int
    priority: int = 0
    computed: int = 0
    waited: int = 0
    slot: int | None = None
    boundaries: frozenset[int] = frozenset()
    drafts: int = 0

    @property
    def missing(self) -> int:
        """Rows until its next token can be drawn."""
        return self.length - self.computed

    def most(self, rows: int) -> int:
        """How many of `rows` it can take in one step: no more than are missing, and not across a boundary."""
        end = min((b for b in self.boundaries if b > self.computed), default=self.length)
        return min(rows, self.missing, end - self.computed)


@dataclass(frozen=True)
class Policy:
    """`rows` a step has at most, and of them `least` a prefill gets at least, so that no prefill is cut into crumbs;
    every `patience` steps without a row count as one priority more, so that nothing starves."""

    rows: int = 1024
    least: int = 128
    patience: int = 32


def rank(job: Job, policy: Policy) -> tuple[int, int]:
    """Jobs of a lower rank go first."""
    return -(job.priority + job.waited // policy.patience), job.number


def share(jobs: Iterable[Job], policy: Policy) -> list[tuple[Job, int]]:
    """Rows of one step for jobs that hold a slot: first a row to everyone who decodes, then the rest to prefills.

    The prefills of the highest rank get equal shares, so that a short prompt does not wait for a long one to end. What
    they leave goes to drafts.
    """
    order = sorted(jobs, key=lambda job: rank(job, policy))
    left = policy.rows
    granted: list[tuple[Job, int]] = []
    for job in order:
        if job.missing == 1 and left:
            granted.append((job, 1))
            left -= 1
    prefills = [job for job in order if job.missing > 1]
    while prefills and left:
        job = prefills.pop(0)
        fair = max(policy.least, left // (len(prefills) + 1))
        rows = job.most(min(left, fair))
        granted.append((job, rows))
        left -= rows
    for place, (job, rows) in enumerate(granted):
        if rows == job.missing:
            drafts = min(job.drafts, left)
            granted[place] = job, rows + drafts
            left -= drafts
    return granted


def admit(
    waiting: Iterable[Job], running: Sequence[Job], free_slots: int, policy: Policy
) -> tuple[list[Job], list[Job]]:
    """-> who gets a slot now, in order, and which running jobs give theirs up for it.

    A running job gives way only to a higher priority: changing places costs both.
    """
    order = sorted(waiting, key=lambda job: rank(job, policy))
    admitted, parked = order[:free_slots], []
    victims = sorted(running, key=lambda job: rank(job, policy))
    for job in order[free_slots:]:
        if not victims or rank(victims[-1], policy)[0] <= rank(job, policy)[0]:
            break
        parked.append(victims.pop())
        admitted.append(job)
    return admitted, parked
