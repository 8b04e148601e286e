"""The model: every mechanism of DeepSeek-V4 in the least space that can learn some Python.

What it weighs in the official layout, and why it is shaped so, stands in README.md.
"""

from __future__ import annotations

from narrows.model.config import LayerKind, ModelConfig

SAMPLE_LENGTH = 1024
"""Most tokens of a training sample."""

CONFIG = ModelConfig(
    vocab_size=2048,
    hidden_size=256,
    num_hidden_layers=4,
    layer_types=(LayerKind.SLIDING, LayerKind.CSA, LayerKind.HCA, LayerKind.CSA),
    num_hash_layers=1,
    num_nextn_predict_layers=1,
    max_position_embeddings=32768,
    trained_context=SAMPLE_LENGTH,
    num_attention_heads=4,
    head_dim=64,
    qk_rope_head_dim=32,
    q_lora_rank=128,
    o_groups=2,
    o_lora_rank=64,
    index_n_heads=16,
    index_head_dim=32,
    # As many as a sample has CSA entries: attention is dense in training, and no indexer has to be trained for it.
    index_topk=SAMPLE_LENGTH // 4,
    moe_intermediate_size=64,
    n_routed_experts=20,
    num_experts_per_tok=2,
)
