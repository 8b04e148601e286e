"""Attention of all three kinds: a sliding window, and beside it CSA's selected or HCA's entries (R §2.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from narrows.model.compressor import Compressor
from narrows.model.config import LayerKind, ModelConfig
from narrows.model.history import History
from narrows.model.indexer import Indexer
from narrows.model.linear import Linear
from narrows.model.norm import RMSNorm
from narrows.model.segments import Step
from narrows.ops.dtypes import wide
from narrows.ops.linear import grouped_linear
from narrows.ops.norm import rms_norm
from narrows.ops.rope import rope
from narrows.ops.sparse_attention import Entries, Window, sparse_attention


@dataclass(frozen=True)
class Attended:
    """What one attention read, for those who watch it in training: its input, and what its softmax was over."""

    x: Tensor
    latent: Tensor
    q: Tensor
    window: Window
    entries: Entries | None
    step: Step


class Attention(nn.Module):
    """Multi-query attention with one KV head that is key and value at once.

    Queries through a low-rank latent, output through grouped low-rank projections, one learned sink a head. An
    `observer`, if there is one, is shown what every call attended to.
    """

    observer: Callable[[Attention, Attended], None] | None = None

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        kind: LayerKind,
        *,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.layer, self.kind = layer, kind
        self.heads, self.dim, self.groups = config.num_attention_heads, config.head_dim, config.o_groups
        self.window, self.eps = config.sliding_window, config.rms_norm_eps

        def linear(inputs: int, outputs: int) -> Linear:
            return Linear(inputs, outputs, dtype=dtype, device=device)

        self.wq_a = linear(config.hidden_size, config.q_lora_rank)
        self.q_norm = RMSNorm(config.q_lora_rank, self.eps, dtype=dtype, device=device)
        self.wq_b = linear(config.q_lora_rank, self.heads * self.dim)
        self.wkv = linear(config.hidden_size, self.dim)
        self.kv_norm = RMSNorm(self.dim, self.eps, dtype=dtype, device=device)
        self.wo_a = linear(self.heads // self.groups * self.dim, self.groups * config.o_lora_rank)
        self.wo_b = linear(self.groups * config.o_lora_rank, config.hidden_size)
        self.attn_sink = nn.Parameter(torch.empty(self.heads, dtype=wide(dtype), device=device))
        if kind is not LayerKind.SLIDING:
            self.compressor = Compressor(config, layer, kind, "compressor", self.dim, dtype=dtype, device=device)
        if kind is LayerKind.CSA:
            self.indexer = Indexer(config, layer, dtype=dtype, device=device)

    def forward(self, x: Tensor, step: Step, history: History) -> Tensor:
        """x [N, d] -> [N, d]."""
        angles = step.angles(self.kind)
        latent = self.q_norm(self.wq_a(x))
        q = rope(rms_norm(self.wq_b(latent).unflatten(-1, (self.heads, self.dim)), None, self.eps), *angles)
        kv = rope(self.kv_norm(self.wkv(x)), *angles)
        kv = history.extend_recent(self.layer, "window", kv, step.window, step)
        window = Window(kv, step.window_first, step.window_last, self.window)
        entries = self._entries(x, latent, step, history)
        if self.observer is not None:
            self.observer(self, Attended(x, latent, q, window, entries, step))
        out = sparse_attention(q, window, entries, self.attn_sink, step.tiles, step.single_rows)
        out = rope(out, *angles, inverse=True).flatten(1)
        return self.wo_b(grouped_linear(self.wo_a.read(out), self.wo_a.weight, self.groups))

    def _entries(self, x: Tensor, latent: Tensor, step: Step, history: History) -> Entries | None:
        if self.kind is LayerKind.SLIDING:
            return None
        pages = self.compressor(x, step, history)
        selected = self.indexer(x, latent, step, history) if self.kind is LayerKind.CSA else None
        windows = step.windows(self.kind)
        return Entries(pages, windows.visible, windows.most, selected) if windows.most else None

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.attn_sink)
