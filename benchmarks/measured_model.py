"""The model that speed and memory are measured on: small, random, of the real architecture in every part."""

from __future__ import annotations

from pathlib import Path

import torch

from narrows.checkpoints.save import save_network
from narrows.model.config import LayerKind, ModelConfig
from narrows.model.network import Network
from narrows.model.presets import FLASH

_S, _C, _H = LayerKind.SLIDING, LayerKind.CSA, LayerKind.HCA

BENCH = ModelConfig(
    vocab_size=8192,
    hidden_size=512,
    num_hidden_layers=8,
    layer_types=(_S, _S, _C, _H, _C, _H, _C, _H),
    num_attention_heads=8,
    head_dim=128,
    qk_rope_head_dim=32,
    q_lora_rank=256,
    o_groups=2,
    o_lora_rank=128,
    index_n_heads=8,
    index_head_dim=64,
    index_topk=64,
    rope_scaling=FLASH.rope_scaling,
    moe_intermediate_size=256,
    n_routed_experts=32,
    num_experts_per_tok=4,
    initializer_range=0.04,
)


def write(directory: Path) -> None:
    """Write the model's float32 weights, random but the same every time, in the layout that all peers read."""
    torch.manual_seed(1234)
    network = Network(BENCH)
    network.initialise()
    save_network(network, directory, precision="float32")
