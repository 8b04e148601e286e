"""Deployment: the least time that a network's steps take on given chips, and the requests that these hold.

A roofline: of a chip, the longer of its products' time and its memory's, and behind that the time of its links, which
nothing overlaps with. Work is spread as evenly as whole rows and experts can be. Left out are sums, norms, softmaxes,
sampling, and every kernel's own start: what is reached of a roofline is a property of the software, and `reached` says
how much is assumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from narrows.economics.chips import Chip
from narrows.economics.layout import Layout
from narrows.economics.step import Step, Term
from narrows.economics.storage import history_bytes, history_read, pool_bytes
from narrows.economics.traffic import chosen_experts, read_of
from narrows.economics.weights import EMBEDDING, ROUTED, Weight, weights
from narrows.economics.work import AnyConfig, Kind, Product, decode_work, prefill_work
from narrows.errors import UsageError
from narrows.model.config import ModelConfig
from narrows.model.layer_kind import LayerKind
from narrows.model.precision import Precision

ROOM = 0.1
"""Of a chip's memory, what weights and histories leave to activations, buffers and the runtime."""

COLLECTIVE_SECONDS = 10e-6
"""What one exchange between chips takes at least, however little is sent: the usual order of an all-reduce or
all-to-all over NVLink. An assumption."""

CHUNK = 8192
"""Prompt tokens that are read at once, unless it is said."""

# Whose heads the chips of a tensor group share; of all other weights but experts every chip has all, and rows are
# divided. The indexer's too: heads' scores would have to be summed over all chips, of every entry for every row.
_HEADS = {
    *(("attention", name) for name in ("query up", "output down", "output up", "latent up", "output")),
    *(("attention projections", name) for name in ("query up", "absorbed", "output")),
    *(("attention core", name) for name in ("window", "CSA entries", "HCA entries", "selected tokens")),
    *(("head", "head"), ("head", "logits"), (EMBEDDING, EMBEDDING)),
}

_DISPATCH_BYTES, _COMBINE_BYTES, _SUM_BYTES, _INDEX_BYTES = 1, 2, 2, 4
"""Of a number that goes to an expert (FP8), comes back, or is summed over a group (BF16); of a selected entry's."""


