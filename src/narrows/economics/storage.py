"""Bytes of one request's history: what is kept of its tokens, and what of that one more token reads. Needs no weights.

Histories are stored in the precision of the model: FP8 entries and FP4 or FP8 index keys in the published one, BF16 or
float32 in others.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

import torch

from narrows.economics.work import AnyConfig
from narrows.model.config import ModelConfig
from narrows.model.count import cache_bytes
from narrows.model.layer_kind import LayerKind
from narrows.model.precision import Precision, cache_formats, row_bytes
from narrows.model.v32.config import V32Config

# Behind how many values there is a scale: of an FP8 latent, and of an index key.
_LATENT_TILE, _SCALE_BYTES = 128, 4

_PLAIN_BYTES = {Precision.FLOAT32: 4, Precision.BF16: 2, Precision.FP8: 2}
"""Of a value where a history is not quantised, which `fp8`, a precision of weights, does not do."""


@dataclass(frozen=True)
class Part:
    """Bytes of a history, kept or read, of one component, over all layers that have it."""

    component: str
    bytes: int
    terms: str


def history_bytes(config: AnyConfig, context: int, precision: Precision = Precision.OFFICIAL) -> int:
    """What is kept of so many tokens: entries, index keys and V4's window.

    The inputs of V4's unfinished compressor windows, which R does not count, are left out: `pool_bytes` has them.
    """
    return sum(part.bytes for part in kept(config, context, precision))


def kept(config: AnyConfig, context: int, precision: Precision = Precision.OFFICIAL) -> list[Part]:
    """The same, part by part."""
    if isinstance(config, V32Config):
        layers = config.num_hidden_layers
        parts = [
            _part("latents", layers, context, latent_bytes(config, precision)),
            _part("index keys", layers, context, key_bytes(config, precision)),
        ]
    else:
        kinds = config.layer_types
        csa, hca = kinds.count(LayerKind.CSA), kinds.count(LayerKind.HCA)
        entry, key = map(row_bytes, cache_formats(config, torch.float32, precision))
        parts = [
            _part("window", len(kinds), min(context, config.sliding_window), entry),
            _part("CSA entries", csa, context // config.csa_ratio, entry),
            _part("index keys", csa, context // config.csa_ratio, key),
            _part("HCA entries", hca, context // config.hca_ratio, entry),
        ]
    return [part for part in parts if part.bytes]


def pool_bytes(config: AnyConfig, context: int, precision: Precision = Precision.OFFICIAL) -> int:
    """What a serving engine sets aside for one request of so many tokens: whole blocks, and V4's state beside them.

    V4's are our own PagedHistory's, less its table of block numbers: of the window and of the compressors' inputs,
    which are float32, it keeps one row more than the next token needs. V3.2 has no state; its blocks are of 64 tokens.
    """
    if isinstance(config, V32Config):
        return history_bytes(config, -(-context // 64) * 64, precision)
    block = lcm(config.csa_ratio, config.hca_ratio)
    return int(cache_bytes(config, precision).per_token * block) * -(-context // block) + _state(config, precision)


def history_read(config: AnyConfig, context: int, precision: Precision = Precision.OFFICIAL) -> list[Part]:
    """What attention and indexer read for the last of so many tokens. Where an indexer has nothing to choose from,
    it reads nothing: all entries are attended to."""
    if isinstance(config, V32Config):
        layers, chosen = config.num_hidden_layers, min(context, config.index_topk)
        keys = context if context > config.index_topk else 0
        parts = [
            _part("selected tokens", layers, chosen, latent_bytes(config, precision)),
            _part("index keys", layers, keys, key_bytes(config, precision)),
        ]
    else:
        kinds = config.layer_types
        csa, hca = kinds.count(LayerKind.CSA), kinds.count(LayerKind.HCA)
        entry, key = map(row_bytes, cache_formats(config, torch.float32, precision))
        entries = context // config.csa_ratio
        parts = [
            _part("window", len(kinds), min(context, config.sliding_window), entry),
            _part("CSA entries", csa, min(entries, config.index_topk), entry),
            _part("index keys", csa, entries if entries > config.index_topk else 0, key),
            _part("HCA entries", hca, context // config.hca_ratio, entry),
        ]
    return [part for part in parts if part.bytes]


def latent_bytes(config: V32Config, precision: Precision = Precision.OFFICIAL) -> int:
    """One token's latent in one layer of V3.2: FP8 with a float32 scale for every 128 values, and BF16 RoPE."""
    rank, rope = config.kv_lora_rank, config.qk_rope_head_dim
    if precision is not Precision.OFFICIAL:
        return _PLAIN_BYTES[precision] * (rank + rope)
    return rank + -(-rank // _LATENT_TILE) * _SCALE_BYTES + 2 * rope


def key_bytes(config: V32Config, precision: Precision = Precision.OFFICIAL) -> int:
    """One token's index key in one layer of V3.2: FP8 and a float32 scale."""
    if precision is not Precision.OFFICIAL:
        return _PLAIN_BYTES[precision] * config.index_head_dim
    return config.index_head_dim + _SCALE_BYTES


def _part(component: str, layers: int, rows: int, each: int) -> Part:
    return Part(component, layers * rows * each, f"{layers} layers × {rows:,} rows × {each:,} bytes")


def _state(config: ModelConfig, precision: Precision) -> int:
    kinds = config.layer_types
    entry, _ = map(row_bytes, cache_formats(config, torch.float32, precision))
    # Keys and gates; CSA's are twice as wide, and reach back one window more.
    csa = 2 * config.csa_ratio * 4 * (config.head_dim + config.index_head_dim)
    hca = config.hca_ratio * 2 * config.head_dim
    inputs = kinds.count(LayerKind.CSA) * csa + kinds.count(LayerKind.HCA) * hca
    return len(kinds) * config.sliding_window * entry + 4 * inputs
