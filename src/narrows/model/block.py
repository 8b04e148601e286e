"""One block: attention and mixture of experts, each inside its hyper-connection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from narrows.model.attention import Attention
from narrows.model.config import LayerKind, ModelConfig
from narrows.model.history import History
from narrows.model.hyper import HyperConnection
from narrows.model.moe import MoE
from narrows.model.norm import RMSNorm
from narrows.model.segments import Step


class Block(nn.Module):
    """streams [N, S, d] -> streams [N, S, d]. `layer` is where its history lives."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        kind: LayerKind,
        *,
        hashed: bool,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.hc_attn = HyperConnection(config, dtype=dtype, device=device)
        self.attn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype, device=device)
        self.attn = Attention(config, layer, kind, dtype=dtype, device=device)
        self.hc_ffn = HyperConnection(config, dtype=dtype, device=device)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype, device=device)
        self.ffn = MoE(config, hashed=hashed, dtype=dtype, device=device)

    def forward(self, streams: Tensor, tokens: Tensor, step: Step, history: History) -> Tensor:
        x, post, comb = self.hc_attn.pre(streams)
        streams = self.hc_attn.post(streams, self.attn(self.attn_norm(x), step, history), post, comb)
        x, post, comb = self.hc_ffn.pre(streams)
        return self.hc_ffn.post(streams, self.ffn(self.ffn_norm(x), tokens), post, comb)
