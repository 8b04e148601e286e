"""Bytes of one request's history, as a function of its tokens. Needs no weights."""

from __future__ import annotations

from narrows.economics.work import AnyConfig
from narrows.model.config import ModelConfig
from narrows.model.count import cache_bytes
from narrows.model.precision import Precision
from narrows.model.v32.config import V32Config

# Behind how many values there is a scale: of an FP8 latent, and of an index key.
_LATENT_TILE, _SCALE_BYTES = 128, 4


def history_bytes(config: AnyConfig, context: int) -> int:
    """What is kept of so many tokens in the official precision: entries, index keys and V4's window.

    The inputs of V4's unfinished compressor windows, which R does not count, are left out; `count.cache_bytes` has
    them.
    """
    if isinstance(config, V32Config):
        return config.num_hidden_layers * (latent_bytes(config) + key_bytes(config)) * context
    return _v4(config, context)


def latent_bytes(config: V32Config) -> int:
    """One token's latent in one layer of V3.2: FP8 with a float32 scale for every 128 values, and BF16 RoPE."""
    scales = -(-config.kv_lora_rank // _LATENT_TILE) * _SCALE_BYTES
    return config.kv_lora_rank + scales + 2 * config.qk_rope_head_dim


def key_bytes(config: V32Config) -> int:
    """One token's index key in one layer of V3.2: FP8 and a float32 scale."""
    return config.index_head_dim + _SCALE_BYTES


def _v4(config: ModelConfig, context: int) -> int:
    counted = cache_bytes(config, Precision.OFFICIAL)
    row = counted.window // max(1, config.sliding_window - 1)  # of all layers
    return int(counted.per_token * context) + row * min(context, config.sliding_window)
