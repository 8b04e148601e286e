"""V32Config: the numbers that define a DeepSeek-V3.2 network, V4's predecessor, with which it is compared."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, Field, model_validator

from narrows.model.config import _CHECKED, _SIZE, Yarn


class V32Config(BaseModel):
    """One DeepSeek-V3.2 architecture, in the names of its config.json. Frozen; ValueError when fields disagree.

    The first `first_k_dense_replace` layers have one wide SwiGLU (`intermediate_size`) instead of experts.
    `mscale_all_dim`: by which softmax's scale grows where RoPE is stretched; 0 for not at all.
    """

    model_config = _CHECKED

    vocab_size: int = Field(gt=0, le=2**24)
    hidden_size: int = _SIZE
    intermediate_size: int = _SIZE
    moe_intermediate_size: int = _SIZE
    num_hidden_layers: int = _SIZE
    first_k_dense_replace: int = Field(default=3, ge=0)
    max_position_embeddings: int = Field(default=163_840, gt=0, le=2**40)

    num_attention_heads: int = _SIZE
    q_lora_rank: int = _SIZE
    kv_lora_rank: int = _SIZE
    qk_nope_head_dim: int = _SIZE
    qk_rope_head_dim: int = _SIZE
    v_head_dim: int = _SIZE
    index_n_heads: int = _SIZE
    index_head_dim: int = _SIZE
    index_topk: int = _SIZE
    rope_theta: float = Field(default=10_000.0, gt=1)
    rope_scaling: Yarn | None = Field(default=None, strict=False)
    mscale_all_dim: float = Field(default=1.0, ge=0)

    n_routed_experts: int = _SIZE
    n_shared_experts: int = _SIZE
    num_experts_per_tok: int = _SIZE
    n_group: int = _SIZE
    topk_group: int = _SIZE
    routed_scaling_factor: float = Field(default=2.5, gt=0)

    rms_norm_eps: float = Field(default=1e-6, gt=0)
    initializer_range: float = Field(default=0.02, gt=0)

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        def need(condition: bool, message: str) -> None:
            if not condition:
                raise ValueError(message)

        rope, index = self.qk_rope_head_dim, self.index_head_dim
        need(rope % 2 == 0, f"qk_rope_head_dim {rope} must be even")
        need(index >= rope, f"index_head_dim {index} is smaller than qk_rope_head_dim {rope}")
        each, rest = divmod(self.n_routed_experts, self.n_group)
        need(rest == 0, f"n_routed_experts {self.n_routed_experts} is not a multiple of n_group {self.n_group}")
        need(self.topk_group <= self.n_group, f"topk_group {self.topk_group} exceeds n_group {self.n_group}")
        need(
            self.num_experts_per_tok <= self.topk_group * each,
            f"num_experts_per_tok {self.num_experts_per_tok} exceeds the {self.topk_group * each} experts of "
            f"{self.topk_group} groups",
        )
        return self

    @property
    def swiglu_limit(self) -> float:
        """Its experts are not clamped."""
        return float("inf")

    def is_dense_layer(self, layer: int) -> bool:
        """Whether `layer` has one wide SwiGLU instead of experts."""
        return layer < self.first_k_dense_replace


V32 = V32Config(
    vocab_size=129280,
    hidden_size=7168,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    num_hidden_layers=61,
    num_attention_heads=128,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    index_n_heads=64,
    index_head_dim=128,
    index_topk=2048,
    rope_scaling=Yarn(factor=40, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1),
    n_routed_experts=256,
    n_shared_experts=1,
    num_experts_per_tok=8,
    n_group=8,
    topk_group=4,
)
"""DeepSeek-V3.2 itself: 671B parameters, 37B active."""