@dataclass(frozen=True)
class _Rows:
    """Rows of a step: of a tensor group, of that of its chips which has most of them, of all groups of a stage, and one
    of them. Of a prompt's chunk, in parts of the prompt."""

    group: float
    chip: float
    all: float
    one: float = 1.0


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
        return ceil(self.stage_share * sum(self._on_a_chip(weight) for weight in self._weights))

    def explain_weights(self) -> Iterator[tuple[str, str]]:
        """What of every component lies on that chip, and how that comes about."""
        for component in dict.fromkeys(weight.component for weight in self._weights):
            parts: dict[int, int] = {}
            for weight in self._weights:
                if weight.component == component:
                    spread = self._parts_of(weight)
                    parts[spread] = parts.get(spread, 0) + weight.bytes
            size = self.stage_share * sum(whole / spread for spread, whole in parts.items())
            shares = " + ".join(f"{whole / 1e9:,.4g} GB ÷ {spread}" for spread, whole in parts.items())
            yield f"weights: {component}", f"{size / 1e9:,.4g} GB = {self.stage_share:.4g} of the layers × ({shares})"

    def request_bytes(self, context: int) -> int:
        """Bytes of one request's history on each chip that holds it."""
        return ceil(self.stage_share * pool_bytes(self.config, context, self.precision))

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
        own = ceil(rows / self.layout.tensor)
        parts = [
            *self._products(decode_work(self.config, context), _Rows(rows, own, at_once)),
            *self._weight_reads(at_once),
            *self._history_reads(rows, own, context),
            *self._links(rows, at_once),
        ]
        return Step(tuple(parts), self.layout.pipeline, self.reached)

    def prefill_step(self, tokens: int, past: int = 0, *, groups: int = 1) -> Step:
        """One chunk of a prompt of so many tokens behind `past` known ones, of the average of its chunks, while so many
        groups read a prompt each. All groups' chips have a part of the experts' work."""
        chunks = ceil(tokens / self.chunk)
        rows = ceil(tokens / chunks)
        part = 1 / chunks
        parts = [
            *self._products(
                prefill_work(self.config, tokens, past),
                _Rows(part, part / self.layout.tensor, part * groups, 1 / tokens),
            ),
            *self._weight_reads(rows * groups),
            *self._kept_reads(past + tokens // 2),
            *self._links(rows, rows * groups),
        ]
        return Step(tuple(parts), self.layout.pipeline, self.reached)

    def first_token_seconds(self, tokens: int, past: int = 0) -> float:
        """To the first token behind a prompt of so many tokens that are not known, while nobody else asks."""
        step = self.prefill_step(tokens, past)
        return (ceil(tokens / self.chunk) + self.layout.pipeline - 1) * step.stage_seconds

    def prefill_seconds(self, tokens: int, past: int = 0, *, requests: int) -> float:
        """What such a prompt takes of all chips, while so many requests run: each group reads a prompt of its own, if
        there are as many, and every stage a chunk of its own."""
        if not tokens:
            return 0.0
        if requests == 1:
            return self.first_token_seconds(tokens, past)
        groups = min(requests, self.layout.data)
        step = self.prefill_step(tokens, past, groups=groups)
        return ceil(tokens / self.chunk) * step.stage_seconds / groups

    # -- their parts ----------------------------------------------------------------------------------------------

    @cached_property
    def _weights(self) -> list[Weight]:
        return weights(self.config, self.precision)

    @property
    def stage_share(self) -> float:
        """Of all layers, those of the longest stage."""
        return ceil(self.config.num_hidden_layers / self.layout.pipeline) / self.config.num_hidden_layers

    def _parts_of(self, weight: Weight) -> int:
        """Chips that such weights are spread over."""
        if weight.component == ROUTED:
            return self.layout.stage
        return self.layout.tensor if (weight.component, weight.name) in _HEADS else 1

    def _on_a_chip(self, weight: Weight) -> float:
        return weight.bytes / self._parts_of(weight)

    def _products(self, work: list[Product], rows: _Rows) -> Iterator[Term]:
        """Of so many rows, times what `work` counts of one."""
        for product in work:
            kind = self._kind(product.kind)
            times = self._rows_of(product, rows)
            flops = product.flops * self.stage_share * times
            rate = self.chip.rate(kind)
            yield Term(
                "products",
                f"{product.component}: {product.name}",
                flops / rate,
                f"{_digits(flops / 1e9)} GFLOP a chip, at {_digits(rate / 1e12)} TFLOP/s ({kind}): "
                f"2 × {product.terms} × {_digits(times / rows.one)} rows × {self.stage_share:.4g} of the layers",
            )

    def _rows_of(self, product: Product, rows: _Rows) -> float:
        if (product.component, product.name) == ("experts", "routed"):
            # One expert's row at least, on the chip that has it.
            return max(rows.all / self.layout.stage, rows.one / self.config.num_experts_per_tok)
        return rows.group / self.layout.tensor if (product.component, product.name) in _HEADS else rows.chip

    def _kind(self, kind: Kind) -> Kind:
        """What such a product reads in this precision."""
        if self.precision is Precision.OFFICIAL:
            return kind
        return "fp8" if self.precision is Precision.FP8 and kind == "fp8" else "bf16"

    def _weight_reads(self, at_once: int) -> Iterator[Term]:
        """Every weight once, of the experts those that are chosen, of each layer one at least."""
        chosen, experts = chosen_experts(self.config, at_once), self.config.n_routed_experts
        components: dict[str, float] = {}
        for weight in self._weights:
            read = read_of(self.config, weight, at_once) / self._parts_of(weight)
            if weight.component == ROUTED:
                read = max(read, weight.bytes / experts)
            components[weight.component] = components.get(weight.component, 0.0) + read
        each = max(chosen / self.layout.stage, 1.0)
        for component, size in components.items():
            of = f", {each:,.1f} of {experts} experts a layer" if component == ROUTED else ""
            yield self._memory("weights", component, size * self.stage_share, of)

    def _history_reads(self, rows: int, own: int, context: int) -> Iterator[Term]:
        """Every chip of a group reads all that its heads attend to, and the keys of its own rows."""
        for read in history_read(self.config, context, self.precision):
            requests = own if read.component == "index keys" else rows
            terms = f", {requests:,} requests × {read.terms}"
            yield self._memory("history", read.component, requests * read.bytes * self.stage_share, terms)

    def _kept_reads(self, context: int) -> Iterator[Term]:
        """A chunk's rows share what they read of the tokens before them: all of it, once."""
        kept = history_bytes(self.config, context, self.precision) * self.stage_share
        yield self._memory("history", "all that is kept", kept, f", of {context:,} tokens on average")

    def _memory(self, side: str, name: str, size: float, terms: str) -> Term:
        rate = self.chip.bandwidth
        return Term(side, name, size / rate, f"{size / 1e9:,.4g} GB a chip, at {rate / 1e9:,.4g} GB/s{terms}")

    def _links(self, rows: int, at_once: int) -> Iterator[Term]:
        n, layout = self.config, self.layout
        layers = ceil(n.num_hidden_layers / layout.pipeline)
        if layout.tensor > 1:
            away = (layout.tensor - 1) / layout.tensor
            yield from self._link("sums over a tensor group", layers, 2 * away * rows * n.hidden_size * _SUM_BYTES, 1.0)
            indexed = ceil(self._indexers * self.stage_share)
            if indexed:
                yield from self._link("selected entries", indexed, away * rows * n.index_topk * _INDEX_BYTES, 1.0)
        if layout.stage > 1:
            away = (layout.stage - 1) / layout.stage
            each = _DISPATCH_BYTES + _COMBINE_BYTES
            size = ceil(at_once / layout.stage) * n.num_experts_per_tok * n.hidden_size * each * away
            near = (min(layout.stage, self.chip.node) - 1) / (layout.stage - 1)
            yield from self._link("rows to experts and back", 2 * layers, size / 2, near)
        if layout.pipeline > 1:
            streams = n.hc_mult if isinstance(n, ModelConfig) else 1
            size = rows * streams * n.hidden_size * _SUM_BYTES / layout.tensor
            near = 0.0 if layout.chips > self.chip.node else 1.0
            yield from self._link("streams to the next stage", 1, size, near)

    @property
    def _indexers(self) -> int:
        """Layers that have one."""
        n = self.config
        return n.layer_types.count(LayerKind.CSA) if isinstance(n, ModelConfig) else n.num_hidden_layers

    def _link(self, name: str, times: int, size: float, near: float) -> Iterator[Term]:
        """`size` bytes a chip sends each of so many times, the share `near` of it to chips of its own node."""
        link = self.chip.link_of(min(self.layout.chips, self.chip.node))
        seconds = 0.0
        if near:
            assert link is not None
            seconds += size * near / link
        if near < 1:
            assert self.chip.network is not None
            seconds += size * (1 - near) / self.chip.network
        terms = f"{times} times {size / 1e6:,.4g} MB a chip, {near:.0%} in its node"
        yield Term("links", name, times * seconds, terms)
        yield Term(
            "latency", name, times * COLLECTIVE_SECONDS, f"{times} times {COLLECTIVE_SECONDS * 1e6:g} µs, assumed"
        )


def _digits(number: float) -> str:
    """Four of them, or all before the point."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"
