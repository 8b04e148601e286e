"""DeepSeek-V3.2: V4's predecessor, runnable beside it. What both have is V4's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from narrows.model.history import BatchHistory, History
from narrows.model.linear import Linear
from narrows.model.moe import Experts, SharedExpert
from narrows.model.norm import RMSNorm
from narrows.model.segments import Segment
from narrows.model.v32.attention import LatentAttention, TokenIndexer
from narrows.model.v32.config import V32Config
from narrows.model.v32.step import V32Step
from narrows.ops.dtypes import wide
from narrows.ops.route import route_in_groups


class V32Network(nn.Module):
    """The forward step of `Network`, for V3.2. Parameters are uninitialised: load them, or call `initialise`.

    Its MTP block is left out. A history is made with `layout_of`.
    """

    def __init__(
        self, config: V32Config, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.config = config
        d, eps = config.hidden_size, config.rms_norm_eps
        self.embed = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, d, dtype=dtype, device=device), freeze=False
        )
        self.layers = nn.ModuleList(
            V32Block(config, layer, dtype=dtype, device=device) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(d, eps, dtype=dtype, device=device)
        self.head = Linear(d, config.vocab_size, dtype=dtype, device=device)

    def forward(
        self, tokens: Tensor, positions: Tensor, segments: Sequence[Segment], history: History | None = None
    ) -> Tensor:
        """One step over N tokens of several sequences, packed: as `Network.forward`, but -> [N, d]."""
        step = V32Step(self.config, segments, positions)
        history = BatchHistory() if history is None else history
        history.begin(segments)
        x: Tensor = self.embed(tokens)
        for block in self.layers:
            x = block(x, step, history)
        history.commit(segments)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Next-token logits of the rows wanted: x [R, d] -> [R, vocab], float32 at least."""
        return self.head(self.norm(x)).to(wide(x.dtype))

    def initialise(self) -> None:
        """Draw all parameters afresh, as `Network.initialise`."""
        with torch.no_grad():
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=self.config.initializer_range)
            for module in self.modules():
                if isinstance(module, RMSNorm | TokenIndexer | GroupedRouter):
                    module.reset_parameters()


class V32Block(nn.Module):
    """x [N, d] -> [N, d], with plain residuals."""

    def __init__(self, config: V32Config, layer: int, *, dtype: torch.dtype, device: torch.device | str | None) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.rms_norm_eps
        self.attn_norm = RMSNorm(d, eps, dtype=dtype, device=device)
        self.attn = LatentAttention(config, layer, dtype=dtype, device=device)
        self.ffn_norm = RMSNorm(d, eps, dtype=dtype, device=device)
        self.ffn: nn.Module
        if config.is_dense_layer(layer):
            self.ffn = SharedExpert(d, config.intermediate_size, config.swiglu_limit, dtype=dtype, device=device)
        else:
            self.ffn = GroupedMoE(config, dtype=dtype, device=device)

    def forward(self, x: Tensor, step: V32Step, history: History) -> Tensor:
        x = x + self.attn(self.attn_norm(x), step, history)
        x = x + self.ffn(self.ffn_norm(x))
        return x


class GroupedMoE(nn.Module):
    """Routed experts, chosen within the best groups, and shared ones, which are one as wide as all of them."""

    def __init__(self, config: V32Config, *, dtype: torch.dtype, device: torch.device | str | None) -> None:
        super().__init__()
        self.gate = GroupedRouter(config, dtype=dtype, device=device)
        self.experts = Experts(config, dtype=dtype, device=device)
        width = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = SharedExpert(config.hidden_size, width, config.swiglu_limit, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, d] -> [N, d]."""
        weights, chosen = self.gate(x)
        routed: Tensor = self.experts(x, weights, chosen)
        return routed + self.shared_experts(x)


class GroupedRouter(nn.Module):
    """Chooses experts by affinity plus a balancing bias, which is a buffer: no gradient moves it."""

    bias: Tensor

    def __init__(self, config: V32Config, *, dtype: torch.dtype, device: torch.device | str | None) -> None:
        super().__init__()
        self.config = config
        count = config.n_routed_experts
        self.weight = nn.Parameter(torch.empty(count, config.hidden_size, dtype=wide(dtype), device=device))
        self.register_buffer("bias", torch.empty(count, dtype=wide(dtype), device=device))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, d] -> weights [N, k], experts [N, k]."""
        config = self.config
        return route_in_groups(
            F.linear(x.to(self.weight.dtype), self.weight),
            self.bias,
            groups=config.n_group,
            kept=config.topk_group,
            k=config.num_experts_per_tok,
            scale=config.routed_scaling_factor,
        )

    def reset_parameters(self) -> None:
        """No bias."""
        nn.init.zeros_(self.bias)
