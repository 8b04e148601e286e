"""What a network's weights are: every matrix, its shape and bytes, from the configuration alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

from narrows.economics.work import AnyConfig
from narrows.errors import UsageError
from narrows.model.config import ModelConfig
from narrows.model.layer_kind import LayerKind
from narrows.model.precision import Format, Precision, stored_bytes
from narrows.model.v32.config import V32Config

ROUTED = "routed experts"
"""The component of which a token needs a few only."""

EMBEDDING = "embedding"
"""The component of which a token needs a row."""


@dataclass(frozen=True)
class Weight:
    """`count` tensors of one shape ([out, in], experts each on their own) in one format.

    `table`: it is looked up or added, not learned by gradients, and no parameter (tid2eid, routers' biases).
    """

    component: str
    name: str
    count: int
    shape: tuple[int, ...]
    stored: Format
    table: bool = False

    @property
    def parameters(self) -> int:
        return 0 if self.table else self.count * prod(self.shape)

    @property
    def bytes(self) -> int:
        """With its scales. V3.2's, which are float32, are counted as V4's, one byte for a tile of 16,384 weights."""
        return self.count * stored_bytes(self.stored, self.shape)


def weights(config: AnyConfig, precision: Precision = Precision.OFFICIAL, *, mtp: bool = False) -> list[Weight]:
    """All of them, by component; `mtp`: V4's MTP block too, as its checkpoints have it.

    V3.2's own precision is FP8, for experts as well. UsageError where the precision cannot store a width.
    """
    if isinstance(config, V32Config):
        found = list(_v32(config, _Formats(Precision.FP8 if precision is Precision.OFFICIAL else precision)))
    else:
        found = list(_v4(config, _Formats(precision), mtp=mtp and config.num_nextn_predict_layers > 0))
    try:
        total_bytes(found)
    except ValueError as error:
        raise UsageError(f"the model cannot be kept in {precision}: {error}.") from None
    return found


def total_bytes(found: Iterable[Weight]) -> int:
    """What they take together, in a checkpoint as in memory."""
    return sum(weight.bytes for weight in found)


def total_parameters(found: Iterable[Weight]) -> int:
    """Their parameters together."""
    return sum(weight.parameters for weight in found)


def active_parameters(config: AnyConfig) -> int:
    """What one token multiplies with: its experts of the routed ones, the head, not the embedding; without MTP."""
    found = weights(config, Precision.BF16)
    rest = total_parameters(weight for weight in found if weight.component not in (ROUTED, EMBEDDING))
    routed = total_parameters(weight for weight in found if weight.component == ROUTED)
    return rest + routed // config.n_routed_experts * config.num_experts_per_tok


class _Formats:
    """Which format a precision keeps what in."""

    def __init__(self, precision: Precision) -> None:
        whole = precision is Precision.FLOAT32
        quantised = precision in (Precision.FP8, Precision.OFFICIAL)
        self.plain = Format.FLOAT32 if whole else Format.BF16
        self.matrix = Format.FP8 if quantised else self.plain
        self.expert = Format.MXFP4 if precision is Precision.OFFICIAL else self.matrix


def _v4(n: ModelConfig, formats: _Formats, *, mtp: bool) -> Iterator[Weight]:
    kinds = n.layer_types
    csa, hca = kinds.count(LayerKind.CSA), kinds.count(LayerKind.HCA)
    d, c, e = n.hidden_size, n.head_dim, n.index_head_dim
    yield Weight(EMBEDDING, "embedding", 1, (n.vocab_size, d), formats.plain)
    yield Weight("head", "head", 1, (n.vocab_size, d), formats.plain)
    yield from _ends(n, formats)
    yield from _layers(n, formats, len(kinds), n.num_hash_layers)
    yield from _compressors("compressors", csa, (n.csa_ratio, 2 * c), n, formats)
    yield from _compressors("compressors", hca, (n.hca_ratio, c), n, formats)
    yield Weight("indexer", "queries", csa, (n.index_n_heads * e, n.q_lora_rank), formats.matrix)
    yield Weight("indexer", "weights", csa, (n.index_n_heads, d), formats.plain)
    yield from _compressors("indexer", csa, (n.csa_ratio, 2 * e), n, formats)
    yield Weight("norms", "compressors", csa + hca, (c,), formats.plain)
    yield Weight("norms", "indexers", csa, (e,), formats.plain)
    if mtp:
        block = [*_layers(n, formats, 1, 0), *_ends(n, formats)]
        block += [Weight("", "projections", 2, (d, d), formats.matrix), Weight("", "norms", 2, (d,), formats.plain)]
        for weight in block:
            name = f"{weight.component} {weight.name}".strip()
            yield Weight("MTP block", name, weight.count, weight.shape, weight.stored, weight.table)


def _ends(n: ModelConfig, formats: _Formats) -> Iterator[Weight]:
    """What stands before a head: a norm, and the streams' collapse."""
    h = n.hc_mult
    yield Weight("norms", "head", 1, (n.hidden_size,), formats.plain)
    yield Weight("hyper-connections", "head fn", 1, (h, h * n.hidden_size), Format.FLOAT32)
    yield Weight("hyper-connections", "head base", 1, (h,), Format.FLOAT32)
    yield Weight("hyper-connections", "head scale", 1, (1,), Format.FLOAT32)


def _layers(n: ModelConfig, formats: _Formats, count: int, hashed: int) -> Iterator[Weight]:
    """What every layer has."""
    d, heads, c, q, h, width = (
        n.hidden_size,
        n.num_attention_heads,
        n.head_dim,
        n.q_lora_rank,
        n.hc_mult,
        n.moe_intermediate_size,
    )
    numbers = (2 + h) * h
    yield Weight("attention", "query down", count, (q, d), formats.matrix)
    yield Weight("attention", "query up", count, (heads * c, q), formats.matrix)
    yield Weight("attention", "window KV", count, (c, d), formats.matrix)
    yield Weight(
        "attention", "output down", count, (n.o_groups * n.o_lora_rank, heads * c // n.o_groups), formats.matrix
    )
    yield Weight("attention", "output up", count, (d, n.o_groups * n.o_lora_rank), formats.matrix)
    yield Weight("attention", "sinks", count, (heads,), Format.FLOAT32)
    yield Weight("norms", "sub-layers", 2 * count, (d,), formats.plain)
    yield Weight("norms", "queries", count, (q,), formats.plain)
    yield Weight("norms", "window KV", count, (c,), formats.plain)
    yield Weight("hyper-connections", "fn", 2 * count, (numbers, h * d), Format.FLOAT32)
    yield Weight("hyper-connections", "base", 2 * count, (numbers,), Format.FLOAT32)
    yield Weight("hyper-connections", "scale", 2 * count, (3,), Format.FLOAT32)
    yield Weight("router", "affinities", count, (n.n_routed_experts, d), formats.plain)
    yield Weight("router", "bias", count - hashed, (n.n_routed_experts,), Format.FLOAT32, table=True)
    yield Weight("router", "tid2eid", hashed, (n.vocab_size, n.num_experts_per_tok), Format.INT64, table=True)
    routed = count * n.n_routed_experts
    yield Weight(ROUTED, "gate and up", 2 * routed, (width, d), formats.expert)
    yield Weight(ROUTED, "down", routed, (d, width), formats.expert)
    yield Weight("shared experts", "gate and up", 2 * count, (width, d), formats.matrix)
    yield Weight("shared experts", "down", count, (d, width), formats.matrix)


def _compressors(
    component: str, count: int, window: tuple[int, int], n: ModelConfig, formats: _Formats
) -> Iterator[Weight]:
    """Of a window of so many tokens and features."""
    ratio, features = window
    yield Weight(component, f"KV and gate of {ratio}", 2 * count, (features, n.hidden_size), formats.plain)
    yield Weight(component, f"positions of {ratio}", count, (ratio, features), Format.FLOAT32)


def _v32(n: V32Config, formats: _Formats) -> Iterator[Weight]:
    d, heads, q, rank = n.hidden_size, n.num_attention_heads, n.q_lora_rank, n.kv_lora_rank
    nope, rope, value = n.qk_nope_head_dim, n.qk_rope_head_dim, n.v_head_dim
    layers = n.num_hidden_layers
    dense = min(n.first_k_dense_replace, layers)
    sparse = layers - dense
    yield Weight(EMBEDDING, "embedding", 1, (n.vocab_size, d), formats.plain)
    yield Weight("head", "head", 1, (n.vocab_size, d), formats.plain)
    yield Weight("norms", "head", 1, (d,), formats.plain)
    yield Weight("norms", "sub-layers", 2 * layers, (d,), formats.plain)
    yield Weight("norms", "queries", layers, (q,), formats.plain)
    yield Weight("norms", "latents", layers, (rank,), formats.plain)
    yield Weight("norms", "index keys", 2 * layers, (n.index_head_dim,), formats.plain)
    yield Weight("attention", "query down", layers, (q, d), formats.matrix)
    yield Weight("attention", "query up", layers, (heads * (nope + rope), q), formats.matrix)
    yield Weight("attention", "latent down", layers, (rank + rope, d), formats.matrix)
    yield Weight("attention", "latent up", layers, (heads * (nope + value), rank), formats.matrix)
    yield Weight("attention", "output", layers, (d, heads * value), formats.matrix)
    yield Weight("indexer", "queries", layers, (n.index_n_heads * n.index_head_dim, q), formats.matrix)
    yield Weight("indexer", "keys", layers, (n.index_head_dim, d), formats.matrix)
    yield Weight("indexer", "weights", layers, (n.index_n_heads, d), formats.plain)
    yield Weight("dense layers", "gate and up", 2 * dense, (n.intermediate_size, d), formats.matrix)
    yield Weight("dense layers", "down", dense, (d, n.intermediate_size), formats.matrix)
    yield Weight("router", "affinities", sparse, (n.n_routed_experts, d), formats.plain)
    yield Weight("router", "bias", sparse, (n.n_routed_experts,), Format.FLOAT32, table=True)
    width = n.moe_intermediate_size
    routed = sparse * n.n_routed_experts
    yield Weight(ROUTED, "gate and up", 2 * routed, (width, d), formats.expert)
    yield Weight(ROUTED, "down", routed, (d, width), formats.expert)
    shared = n.n_shared_experts * width
    yield Weight("shared experts", "gate and up", 2 * sparse, (shared, d), formats.matrix)
    yield Weight("shared experts", "down", sparse, (d, shared), formats.matrix)
