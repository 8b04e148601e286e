"""Where figures come from: pairs of what is explained and its terms."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from narrows.economics.chips import Chip
from narrows.economics.money import PICODOLLARS
from narrows.economics.roofline import ROOM, Deployment
from narrows.economics.serving import Served
from narrows.economics.step import SIDES, Step
from narrows.economics.storage import kept

Line = tuple[str, str]


def of_chips(chip: Chip, count: int) -> Iterator[Line]:
    """What they cost an hour."""
    source = f" ({chip.prices})" if chip.prices else ""
    yield "a chip an hour", f"{chip.hourly_terms}{source}"
    if chip.hourly is not None:
        each = chip.hourly / PICODOLLARS
        yield "all chips an hour", f"${count * each:,.4g} = {count} × ${each:,.4g}"


def of_memory(deployment: Deployment, context: int) -> Iterator[Line]:
    """What lies on one chip, and how many requests of so many tokens fit."""
    chip = deployment.chip
    yield "memory for us", f"{deployment.memory / 1e9:,.4g} GB = {chip.memory / 1e9:,.4g} GB less {ROOM:.0%}"
    yield from deployment.explain_weights()
    each, left = deployment.request_bytes(context), deployment.memory - deployment.weight_bytes
    for part in kept(deployment.config, context, deployment.precision):
        yield f"a history: {part.component}", f"{part.bytes / 1e9:,.4g} GB = {part.terms}"
    share = f"{deployment.stage_share:.4g} of it on each chip of a stage"
    yield "a history on a chip", f"{each / 1e9:,.4g} GB: {share}, in whole blocks and with the state beside them"
    groups = deployment.layout.data
    terms = f"{groups} groups × ⌊{max(0, left) / 1e9:,.4g} GB left ÷ {each / 1e9:,.4g} GB⌋"
    yield "requests that fit", f"{deployment.capacity(context):,} = {terms}"


def of_step(name: str, step: Step, where: str = "") -> Iterator[Line]:
    """Its parts, and how they add up; `where`: what is to be said beside."""
    for side in SIDES:
        for part in step.parts:
            if part.side == side:
                yield f"{name}: {side}: {part.name}", f"{part.seconds * 1e3:.4g} ms = {part.terms}"
    products, memory = step.of("products"), step.of("weights") + step.of("history")
    yield (
        name,
        f"{step.seconds * 1e3:.4g} ms = {step.stages} stages × ((the longer of {products * 1e3:.4g} ms of products and "
        f"{memory * 1e3:.4g} ms of memory, + {step.of('links') * 1e3:.4g} ms of links) ÷ {step.reached:.4g} reached + "
        f"{step.of('latency') * 1e3:.4g} ms of latency){where}",
    )


def of_first_token(deployment: Deployment, tokens: int, past: int = 0) -> Iterator[Line]:
    """Of a prompt of so many tokens that are not known, alone."""
    step = deployment.prefill_step(tokens, past)
    chunks = ceil(tokens / deployment.chunk)
    yield from of_step("a chunk of the prompt, alone", step)
    seconds, stages = deployment.first_token_seconds(tokens, past), deployment.layout.pipeline
    terms = f"({chunks} chunks + {stages} - 1 stages) × {step.stage_seconds * 1e3:.4g} ms of a stage"
    yield "first token, alone", f"{seconds:.4g} s = {terms}"


def of_served(served: Served) -> Iterator[Line]:
    """Requests of every kind, and what they come to."""
    deployment, at_once = served.deployment, served.at_once
    for number, demand in enumerate(served.demands, start=1):
        kind = f"kind {number}: " if len(served.demands) > 1 else ""
        miss = demand.prompt - demand.hit
        if miss:
            groups = min(at_once, deployment.layout.data)
            step = deployment.prefill_step(miss, demand.hit, groups=groups)
            yield from of_step(f"{kind}a chunk of {groups} prompts", step)
            seconds = deployment.prefill_seconds(miss, demand.hit, requests=at_once)
            yield f"{kind}a prompt", f"{seconds:.4g} s of all chips, {ceil(miss / deployment.chunk)} chunks"
        if demand.output:
            step = deployment.step(at_once, demand.halfway)
            yield from of_step(f"{kind}a step of {at_once}", step, f", behind {demand.halfway:,} tokens")
            seconds = demand.output * step.seconds / at_once
            yield (
                f"{kind}what is written",
                f"{seconds:.4g} s of all chips = {demand.output:,} steps ÷ {at_once} at once",
            )
    each = served.prefill_seconds + served.decode_seconds
    yield (
        "a request",
        f"{each:.4g} s of all chips = {served.prefill_seconds:.4g} s to read {served.mean_miss:,.4g} tokens + "
        f"{served.decode_seconds:.4g} s to write {served.mean_output:,.4g}, on average over all kinds",
    )
