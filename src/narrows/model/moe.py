"""The mixture of experts: router, routed experts, shared expert (R §2.1)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from narrows.model.config import ModelConfig
from narrows.model.linear import Linear
from narrows.ops.dtypes import wide
from narrows.ops.experts import experts, swiglu
from narrows.ops.route import route


class Router(nn.Module):
    """Chooses experts by affinity plus a balancing bias, or, in hash layers, by a table of the token's.

    `bias` [E] and `tid2eid` [vocab, k] are buffers: no gradient moves them.
    """

    bias: Tensor
    tid2eid: Tensor

    def __init__(
        self, config: ModelConfig, *, hashed: bool, dtype: torch.dtype, device: torch.device | str | None
    ) -> None:
        super().__init__()
        self.hashed, self.k, self.scale = hashed, config.num_experts_per_tok, config.routed_scaling_factor
        count = config.n_routed_experts
        self.weight = nn.Parameter(torch.empty(count, config.hidden_size, dtype=wide(dtype), device=device))
        if hashed:
            table = torch.empty(config.vocab_size, self.k, dtype=torch.int64, device=device)
            self.register_buffer("tid2eid", table)
        else:
            self.register_buffer("bias", torch.empty(count, dtype=wide(dtype), device=device))

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, d], tokens [N] -> weights [N, k], experts [N, k]."""
        logits = F.linear(x.to(self.weight.dtype), self.weight)
        if self.hashed:
            return route(logits, None, self.tid2eid[tokens], k=self.k, scale=self.scale)
        return route(logits, self.bias, None, k=self.k, scale=self.scale)

    def reset_parameters(self) -> None:
        """No bias; in hash layers every token gets k distinct experts at random."""
        if self.hashed:
            order = torch.rand(self.tid2eid.shape[0], self.weight.shape[0], device=self.weight.device).argsort(-1)
            self.tid2eid.copy_(order[:, : self.k])
        else:
            nn.init.zeros_(self.bias)


class ExpertSizes(Protocol):
    """What experts read of a configuration."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def moe_intermediate_size(self) -> int: ...
    @property
    def n_routed_experts(self) -> int: ...
    @property
    def swiglu_limit(self) -> float: ...


class Experts(nn.Module):
    """All routed experts, stacked: w13 [E, 2·width, d] (gate rows first, then up), w2 [E, d, width].

    `rounds_inputs`: see `Network.round_inputs`.
    """

    rounds_inputs = False

    def __init__(self, config: ExpertSizes, *, dtype: torch.dtype, device: torch.device | str | None) -> None:
        super().__init__()
        count, width, d = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.limit = config.swiglu_limit
        self.w13 = nn.Parameter(torch.empty(count, 2 * width, d, dtype=dtype, device=device))
        self.w2 = nn.Parameter(torch.empty(count, d, width, dtype=dtype, device=device))

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        return experts(x, weights, chosen, self.w13, self.w2, self.limit, rounds_inputs=self.rounds_inputs)


class SharedExpert(nn.Module):
    """An expert that every token passes through: d -> `width` -> d, clamped at `limit` like the others."""

    def __init__(
        self, d: int, width: int, limit: float, *, dtype: torch.dtype, device: torch.device | str | None
    ) -> None:
        super().__init__()
        self.limit = limit
        self.w1 = Linear(d, width, dtype=dtype, device=device)
        self.w2 = Linear(width, d, dtype=dtype, device=device)
        self.w3 = Linear(d, width, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(swiglu(self.w1(x), self.w3(x), self.limit))


class MoE(nn.Module):
    """A block's second sub-layer. Who wants the experts' loads watches its router's choices (a forward hook)."""

    def __init__(
        self, config: ModelConfig, *, hashed: bool, dtype: torch.dtype, device: torch.device | str | None
    ) -> None:
        super().__init__()
        self.gate = Router(config, hashed=hashed, dtype=dtype, device=device)
        self.experts = Experts(config, dtype=dtype, device=device)
        d, width, limit = config.hidden_size, config.moe_intermediate_size, config.swiglu_limit
        self.shared_experts = SharedExpert(d, width, limit, dtype=dtype, device=device)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x [N, d], tokens int64 [N] (read by hash layers) -> [N, d]."""
        weights, chosen = self.gate(x, tokens)
        return self.experts(x, weights, chosen) + self.shared_experts(x)
