"""V3.2's attention: MLA over latents, of which a lightning indexer selects some (arXiv 2405.04434, 2512.02556)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from narrows.model.history import History
from narrows.model.linear import Linear
from narrows.model.norm import RMSNorm
from narrows.model.segments import Growth
from narrows.model.v32.config import V32Config
from narrows.model.v32.step import V32Step
from narrows.ops.index_topk import index_topk
from narrows.ops.latent_attention import latent_attention
from narrows.ops.pages import Pages
from narrows.ops.rope import rope

# The norm of the indexer's keys.
_LAYER_NORM_EPS = 1e-6


class LatentAttention(nn.Module):
    """Keys and values of all heads are projections of one latent a token, which is what a history keeps.

    The projections are absorbed: a head's query is turned into the latents' space once, so that what is attended to is
    read as it is stored, by all heads together.
    """

    def __init__(self, config: V32Config, layer: int, *, dtype: torch.dtype, device: torch.device | str | None) -> None:
        super().__init__()
        self.layer, self.heads, self.rank = layer, config.num_attention_heads, config.kv_lora_rank
        self.nope, self.rope, self.value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.scale = (self.nope + self.rope) ** -0.5 * _mscale(config) ** 2
        d, eps = config.hidden_size, config.rms_norm_eps

        def linear(inputs: int, outputs: int) -> Linear:
            return Linear(inputs, outputs, dtype=dtype, device=device)

        self.wq_a = linear(d, config.q_lora_rank)
        self.q_norm = RMSNorm(config.q_lora_rank, eps, dtype=dtype, device=device)
        self.wq_b = linear(config.q_lora_rank, self.heads * (self.nope + self.rope))
        self.wkv_a = linear(d, self.rank + self.rope)
        self.kv_norm = RMSNorm(self.rank, eps, dtype=dtype, device=device)
        self.wkv_b = linear(self.rank, self.heads * (self.nope + self.value))
        self.wo = linear(self.heads * self.value, d)
        self.indexer = TokenIndexer(config, layer, dtype=dtype, device=device)

    def forward(self, x: Tensor, step: V32Step, history: History) -> Tensor:
        """x [N, d] -> [N, d]."""
        growth = step.tokens
        latent_query = self.q_norm(self.wq_a(x))
        q = rope(self.wq_b(latent_query).unflatten(-1, (self.heads, -1)), *step.angles)
        kv, rotated = self.wkv_a(x).split((self.rank, self.rope), dim=-1)
        entry = torch.cat((self.kv_norm(kv), rope(rotated, *step.angles)), dim=-1)
        latents = history.extend_entries(self.layer, "latent", entry, growth, step)
        selected = self.indexer(x, latent_query, step, history)
        to_keys, to_values = self.wkv_b.weight.unflatten(0, (self.heads, -1)).split((self.nope, self.value), dim=1)
        absorbed = torch.einsum("nhc,hcr->nhr", q[..., : self.nope], to_keys)
        q = torch.cat((absorbed, q[..., self.nope :]), dim=-1)
        tiles = step.tiles if selected is None else step.single_rows
        out = latent_attention(
            q, latents, growth.visible, selected, tiles, width=self.rank, most=growth.most, scale=self.scale
        )
        return self.wo(torch.einsum("nhr,hcr->nhc", out, to_values).flatten(1))


class TokenIndexer(nn.Module):
    """Scores every token before by Σ_h w_h · ReLU(q_h · key), and selects the `index_topk` best."""

    def __init__(self, config: V32Config, layer: int, *, dtype: torch.dtype, device: torch.device | str | None) -> None:
        super().__init__()
        self.layer, self.heads, self.dim, self.topk = (
            layer,
            config.index_n_heads,
            config.index_head_dim,
            config.index_topk,
        )
        self.wq_b = Linear(config.q_lora_rank, self.heads * self.dim, dtype=dtype, device=device)
        self.wk = Linear(config.hidden_size, self.dim, dtype=dtype, device=device)
        self.k_norm = nn.LayerNorm(self.dim, eps=_LAYER_NORM_EPS, dtype=dtype, device=device)
        self.weights_proj = Linear(config.hidden_size, self.heads, dtype=dtype, device=device)

    @torch.no_grad()
    def forward(self, x: Tensor, latent_query: Tensor, step: V32Step, history: History) -> Tensor | None:
        """x [N, d], the normed latent query [N, q_lora_rank] -> int64 [N, topk], or None: every visible token."""
        growth = step.tokens
        keys = self._keys(x, growth, step, history)
        if growth.most <= self.topk:
            return None
        queries = _rope_halves(self.wq_b(latent_query).unflatten(-1, (self.heads, self.dim)), *step.angles)
        weights = self.weights_proj(x) * (self.dim * self.heads) ** -0.5
        return index_topk(queries, weights, keys, growth.visible, step.tiles, k=self.topk, most=growth.most)

    def _keys(self, x: Tensor, growth: Growth, step: V32Step, history: History) -> Pages:
        keys = _rope_halves(self.k_norm(self.wk(x)), *step.angles)
        return history.extend_entries(self.layer, "keys", keys, growth, step)

    def reset_parameters(self) -> None:
        nn.init.ones_(self.k_norm.weight)
        nn.init.zeros_(self.k_norm.bias)


def _rope_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE as the indexer has it: on the first dims, and channel i of their one half pairs with i of the other."""
    dims = 2 * cos.shape[-1]
    paired = x[..., :dims].unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    turned = rope(paired, cos, sin).unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return torch.cat((turned, x[..., dims:]), dim=-1)


def _mscale(config: V32Config) -> float:
    """How much sharper attention is where RoPE is stretched (YaRN, arXiv 2309.00071, eq. 25)."""
    if config.rope_scaling is None or config.rope_scaling.factor <= 1:
        return 1.0
    return 0.1 * config.mscale_all_dim * math.log(config.rope_scaling.factor) + 1.0
