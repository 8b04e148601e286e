"""Hyper-connections: the parameters behind mHC's mixing (R §2.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from narrows.model.config import ModelConfig
from narrows.ops.dtypes import wide
from narrows.ops.hyper import hyper_collapse, hyper_post, hyper_pre


class HyperConnection(nn.Module):
    """Around one sub-layer: what it reads from the streams, and how its output returns to them."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device | str | None) -> None:
        super().__init__()
        self.iterations, self.eps, self.norm_eps = config.hc_sinkhorn_iters, config.hc_eps, config.rms_norm_eps
        count = config.hc_mult
        mixes = (2 + count) * count
        self.fn = nn.Parameter(torch.empty(mixes, count * config.hidden_size, dtype=wide(dtype), device=device))
        self.base = nn.Parameter(torch.empty(mixes, dtype=wide(dtype), device=device))
        self.scale = nn.Parameter(torch.empty(3, dtype=wide(dtype), device=device))

    def pre(self, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """streams [N, S, d] -> the sub-layer's input [N, d], post [N, S], comb [N, S, S]."""
        return hyper_pre(
            streams,
            self.fn,
            self.base,
            self.scale,
            iterations=self.iterations,
            eps=self.eps,
            norm_eps=self.norm_eps,
        )

    @staticmethod
    def post(streams: Tensor, out: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        """The streams after the sub-layer's output [N, d]."""
        return hyper_post(streams, out, post, comb)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.base)
        nn.init.ones_(self.scale)


class HyperHead(nn.Module):
    """The streams' collapse before the final norm."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device | str | None) -> None:
        super().__init__()
        self.eps, self.norm_eps = config.hc_eps, config.rms_norm_eps
        count = config.hc_mult
        self.fn = nn.Parameter(torch.empty(count, count * config.hidden_size, dtype=wide(dtype), device=device))
        self.base = nn.Parameter(torch.empty(count, dtype=wide(dtype), device=device))
        self.scale = nn.Parameter(torch.empty(1, dtype=wide(dtype), device=device))

    def forward(self, streams: Tensor) -> Tensor:
        """[N, S, d] -> [N, d]."""
        return hyper_collapse(streams, self.fn, self.base, self.scale, eps=self.eps, norm_eps=self.norm_eps)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.base)
        nn.init.ones_(self.scale)
