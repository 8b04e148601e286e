"""ModelConfig: the numbers that define a DeepSeek-V4 network, checked against each other once, at the door.

Field names are those of the official config.json. `from_dict` also reads what transformers writes for
`DeepseekV4Config`; `to_dict` writes a config.json that both read.
"""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as short
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from narrows.errors import NarrowsError
from narrows.model.config_json import fields, official
from narrows.model.layer_kind import LayerKind

__all__ = ["LayerKind", "ModelConfig", "Yarn"]

# Strict: "64" is no number, and True is not 1; a file that says so was not written by what should have written it.
_CHECKED = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
# Ten times and more what any model has, and so little that no product of them leaves 64 bits.
_SIZE = Field(gt=0, le=2**18)


class Yarn(BaseModel):
    """YaRN's stretch of RoPE in layers with a compressor (arXiv 2309.00071); no mscale, as in the official code."""

    model_config = _CHECKED

    factor: float = Field(gt=0)
    original_max_position_embeddings: int = Field(gt=0, le=2**40)
    beta_fast: float = Field(default=32, gt=0)
    beta_slow: float = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _betas_in_order(self) -> Self:
        if self.beta_fast <= self.beta_slow:
            raise ValueError(f"beta_fast {self.beta_fast:g} must exceed beta_slow {self.beta_slow:g}")
        return self


class ModelConfig(BaseModel):
    """One DeepSeek-V4 architecture. Frozen; raises NarrowsError (through `from_dict`) when fields disagree.

    `csa_ratio` and `hca_ratio` are m and m' (4 and 128 in both official models). `rope_scaling` applies to layers
    with a compressor only; sliding layers use plain RoPE with `rope_theta`. Two fields are ours:
    `trained_context`, the longest context in tokens that the weights have seen, where it is known, and `fim_layout`,
    the order in which they learned to fill in the middle (text/fim.py).
    """

    model_config = _CHECKED

    vocab_size: int = Field(gt=0, le=2**24)
    hidden_size: int = _SIZE
    num_hidden_layers: int = _SIZE
    layer_types: tuple[LayerKind, ...]
    num_hash_layers: int = Field(default=3, ge=0)
    num_nextn_predict_layers: int = Field(default=0, ge=0, le=1)
    max_position_embeddings: int = Field(default=1_048_576, gt=0, le=2**40)
    trained_context: int | None = Field(default=None, gt=0)
    fim_layout: Literal["psm", "spm"] = "psm"

    num_attention_heads: int = _SIZE
    head_dim: int = _SIZE
    qk_rope_head_dim: int = _SIZE
    q_lora_rank: int = _SIZE
    o_groups: int = _SIZE
    o_lora_rank: int = _SIZE
    sliding_window: int = Field(default=128, gt=0, le=2**18)
    csa_ratio: int = Field(default=4, gt=0, le=2**18)
    hca_ratio: int = Field(default=128, gt=0, le=2**18)
    index_n_heads: int = _SIZE
    index_head_dim: int = _SIZE
    index_topk: int = _SIZE
    rope_theta: float = Field(default=10_000.0, gt=1)
    compress_rope_theta: float = Field(default=160_000.0, gt=1)
    rope_scaling: Yarn | None = Field(default=None, strict=False)  # a file has its fields, not a Yarn

    moe_intermediate_size: int = _SIZE
    n_routed_experts: int = _SIZE
    num_experts_per_tok: int = _SIZE
    routed_scaling_factor: float = Field(default=1.5, gt=0)
    swiglu_limit: float = Field(default=10.0, gt=0)

    hc_mult: int = Field(default=4, gt=0, le=64)
    hc_sinkhorn_iters: int = Field(default=20, gt=0, le=1000)
    hc_eps: float = Field(default=1e-6, gt=0)
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    initializer_range: float = Field(default=0.02, gt=0)
    bos_token_id: int = Field(default=0, ge=0)
    eos_token_id: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        def need(condition: bool, message: str) -> None:
            if not condition:
                raise ValueError(message)

        n = self.num_hidden_layers
        need(
            len(self.layer_types) == n,
            f"num_hidden_layers is {n} but compress_ratios or layer_types name {len(self.layer_types)} layers",
        )
        need(self.num_hash_layers <= n, f"num_hash_layers {self.num_hash_layers} exceeds num_hidden_layers {n}")
        need(
            self.qk_rope_head_dim <= self.head_dim and self.qk_rope_head_dim % 2 == 0,
            f"qk_rope_head_dim {self.qk_rope_head_dim} must be even and at most head_dim {self.head_dim}",
        )
        need(
            self.num_attention_heads % self.o_groups == 0,
            f"num_attention_heads {self.num_attention_heads} is not a multiple of o_groups {self.o_groups}",
        )
        need(
            self.num_experts_per_tok <= self.n_routed_experts,
            f"num_experts_per_tok {self.num_experts_per_tok} exceeds n_routed_experts {self.n_routed_experts}",
        )
        need(
            self.trained_context is None or self.trained_context <= self.max_position_embeddings,
            f"trained_context {self.trained_context} exceeds max_position_embeddings {self.max_position_embeddings}",
        )
        # 128 is what files have that do not think about it.
        need(
            self.sliding_window <= max(self.max_position_embeddings, 128),
            f"sliding_window {self.sliding_window} exceeds max_position_embeddings {self.max_position_embeddings}",
        )
        need(
            self.bos_token_id != self.eos_token_id,
            f"bos_token_id and eos_token_id are both {self.bos_token_id}",
        )
        if LayerKind.CSA in self.layer_types:
            need(
                self.index_head_dim >= self.qk_rope_head_dim,
                f"index_head_dim {self.index_head_dim} is smaller than qk_rope_head_dim {self.qk_rope_head_dim}",
            )
        for name in ("bos_token_id", "eos_token_id"):
            token = getattr(self, name)
            need(token < self.vocab_size, f"{name} {token} lies outside vocab_size {self.vocab_size}")
        return self

    # -- what the layers ask ------------------------------------------------------------------------------------

    def is_hash_layer(self, layer: int) -> bool:
        """Whether `layer` chooses its experts by the token alone (tid2eid) instead of by affinity."""
        return layer < self.num_hash_layers

    def compress_ratio(self, kind: LayerKind) -> int:
        """Tokens per compressed entry of a layer of this kind; 0 for sliding layers."""
        return {LayerKind.SLIDING: 0, LayerKind.CSA: self.csa_ratio, LayerKind.HCA: self.hca_ratio}[kind]

    # -- files --------------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
        """Read an official config.json or transformers' own. `source` is named in errors (NarrowsError)."""
        try:
            return cls(**fields(raw))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            if first["type"] == "missing":
                raise NarrowsError(f"{source}: the field {where} is missing; add it.") from None
            subject = f"{where} = {short(first['input'])}: " if where else ""
            raise NarrowsError(f"{source}: {subject}{message}; correct the file.") from None
        except ValueError as error:
            raise NarrowsError(f"{source}: {error}; correct the file.") from None

    def to_dict(self) -> dict[str, Any]:
        """A config.json in the official vocabulary that transformers reads as well."""
        return official(self.model_dump(mode="json"))
