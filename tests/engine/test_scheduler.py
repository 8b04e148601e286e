"""Scheduling, with numbers alone: budgets hold, nobody starves, higher priorities go first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from narrows.engine.scheduler import Job, Policy, admit, rank, share

POLICY = Policy(rows=32, least=4, patience=5)


@st.composite
def jobs(draw: st.DrawFn) -> list[Job]:
    made = []
    for number in range(draw(st.integers(0, 12))):
        length = draw(st.integers(1, 90))
        computed = draw(st.integers(0, length - 1))
        ends = frozenset(draw(st.lists(st.integers(1, length), max_size=3)))
        made.append(Job(number, length, draw(st.integers(-1, 1)), computed, draw(st.integers(0, 12)), 0, ends))
    return made


@given(jobs())
def test_a_step_keeps_to_its_rows_and_no_job_gets_more_than_it_can_take(given_jobs: list[Job]) -> None:
    granted = share(given_jobs, POLICY)
    assert sum(rows for _, rows in granted) <= POLICY.rows
    assert len({job.number for job, _ in granted}) == len(granted)
    for job, rows in granted:
        assert 1 <= rows <= job.missing
        assert not any(job.computed < end < job.computed + rows for end in job.boundaries)
    if given_jobs:
        assert granted
    decoding = [job for job in given_jobs if job.missing == 1]
    if len(decoding) <= POLICY.rows:
        assert {job.number for job in decoding} <= {job.number for job, _ in granted}


@given(jobs())
def test_rows_left_over_are_rows_that_nobody_can_take(given_jobs: list[Job]) -> None:
    granted = dict(share(given_jobs, POLICY))
    left = POLICY.rows - sum(granted.values())
    if left >= POLICY.least:
        for job in given_jobs:
            assert job in granted
            fair = max(POLICY.least, POLICY.rows // max(1, len(given_jobs)))
            assert granted[job] >= min(job.most(fair), job.most(POLICY.least))


@given(waiting=jobs(), running=jobs(), free=st.integers(0, 4))
def test_slots_go_to_the_highest_ranks_and_are_taken_from_lower_priorities_alone(
    waiting: list[Job], running: list[Job], free: int
) -> None:
    admitted, parked = admit(waiting, running, free, POLICY)
    assert len(admitted) == min(len(waiting), free + len(parked))
    assert admitted == sorted(waiting, key=lambda job: rank(job, POLICY))[: len(admitted)]
    for job, victim in zip(reversed(admitted), parked, strict=False):
        assert rank(victim, POLICY)[0] >= rank(job, POLICY)[0]
    for victim in parked:
        assert all(rank(other, POLICY) <= rank(victim, POLICY) for other in running if other not in parked)


@given(count=st.integers(2, 30), lengths=st.integers(1, 200))
def test_nobody_starves_behind_a_stream_of_urgent_jobs(count: int, lengths: int) -> None:
    """Two slots, and every step brings a more urgent job than the one that waits."""
    patient = Job(0, lengths)
    waiting, running = [patient], []
    for number in range(1, 40 * count):
        waiting.append(Job(number, 8, priority=2))
        admitted, parked = admit(waiting, running, 2 - len(running), POLICY)
        running = [job for job in running if job not in parked] + admitted
        waiting = [job for job in waiting if job not in admitted] + parked
        for job in (*waiting, *running):
            job.waited += 1
        for job, rows in share(running, POLICY):
            job.computed += rows
            job.waited = 0
        running = [job for job in running if job.missing]
        if not patient.missing:
            return
    raise AssertionError("the patient job never came to its end")


def test_short_prompts_do_not_wait_for_a_long_one() -> None:
    long, short = Job(0, 10_000, slot=0), Job(1, 12, slot=1)
    assert dict(share([long, short], POLICY)) == {long: 16, short: 12}
