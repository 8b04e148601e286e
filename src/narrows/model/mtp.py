"""Multi-token prediction: one more block that predicts the token after the next (R §2.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from narrows.model.block import Block
from narrows.model.config import LayerKind, ModelConfig
from narrows.model.hyper import HyperHead
from narrows.model.linear import Linear
from narrows.model.norm import RMSNorm


class MTPBlock(Block):
    """An ordinary block (sliding window, learned routing) over the network's streams and the next token's embedding.

    The embedding and the output head are the network's; the collapse and the norm before the head are its own. Its
    history is a separate one with a single sliding layer (`PagedHistory.for_mtp`).
    """

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device | str | None) -> None:
        super().__init__(config, 0, LayerKind.SLIDING, hashed=False, dtype=dtype, device=device)
        d, eps = config.hidden_size, config.rms_norm_eps
        self.e_proj = Linear(d, d, dtype=dtype, device=device)
        self.h_proj = Linear(d, d, dtype=dtype, device=device)
        self.enorm = RMSNorm(d, eps, dtype=dtype, device=device)
        self.hnorm = RMSNorm(d, eps, dtype=dtype, device=device)
        self.norm = RMSNorm(d, eps, dtype=dtype, device=device)
        self.hc_head = HyperHead(config, dtype=dtype, device=device)

    def combine(self, embedded: Tensor, streams: Tensor) -> Tensor:
        """The block's input: the next token's embedding [N, d] on every stream of streams [N, S, d]."""
        return self.e_proj(self.enorm(embedded))[:, None, :] + self.h_proj(self.hnorm(streams))

    def collapse(self, streams: Tensor) -> Tensor:
        """[N, S, d] -> [N, d], what the shared head reads."""
        return self.norm(self.hc_head(streams))
