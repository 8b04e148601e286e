"""What a configuration weighs: parameters counted from our own modules on the meta device, and bytes."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

import torch

from narrows.model.config import LayerKind, ModelConfig
from narrows.model.network import Network
from narrows.model.precision import Precision, cache_formats, row_bytes, stored_bytes, weight_format

# The first that matches decides.
_PARTS = (
    ("MTP block", r"^mtp\."),
    ("embedding", r"^embed\."),
    ("head", r"^head\."),
    ("hyper-connections", r"hc_(attn|ffn|head)\."),
    ("norms", r"^norm\.|\.(attn_norm|ffn_norm|q_norm|kv_norm|compressor\.norm)\."),
    ("indexer", r"\.attn\.indexer\."),
    ("compressors", r"\.attn\.compressor\."),
    ("attention", r"\.attn\."),
    ("routers", r"\.ffn\.gate\."),
    ("routed experts", r"\.ffn\.experts\."),
    ("shared experts", r"\.ffn\.shared_experts\."),
)


@dataclass(frozen=True)
class CacheBytes:
    """A request's cache: `per_token` bytes for every token (asymptotically); once, the last tokens' entries (`window`)
    and the inputs of the compressors' unfinished windows (`unfinished`, float32), as a History keeps them.
    """

    per_token: Fraction
    window: int
    unfinished: int

    @property
    def fixed(self) -> int:
        """Bytes that do not grow with the text."""
        return self.window + self.unfinished

    def at(self, tokens: int) -> int:
        """Bytes of a long context of this many tokens."""
        return int(self.per_token * tokens) + self.fixed


@dataclass(frozen=True)
class Count:
    """What `count` found. Parameters are trainable values: tables (tid2eid) and router biases are not among them.

    `parts`, `total` and `active` leave the MTP block out, `total_with_mtp` and `checkpoint_bytes` count it.
    `active`: what one token multiplies with: its experts of all the routed ones, the head, not the embedding.
    `checkpoint_bytes` lacks a precision that the sizes rule out (MXFP4 wants input widths in multiples of 32).
    """

    layers: dict[LayerKind, int]
    hash_layers: int
    parts: dict[str, int]
    total: int
    active: int
    total_with_mtp: int
    checkpoint_bytes: dict[Precision, int]
    cache: dict[Precision, CacheBytes]


def count(config: ModelConfig) -> Count:
    """Count `config`'s network on the meta device; no memory is allocated for weights."""
    network = Network(config, dtype=torch.float32, device="meta")
    found: Counter[str] = Counter()
    for name, parameter in network.named_parameters():
        found[_part(name)] += parameter.numel()
    mtp = found.pop("MTP block", 0)
    total = sum(found.values())
    routed = found["routed experts"]
    used = routed // config.n_routed_experts * config.num_experts_per_tok
    layers = Counter(config.layer_types)
    return Count(
        layers={kind: layers[kind] for kind in LayerKind},
        hash_layers=config.num_hash_layers,
        parts={part: found[part] for part, _ in _PARTS if found[part]},
        total=total,
        active=total - found["embedding"] - routed + used,
        total_with_mtp=total + mtp,
        checkpoint_bytes=_checkpoint_bytes(network),
        cache=_caches(config),
    )


def cache_bytes(config: ModelConfig, precision: Precision) -> CacheBytes:
    """The cache of one request in this precision (without the MTP block's window). ValueError where there is none."""
    layers = Counter(config.layer_types)
    csa, hca = layers[LayerKind.CSA], layers[LayerKind.HCA]
    entry, key = map(row_bytes, cache_formats(config, torch.float32, precision))
    per_token = Fraction(csa * (entry + key), config.csa_ratio) + Fraction(hca * entry, config.hca_ratio)
    window = len(config.layer_types) * (config.sliding_window - 1) * entry
    # kv and gate of the rows that a later entry still needs; CSA's are twice as wide and reach one window further back.
    csa_tail = (2 * config.csa_ratio - 1) * 4 * (config.head_dim + config.index_head_dim)
    hca_tail = (config.hca_ratio - 1) * 2 * config.head_dim
    return CacheBytes(per_token, window, 4 * (csa * csa_tail + hca * hca_tail))


def _caches(config: ModelConfig) -> dict[Precision, CacheBytes]:
    found = {}
    for precision in Precision:
        with suppress(ValueError):  # widths that it cannot store
            found[precision] = cache_bytes(config, precision)
    return found


def _part(name: str) -> str:
    return next(part for part, pattern in _PARTS if re.search(pattern, name))


def _stored_shapes(name: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Gate and up are one tensor here and two in a checkpoint, where each ends its own row of tiles."""
    if not name.endswith(".experts.w13"):
        return [shape]
    experts, rows, columns = shape
    return [(experts, rows // 2, columns)] * 2


def _checkpoint_bytes(network: Network) -> dict[Precision, int]:
    shapes = [
        (name, shape)
        for name, tensor in network.state_dict().items()
        for shape in _stored_shapes(name, tuple(tensor.shape))
    ]
    sizes = {}
    for precision in Precision:
        try:
            sizes[precision] = sum(stored_bytes(weight_format(name, precision), s) for name, s in shapes)
        except ValueError:
            continue
    return sizes
