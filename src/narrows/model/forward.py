"""A network as those see it who run it, whatever computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from narrows.model.config import ModelConfig
from narrows.model.precision import Precision
from narrows.model.segments import Segment


class Forward(Protocol):
    """What `Network`, the reference, and `NativeNetwork` have in common; `Network` says what the methods do.

    `cache` is the precision of a history that belongs to it (None: that of `dtype`), `mtp` true where there is an MTP
    block (in `Network`, a list of it).
    """

    @property
    def config(self) -> ModelConfig: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def cache(self) -> Precision | None: ...
    @property
    def mtp(self) -> bool | nn.ModuleList: ...
    @property
    def parameter_count(self) -> int: ...

    def __call__(self, tokens: Tensor, positions: Tensor, segments: Sequence[Segment], history: Any) -> Tensor: ...
    def logits(self, streams: Tensor) -> Tensor: ...
    def mtp_forward(
        self, next_tokens: Tensor, positions: Tensor, segments: Sequence[Segment], streams: Tensor, history: Any
    ) -> Tensor: ...
    def mtp_logits(self, streams: Tensor) -> Tensor: ...

    def fingerprint(self) -> str:
        """What decides its results beside tokens, configuration and cache: its weights, and what computes."""
