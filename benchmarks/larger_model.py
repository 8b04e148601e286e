"""A model of 5 GB in the official precision, of random codes: written as a prepared file, never held in memory.

Its layers are shaped as V4-Flash's, half as wide, with 96 experts. What decides how a mixture of experts reads its
file is made to resemble the embedded model on real source, where a layer's better half of experts has 68 to 71 % of
the choices, a router that sees the layer before's input guesses 44 to 70 % of them, and a token shares 23 to 43 % with
its predecessor: biases prefer some experts, and a layer adds little to what the next one sees.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from narrows.checkpoints.match import slots
from narrows.checkpoints.prepared_file import Contents, PackedWeight, PlainTensor, write
from narrows.model.config import LayerKind, ModelConfig
from narrows.model.network import Network
from narrows.model.precision import Format, Precision, weight_format
from narrows.model.presets import FLASH
from narrows.ops.packed import Packed, PackedFormat

_S, _C, _H = LayerKind.SLIDING, LayerKind.CSA, LayerKind.HCA

LARGER: ModelConfig = FLASH.model_copy(
    update={
        "vocab_size": 8_192,
        "hidden_size": 2_048,
        "num_hidden_layers": 16,
        "layer_types": (_S, _S, *(_C, _H) * 7),
        "num_hash_layers": 2,
        "num_nextn_predict_layers": 0,
        "num_attention_heads": 32,
        "head_dim": 256,
        "q_lora_rank": 512,
        "o_lora_rank": 256,
        "index_n_heads": 32,
        "moe_intermediate_size": 1_024,
        "n_routed_experts": 96,
    }
)

_BIAS = 0.07  # of the routers, on affinities that differ by 0.27
TOPICS = 16
_ALIKE = 0.3  # what tokens of a topic share
_EMBEDDING = "embed.weight"
_PACKED: dict[Format, PackedFormat] = {Format.MXFP4: "mxfp4", Format.FP8: "fp8"}


def write_model(path: Path, config: ModelConfig = LARGER) -> None:
    """Write the prepared file; its pages are then on the disk and in nobody's memory."""
    tensors = dict[str, PackedWeight | PlainTensor]()
    for name, slot in slots(Network(config, device="meta")).items():
        if len(slot.shape) == 2 and name.endswith(".weight") and name != _EMBEDDING:
            packed = _PACKED.get(weight_format(name, Precision.OFFICIAL), "bf16")
            ours = name.removesuffix(".weight") if slot.index else slot.ours
            tensors[ours] = PackedWeight(packed, *slot.shape)
        else:
            dtype = "int32" if slot.integer else "bfloat16" if name == _EMBEDDING else "float32"
            tensors[slot.ours] = PlainTensor(dtype, slot.shape)
    source = torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        drawn = (_drawn(name, tensor, config, source) for name, tensor in tensors.items())
        write(file, Contents(config, Precision.OFFICIAL, tensors), drawn)
        file.flush()
        os.fsync(file.fileno())


def text(length: int, config: ModelConfig = LARGER) -> Tensor:
    """Token ids [length]: topics of 48 tokens each, frequent words more often than rare ones."""
    source = torch.Generator().manual_seed(1)
    ranks = torch.arange(1, config.vocab_size // TOPICS + 1)
    words = torch.multinomial(1 / ranks, length, replacement=True, generator=source)
    topics = torch.randint(TOPICS, (-(-length // 48),), generator=source).repeat_interleave(48)[:length]
    return words * TOPICS + topics


def _drawn(
    name: str, tensor: PackedWeight | PlainTensor, config: ModelConfig, source: torch.Generator
) -> Packed | Tensor:
    if isinstance(tensor, PlainTensor):
        return _plain(name, tensor, config, source)
    sizes = tensor.sizes
    if tensor.format == "bf16":
        numbers = torch.randn(sizes[0] // 2, generator=source).mul_(tensor.columns**-0.5).bfloat16()
        return Packed("bf16", tensor.rows, tensor.columns, numbers.view(torch.uint8), torch.empty(0, dtype=torch.uint8))
    words = torch.randint(-(1 << 63), (1 << 63) - 1, (-(-sizes[0] // 8),), generator=source)
    codes = words.view(torch.uint8)[: sizes[0]]
    if tensor.format == "fp8":
        codes &= 0b1011_1111  # numbers below 2
    size = 7 if tensor.format == "mxfp4" else 5  # outputs are about as large as inputs
    scales = torch.full(sizes[1:], 127 - size, dtype=torch.uint8)
    return Packed(tensor.format, tensor.rows, tensor.columns, codes, scales)


def _plain(name: str, tensor: PlainTensor, config: ModelConfig, source: torch.Generator) -> Tensor:
    if name == _EMBEDDING:
        own, shared = (torch.randn(count, tensor.shape[1], generator=source) for count in (tensor.shape[0], TOPICS))
        topics = shared.repeat(-(-len(own) // TOPICS), 1)[: len(own)]
        return ((1 - _ALIKE) ** 0.5 * own + _ALIKE**0.5 * topics).bfloat16()
    if name.endswith(".tid2eid"):
        order = torch.rand(config.vocab_size, config.n_routed_experts, generator=source).argsort(-1)
        return order[:, : config.num_experts_per_tok].int()
    if name.endswith("gate.bias"):
        return torch.randn(tensor.shape, generator=source) * _BIAS
    if name.endswith(".fn"):
        return torch.randn(tensor.shape, generator=source) * 0.002
    if name.endswith((".scale", "norm.weight")):
        return torch.ones(tensor.shape)
    return torch.zeros(tensor.shape)
