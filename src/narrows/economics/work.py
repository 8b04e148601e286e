"""What a token multiplies: every product of a network, as a function of the tokens before it. Needs no weights.

Counted are products with matrices and of attention; sums, norms, softmaxes, hyper-connections' mixing and RoPE are not,
nor the embedding and the MTP block. Of a step over several rows, each row's are counted as if it stood alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from narrows.errors import UsageError
from narrows.model.config import ModelConfig
from narrows.model.layer_kind import LayerKind
from narrows.model.v32.config import V32Config

AnyConfig = ModelConfig | V32Config

Kind = Literal["bf16", "fp8", "fp4"]
"""What a product reads, in the published precisions: BF16 on both sides; FP8 activations with FP8 or FP4 weights; FP4
on both sides (V4's index scores)."""

FP8_EQUIVALENT: dict[Kind, Fraction] = {"bf16": Fraction(2), "fp8": Fraction(1), "fp4": Fraction(1, 2)}
"""What an operation weighs in "equivalent FP8 FLOPs" (R figure 1), as hardware has it: half as wide, twice as fast."""


@dataclass(frozen=True)
class Product:
    """Multiply-adds of one kind and place, for one token or several, over all layers that have it.

    `terms` says where they come from, for who wants it explained.
    """

    component: str
    name: str
    macs: int
    kind: Kind
    terms: str

    @property
    def flops(self) -> int:
        """Operations: a multiply-add is two."""
        return 2 * self.macs

    @property
    def equivalent(self) -> Fraction:
        """In FP8 operations."""
        return self.flops * FP8_EQUIVALENT[self.kind]


def decode_work(config: AnyConfig, context: int) -> list[Product]:
    """The products of one token, the last of a context of so many, itself included. UsageError for none, or more than
    the network has positions."""
    check_context(config, context)
    return list(_products(config, context - 1, 1))


def prefill_work(config: AnyConfig, tokens: int, past: int = 0, *, logits: int = 1) -> list[Product]:
    """The products of so many tokens behind `past` others, of which the head reads the last `logits`."""
    if tokens < 1 or past < 0 or not 0 <= logits <= tokens:
        raise UsageError(f"{tokens} tokens behind {past}, of which the head reads {logits}: give numbers that can be.")
    check_context(config, past + tokens)
    return list(_products(config, past, tokens, logits))


def total(work: Iterable[Product]) -> Fraction:
    """All of it in FP8 operations."""
    return sum((product.equivalent for product in work), Fraction(0))


def check_served(config: AnyConfig, context: int) -> None:
    """UsageError for a context of nothing, or of more than the network has positions: V3.2 too, when it is to serve."""
    check_context(config, context)
    _check_positions(config, context)


def check_context(config: AnyConfig, context: int) -> None:
    """UsageError for none, or more than can be counted. V3.2's positions end where it was trained to; its formulas do
    not, or nothing could be compared at a million tokens."""
    if isinstance(context, bool) or not isinstance(context, int) or context < 1:
        raise UsageError(f"the context is {context!r}; give a whole number of tokens from 1.")
    if isinstance(config, ModelConfig):
        _check_positions(config, context)


def _check_positions(config: AnyConfig, context: int) -> None:
    if context > config.max_position_embeddings:
        raise UsageError(
            f"a context of {context:,} tokens lies beyond the model's {config.max_position_embeddings:,} positions."
        )


def _products(config: AnyConfig, past: int, tokens: int, logits: int = 1) -> Iterator[Product]:
    seen = _Seen(past, tokens)
    head = _Layers(1, logits)
    if isinstance(config, ModelConfig):
        yield from _v4(config, seen)
        yield head.each("hyper-connections", "head", config.hc_mult**2 * config.hidden_size, "bf16", "h·h·d")
    else:
        yield from _v32(config, seen)
    yield head.each("head", "logits", config.hidden_size * config.vocab_size, "bf16", "d·vocabulary")


@dataclass(frozen=True)
class _Seen:
    """Sums over tokens that stand at positions past, past + 1, ...: of what each may see, itself included."""

    past: int
    tokens: int

    def entries(self, ratio: int, most: int | None = None) -> int:
        """Entries of `ratio` tokens each, at most so many: Σ min(most, ⌊t / ratio⌋) over t = past + 1 ... past + n."""
        before, after = self.past, self.past + self.tokens
        return _entries(after, ratio, most) - _entries(before, ratio, most)


def _entries(tokens: int, ratio: int, most: int | None) -> int:
    """Σ min(most, ⌊t / ratio⌋) over t = 1 ... tokens."""
    whole, rest = divmod(tokens, ratio)
    reached = whole if most is None else min(whole, most)
    # t in [i·ratio, (i+1)·ratio) sees i entries; the last of these runs is not whole.
    growing = ratio * (reached * (reached - 1) // 2)
    full = tokens + 1 - reached * ratio
    assert full >= 0 or whole == 0
    return growing + reached * full if rest or whole else 0


@dataclass(frozen=True)
class _Layers:
    """Layers of one kind: their number, and the tokens that pass through them."""

    count: int
    tokens: int

    def each(self, component: str, name: str, macs: int, kind: Kind, terms: str) -> Product:
        """A product of every token."""
        return Product(component, name, self.count * self.tokens * macs, kind, f"{self.count} layers × ({terms})")

    def over(self, component: str, name: str, macs: int, seen: int, kind: Kind, terms: str) -> Product:
        """A product of every token with all that it sees, which is so much over all tokens."""
        shown = f"{self.count} layers × {terms} × {seen / self.tokens:,.2f} seen"
        return Product(component, name, self.count * macs * seen, kind, shown)


def _v4(config: ModelConfig, seen: _Seen) -> Iterator[Product]:
    """R §2; in which precision: R figure 1, and the report's section on numerics.

    In `terms`: d hidden size, H heads of c channels, q q_lora_rank, g groups of rank r at the output, I index heads of
    e channels, h streams, E experts of width w, of which k are active.
    """
    n = config
    d, heads, c, q = n.hidden_size, n.num_attention_heads, n.head_dim, n.q_lora_rank
    groups, r, index, e = n.o_groups, n.o_lora_rank, n.index_n_heads, n.index_head_dim
    every, csa, hca = (
        _Layers(sum(kind in kinds for kind in n.layer_types), seen.tokens)
        for kinds in (set(LayerKind), {LayerKind.CSA}, {LayerKind.HCA})
    )
    projections, core = "attention projections", "attention core"
    yield every.each(projections, "query down", d * q, "fp8", "d·q")
    yield every.each(projections, "query up", q * heads * c, "fp8", "q·H·c")
    yield every.each(projections, "window KV", d * c, "fp8", "d·c")
    yield every.each(projections, "output", heads * c * r + groups * r * d, "fp8", "H·c·r + g·r·d")
    both = 2 * heads * c
    yield every.over(core, "window", both, seen.entries(1, n.sliding_window), "bf16", "2·H·c")
    yield csa.over(core, "CSA entries", both, seen.entries(n.csa_ratio, n.index_topk), "bf16", "2·H·c")
    yield hca.over(core, "HCA entries", both, seen.entries(n.hca_ratio), "bf16", "2·H·c")
    yield csa.each("compressors", "CSA", 4 * d * c, "bf16", "2·d·2c")
    yield hca.each("compressors", "HCA", 2 * d * c, "bf16", "2·d·c")
    yield csa.each("indexer", "queries", q * index * e, "fp8", "q·I·e")
    yield csa.each("indexer", "weights", d * index, "bf16", "d·I")
    yield csa.each("indexer", "compressor", 4 * d * e, "bf16", "2·d·2e")
    yield csa.over("indexer", "scores", index * e, seen.entries(n.csa_ratio), "fp4", "I·e")
    h = n.hc_mult
    yield every.each("hyper-connections", "fn", 2 * (2 + h) * h * h * d, "bf16", "2·(2h + h²)·h·d")
    yield every.each("router", "affinities", d * n.n_routed_experts, "bf16", "d·E")
    expert = 3 * d * n.moe_intermediate_size
    yield every.each("experts", "routed", n.num_experts_per_tok * expert, "fp8", "k·3·d·w")
    yield every.each("experts", "shared", expert, "fp8", "3·d·w")


def _v32(config: V32Config, seen: _Seen) -> Iterator[Product]:
    """MLA absorbed, as it is served; index scores in FP8 (arXiv 2405.04434, 2512.02556).

    In `terms`: d hidden size, H heads of n channels without RoPE and p with it, v channels of value, q q_lora_rank, l
    kv_lora_rank, I index heads of e channels, E experts of width w, of which k are active, s shared ones, W the width
    of dense layers.
    """
    n = config
    d, heads, q, rank = n.hidden_size, n.num_attention_heads, n.q_lora_rank, n.kv_lora_rank
    nope, rope, value = n.qk_nope_head_dim, n.qk_rope_head_dim, n.v_head_dim
    index, e = n.index_n_heads, n.index_head_dim
    first = min(n.first_k_dense_replace, n.num_hidden_layers)
    every, dense, sparse = (
        _Layers(count, seen.tokens) for count in (n.num_hidden_layers, first, n.num_hidden_layers - first)
    )
    projections = "attention projections"
    yield every.each(projections, "query down", d * q, "fp8", "d·q")
    yield every.each(projections, "query up", q * heads * (nope + rope), "fp8", "q·H·(n + p)")
    yield every.each(projections, "latent", d * (rank + rope), "fp8", "d·(l + p)")
    yield every.each(projections, "absorbed", heads * rank * (nope + value), "fp8", "H·l·(n + v)")
    yield every.each(projections, "output", heads * value * d, "fp8", "H·v·d")
    attended = seen.entries(1, n.index_topk)
    yield every.over("attention core", "selected tokens", heads * (2 * rank + rope), attended, "bf16", "H·(2l + p)")
    yield every.each("indexer", "queries", q * index * e, "fp8", "q·I·e")
    yield every.each("indexer", "keys", d * e, "fp8", "d·e")
    yield every.each("indexer", "weights", d * index, "bf16", "d·I")
    yield every.over("indexer", "scores", index * e, seen.entries(1), "fp8", "I·e")
    yield dense.each("experts", "dense", 3 * d * n.intermediate_size, "fp8", "3·d·W")
    yield sparse.each("router", "affinities", d * n.n_routed_experts, "bf16", "d·E")
    expert = 3 * d * n.moe_intermediate_size
    yield sparse.each("experts", "routed", n.num_experts_per_tok * expert, "fp8", "k·3·d·w")
    yield sparse.each("experts", "shared", n.n_shared_experts * expert, "fp8", "s·3·d·w")
