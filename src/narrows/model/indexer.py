"""The lightning indexer: which compressed entries a CSA layer's query attends to (R §2.3.1 eqs. 13-17)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from narrows.model.compressor import Compressor
from narrows.model.config import LayerKind, ModelConfig
from narrows.model.history import History
from narrows.model.linear import Linear
from narrows.model.segments import Step
from narrows.ops.index_topk import index_topk
from narrows.ops.pages import Pages
from narrows.ops.rope import rope


class Indexer(nn.Module):
    """Scores entries by Σ_h w_h · ReLU(q_h · key), its keys made by a small compressor of its own.

    The choice does not differentiate, so nothing here has a gradient from the network's output. `dense`: choose
    nothing and attend to all, as the first part of training does; for steps without a history only. `rounds_inputs`:
    see `Network.round_inputs`.
    """

    rounds_inputs = False

    def __init__(
        self, config: ModelConfig, layer: int, *, dtype: torch.dtype, device: torch.device | str | None
    ) -> None:
        super().__init__()
        self.dense = False
        self.heads, self.dim, self.topk = config.index_n_heads, config.index_head_dim, config.index_topk
        self.wq_b = Linear(config.q_lora_rank, self.heads * self.dim, dtype=dtype, device=device)
        self.weights_proj = Linear(config.hidden_size, self.heads, dtype=dtype, device=device)
        self.compressor = Compressor(config, layer, LayerKind.CSA, "indexer", self.dim, dtype=dtype, device=device)

    @torch.no_grad()
    def forward(self, x: Tensor, latent_query: Tensor, step: Step, history: History) -> Tensor | None:
        """x [N, d], the normed latent query [N, q_lora_rank] -> int64 [N, topk], or None: every visible entry."""
        if self.dense:
            return None
        windows = step.windows(LayerKind.CSA)
        if windows.most <= self.topk:
            self.compressor(x, step, history)  # later steps will need the keys
            return None
        queries, weights, keys = self.index(x, latent_query, step, history)
        return index_topk(
            queries,
            weights,
            keys,
            windows.visible,
            step.tiles,
            k=self.topk,
            most=windows.most,
            rounds_queries=self.rounds_inputs,
        )

    def index(self, x: Tensor, latent_query: Tensor, step: Step, history: History) -> tuple[Tensor, Tensor, Pages]:
        """What scores are made of: queries [N, h, c], weights [N, h] with all scaling folded in, and the keys."""
        keys = self.compressor(x, step, history)
        queries = rope(self.wq_b(latent_query).unflatten(-1, (self.heads, self.dim)), *step.angles(LayerKind.CSA))
        return queries, self.weights_proj(x) * (self.dim * self.heads) ** -0.5, keys
