"""Deployment: the least time that a network's steps take on given chips, and the requests that these hold.

A roofline: of every chip, the longer of its products' time and its memory's, and behind that the time of its links,
which nothing overlaps with. Work is spread evenly. Left out are sums, norms, softmaxes, sampling, and every kernel's
own start: what is reached of a roofline is a property of the software, and `reached` says how much is assumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from narrows.economics.chips import Chip
from narrows.economics.layout import Layout
from narrows.economics.storage import history_bytes, history_read, pool_bytes
from narrows.economics.traffic import chosen_experts, read_of
from narrows.economics.weights import EMBEDDING, ROUTED, Weight, weights
from narrows.economics.work import AnyConfig, Kind, Product, decode_work, prefill_work
from narrows.errors import UsageError
from narrows.model.config import ModelConfig
from narrows.model.precision import Precision

ROOM = 0.1
"""Of a chip's memory, what weights and histories leave to activations, buffers and the runtime."""

COLLECTIVE_SECONDS = 10e-6
"""What one exchange between chips takes at least, however little is sent: the usual order of an all-reduce or
all-to-all over NVLink. An assumption."""

CHUNK = 8192
"""Prompt tokens that are read at once, unless it is said."""

# What the chips of a tensor group have a part of each; of the other weights every chip has all.
_SPLIT = {("attention", None), ("indexer", "queries"), ("head", None), (EMBEDDING, None)}

_DISPATCH_BYTES, _COMBINE_BYTES, _SUM_BYTES = 1, 2, 2
"""Of a number that goes to an expert (FP8), comes back, or is summed over a group (BF16)."""


SIDES = ("products", "weights", "history", "links")
"""What a step's time goes to."""


@dataclass(frozen=True)
class Term:
    """One part of a step's time. `side`: which limit it counts against."""

    side: str
    name: str
    seconds: float
    terms: str


@dataclass(frozen=True)
class Step:
    """The time of one step on every chip of a stage, part by part. `stages` follow each other; `reached` is the share
    of the roofline that is assumed."""

    parts: tuple[Term, ...]
    stages: int
    reached: float

    def of(self, side: str) -> float:
        """Seconds of one stage's products, weights, history or links."""
        return sum(part.seconds for part in self.parts if part.side == side)

    @property
    def stage_seconds(self) -> float:
        """From one set of rows to the next in a stage."""
        return (max(self.of("products"), self.of("weights") + self.of("history")) + self.of("links")) / self.reached

    @property
    def seconds(self) -> float:
        """Through all stages."""
        return self.stages * self.stage_seconds

    @property
    def binds(self) -> str:
        """What takes longest."""
        return max(SIDES, key=self.of)


