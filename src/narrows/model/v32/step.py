"""The index plan of a V3.2 step: every token is an entry of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from narrows.model.history import EntryRows, Layout
from narrows.model.segments import Growth, PackedRows, Segment
from narrows.model.v32.config import V32Config
from narrows.ops.rope import rope_angles, rope_frequencies
from narrows.ops.row_format import Plain


class V32Step(PackedRows):
    """What all layers of a step share."""

    def __init__(self, config: V32Config, segments: Sequence[Segment], positions: Tensor) -> None:
        super().__init__(segments, positions, config.max_position_embeddings)
        self.config = config

    @cached_property
    def angles(self) -> tuple[Tensor, Tensor]:
        """RoPE's cos and sin of every row."""
        config = self.config
        frequencies = rope_frequencies(config.qk_rope_head_dim, config.rope_theta, config.rope_scaling)
        return rope_angles(self.positions, frequencies.to(self.device))

    @cached_property
    def tokens(self) -> Growth:
        """The step's tokens as entries."""
        return self.growth(1)


def layout_of(config: V32Config, dtype: torch.dtype) -> Layout:
    """What a history keeps of every token: a layer's latent and its index key, in the network's dtype."""
    entries = {}
    for layer in range(config.num_hidden_layers):
        latent = config.kv_lora_rank + config.qk_rope_head_dim
        for name, width in (("latent", latent), ("keys", config.index_head_dim)):
            entries[layer, name] = EntryRows(1, Plain(width, dtype))
    return Layout({}, entries)
