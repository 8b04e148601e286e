"""What a precision stores: the format of every weight, and the bytes of every cached entry.

A precision is part of a model's identity. Weights: section names are those of the published checkpoints, where norms
and what is not a large matrix stay BF16 or float32 in every quantised precision.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from math import prod

import torch

from narrows.model.config import ModelConfig
from narrows.ops.quantize import fp8_scale_shape, mxfp4_shapes
from narrows.ops.row_format import FP4Keys, FP8Entries, Plain, RowFormat


class Precision(StrEnum):
    """`float32`; `bf16`; `fp8`: FP8 matrices; `official`: FP4 experts, FP8 other matrices, FP8 and FP4 caches."""

    FLOAT32 = "float32"
    BF16 = "bf16"
    FP8 = "fp8"
    OFFICIAL = "official"


class Format(StrEnum):
    """How one tensor is stored. FP8 and MXFP4 come with a second tensor of E8M0 scales."""

    FLOAT32 = "float32"
    BF16 = "bf16"
    INT64 = "int64"
    FP8 = "fp8"
    MXFP4 = "mxfp4"


# Both our names and the official ones: hc_attn.fn and hc_attn_fn, experts.w13 and experts.7.w1.weight.
_TABLE = re.compile(r"\.tid2eid$")
_ALWAYS_FLOAT32 = re.compile(r"hc_(attn|ffn|head)[._](fn|base|scale)$|\.attn_sink$|\.ape$|\.gate\.bias$")
_EXPERT = re.compile(r"\.ffn\.experts\.")
_FP8_MATRIX = re.compile(
    r"\.(attn\.(wq_a|wq_b|wkv|wo_a|wo_b)|attn\.indexer\.wq_b|ffn\.shared_experts\.w[123]|e_proj|h_proj)\.weight$"
)


def weight_format(name: str, precision: Precision) -> Format:
    """The format of the parameter or buffer of this name, ours or official, in a checkpoint of this precision."""
    if _TABLE.search(name):
        return Format.INT64
    if precision is Precision.FLOAT32 or _ALWAYS_FLOAT32.search(name):
        return Format.FLOAT32
    if precision is not Precision.BF16:
        if _EXPERT.search(name):
            return Format.MXFP4 if precision is Precision.OFFICIAL else Format.FP8
        if _FP8_MATRIX.search(name):
            return Format.FP8
    return Format.BF16


def stored_bytes(stored: Format, shape: Sequence[int]) -> int:
    """Bytes of a tensor of this shape, scales included. [E, out, in] is E matrices.

    ValueError for an MXFP4 matrix whose input width is no multiple of 32.
    """
    count = prod(shape)
    match stored:
        case Format.FLOAT32:
            return 4 * count
        case Format.BF16:
            return 2 * count
        case Format.INT64:
            return 8 * count
        case Format.FP8:
            return count + prod(shape[:-2]) * prod(fp8_scale_shape(*shape[-2:]))
        case Format.MXFP4:
            codes, scales = mxfp4_shapes(*shape[-2:])
            return prod(shape[:-2]) * (prod(codes) + prod(scales))


def cache_formats(
    config: ModelConfig, dtype: torch.dtype, precision: Precision | None = None
) -> tuple[RowFormat, RowFormat]:
    """How a cache of this precision (None: that of `dtype`) holds KV entries, compressed or of the window, and the
    indexer's keys. `fp8` is about weights only: its cache is BF16.

    ValueError for `official` where the indexer's keys have a width that FP4 cannot take.
    """
    if precision is Precision.OFFICIAL:
        return FP8Entries(config.head_dim, config.qk_rope_head_dim), FP4Keys(config.index_head_dim)
    if precision is not None:
        dtype = torch.float32 if precision is Precision.FLOAT32 else torch.bfloat16
    return Plain(config.head_dim, dtype), Plain(config.index_head_dim, dtype)


def row_bytes(stored: RowFormat) -> int:
    """Bytes of one stored row."""
    return stored.width * stored.dtype.itemsize