@dataclass(frozen=True)
class Deployment:
    """A network in a precision on chips in a layout; prompts are read `chunk` tokens at once. UsageError for a layout
    that cannot be."""

    config: AnyConfig
    chip: Chip
    layout: Layout
    precision: Precision = Precision.OFFICIAL
    reached: float = 1.0
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        self.layout.check(self.config, self.chip, self.layout.chips)
        if not 0 < self.reached <= 1:
            raise UsageError(f"the share of the roofline that is reached is {self.reached}; give one above 0, up to 1.")

    # -- memory ---------------------------------------------------------------------------------------------------

    @property
    def memory(self) -> int:
        """Bytes of one chip for weights and histories."""
        return int(self.chip.memory * (1 - ROOM))

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights on one chip, that of the fullest stage."""
        return ceil(self._stage_share * sum(self._on_a_chip(weight) for weight in self._weights))

    def request_bytes(self, context: int) -> int:
        """Bytes of one request's history on each chip that holds it."""
        return ceil(self._stage_share * pool_bytes(self.config, context, self.precision))

    def capacity(self, context: int) -> int:
        """Requests of so many tokens that fit beside the weights; 0 where these alone are too much."""
        left = self.memory - self.weight_bytes
        return self.layout.data * max(0, left // max(1, self.request_bytes(context)))

    # -- time -----------------------------------------------------------------------------------------------------

    def step(self, requests: int, context: int) -> Step:
        """A decoded token for each of so many requests, each behind a context of so many tokens, itself included.

        With several stages, each works on its part of the requests while the others work on theirs.
        """
        if requests < 1:
            raise UsageError(f"there are {requests} requests; give at least 1.")
        at_once = ceil(requests / self.layout.pipeline)
        rows = ceil(at_once / self.layout.data)
        parts = [
            *self._products(decode_work(self.config, context), rows, at_once),
            *self._weight_reads(at_once),
            *self._history_reads(rows, context),
            *self._links(rows, at_once),
        ]
        return Step(tuple(parts), self.layout.pipeline, self.reached)

    def prefill_step(self, tokens: int, past: int, *, alone: bool) -> Step:
        """One chunk of a prompt of so many tokens behind `past` known ones, of the average of its chunks.

        `alone`: no other request is there, so that the other groups' chips help with the experts only; else every
        group reads a prompt of its own.
        """
        chunks = ceil(tokens / self.chunk)
        rows = ceil(tokens / chunks)
        at_once = rows if alone else rows * self.layout.data
        whole = prefill_work(self.config, tokens, past)
        parts = [
            *self._products(whole, 1 / chunks, at_once / rows / chunks),
            *self._weight_reads(at_once),
            *self._kept_reads(past + tokens // 2),
            *self._links(rows, at_once),
        ]
        return Step(tuple(parts), self.layout.pipeline, self.reached)

    def first_token_seconds(self, tokens: int, past: int = 0) -> float:
        """To the first token behind a prompt of so many tokens that are not known, while nobody else asks."""
        step = self.prefill_step(tokens, past, alone=True)
        return (ceil(tokens / self.chunk) + self.layout.pipeline - 1) * step.stage_seconds

    def prefill_seconds(self, tokens: int, past: int = 0) -> float:
        """What such a prompt takes of all chips while they are all busy with prompts."""
        if not tokens:
            return 0.0
        step = self.prefill_step(tokens, past, alone=False)
        return ceil(tokens / self.chunk) * step.stage_seconds / self.layout.data

    # -- their parts ----------------------------------------------------------------------------------------------

    @cached_property
    def _weights(self) -> list[Weight]:
        return weights(self.config, self.precision)

    @property
    def _stage_share(self) -> float:
        """Of all layers, those of the longest stage."""
        return ceil(self.config.num_hidden_layers / self.layout.pipeline) / self.config.num_hidden_layers

    def _parts_of(self, weight: Weight) -> int:
        """Chips that such weights are spread over."""
        if weight.component == ROUTED:
            return self.layout.stage
        split = (weight.component, None) in _SPLIT or (weight.component, weight.name) in _SPLIT
        return self.layout.tensor if split else 1

    def _on_a_chip(self, weight: Weight) -> float:
        return weight.bytes / self._parts_of(weight)

    def _products(self, work: list[Product], rows: float, at_once: float) -> Iterator[Term]:
        """`rows` of a group, `at_once` of all groups of a stage, times what `work` counts."""
        for product in work:
            kind = self._kind(product.kind)
            routed = (product.component, product.name) == ("experts", "routed")
            each = at_once / self.layout.stage if routed else rows / self.layout.tensor
            flops = product.flops * each * self._stage_share
            rate = self.chip.rate(kind)
            yield Term(
                "products",
                f"{product.component}: {product.name}",
                flops / rate,
                f"{flops / 1e9:,.4g} GFLOP a chip, at {rate / 1e12:,.4g} TFLOP/s ({kind})",
            )

    def _kind(self, kind: Kind) -> Kind:
        """What such a product reads in this precision."""
        if self.precision is Precision.OFFICIAL:
            return kind
        return "fp8" if self.precision is Precision.FP8 and kind == "fp8" else "bf16"

    def _weight_reads(self, at_once: int) -> Iterator[Term]:
        """Every weight once, of the experts those that are chosen."""
        components: dict[str, float] = {}
        for weight in self._weights:
            read = read_of(self.config, weight, at_once) / self._parts_of(weight)
            components[weight.component] = components.get(weight.component, 0.0) + read
        chosen, experts = chosen_experts(self.config, at_once), self.config.n_routed_experts
        for component, size in components.items():
            of = f", {chosen:,.1f} of {experts} experts" if component == ROUTED else ""
            yield self._memory("weights", component, size * self._stage_share, of)

    def _history_reads(self, rows: int, context: int) -> Iterator[Term]:
        """Every chip of a group reads all that its heads attend to."""
        for read in history_read(self.config, context, self.precision):
            terms = f", {rows:,} requests × {read.terms}"
            yield self._memory("history", read.component, rows * read.bytes * self._stage_share, terms)

    def _kept_reads(self, context: int) -> Iterator[Term]:
        """A chunk's rows share what they read of the tokens before them: all of it, once."""
        kept = history_bytes(self.config, context, self.precision) * self._stage_share
        yield self._memory("history", "all that is kept", kept, f", of {context:,} tokens on average")

    def _memory(self, side: str, name: str, size: float, terms: str) -> Term:
        rate = self.chip.bandwidth
        return Term(side, name, size / rate, f"{size / 1e9:,.4g} GB a chip, at {rate / 1e9:,.4g} GB/s{terms}")

    def _links(self, rows: int, at_once: int) -> Iterator[Term]:
        n, layout = self.config, self.layout
        layers = ceil(n.num_hidden_layers / layout.pipeline)
        if layout.tensor > 1:
            size = 2 * (layout.tensor - 1) / layout.tensor * rows * n.hidden_size * _SUM_BYTES
            yield self._link("sums over a tensor group", layers, size, 1.0)
        if layout.stage > 1:
            away = (layout.stage - 1) / layout.stage
            each = _DISPATCH_BYTES + _COMBINE_BYTES
            size = at_once / layout.stage * n.num_experts_per_tok * n.hidden_size * each * away
            near = (min(layout.stage, self.chip.node) - 1) / (layout.stage - 1)
            yield self._link("rows to experts and back", 2 * layers, size / 2, near)
        if layout.pipeline > 1:
            streams = n.hc_mult if isinstance(n, ModelConfig) else 1
            size = rows * streams * n.hidden_size * _SUM_BYTES / layout.tensor
            near = 0.0 if layout.chips > self.chip.node else 1.0
            yield self._link("streams to the next stage", 1, size, near)

    def _link(self, name: str, times: int, size: float, near: float) -> Term:
        """`size` bytes a chip sends each of so many times, the share `near` of it to chips of its own node."""
        link, network = self.chip.link, self.chip.network
        seconds = COLLECTIVE_SECONDS
        if near:
            assert link is not None
            seconds += size * near / link
        if near < 1:
            assert network is not None
            seconds += size * (1 - near) / network
        return Term(
            "links", name, times * seconds, f"{times} times {size / 1e6:,.4g} MB a chip, {near:.0%} in its node"
        )
