"""Partial, interleaved rotary position embedding, with YaRN's stretched frequencies."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from narrows.ops.dtypes import wide


class YarnLike(Protocol):
    """What `rope_frequencies` reads of a YaRN setting."""

    @property
    def factor(self) -> float: ...
    @property
    def original_max_position_embeddings(self) -> int: ...
    @property
    def beta_fast(self) -> float: ...
    @property
    def beta_slow(self) -> float: ...


def rope_frequencies(dims: int, theta: float, yarn: YarnLike | None = None) -> Tensor:
    """Inverse frequencies, float32 [dims / 2], one per pair of adjacent channels.

    With `yarn` (arXiv 2309.00071, eq. 23): channels that turn more than beta_fast times within the original length
    keep their frequency, those that turn less than beta_slow times are slowed by `factor`, between them a linear
    ramp whose ends are floored, ceiled and clipped to the channels there are.
    """
    period = theta ** (torch.arange(0, dims, 2, dtype=torch.float32) / dims)
    if yarn is None:
        return 1.0 / period

    def channel_turning(turns: float) -> float:
        length = yarn.original_max_position_embeddings
        return dims * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(channel_turning(yarn.beta_fast)), 0)
    high = min(math.ceil(channel_turning(yarn.beta_slow)), dims - 1)
    width = high - low if high != low else 0.001
    slowed = ((torch.arange(dims // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    kept = 1 - slowed
    return (1.0 / (yarn.factor * period)) * (1 - kept) + (1.0 / period) * kept


def rope_angles(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [N, dims / 2], of positions [N].

    Angles are float32 whatever the network's dtype: that is what the checkpoints were trained with, and at the last
    position float64 would differ from it by 0.024 rad.
    """
    angles = positions.to(torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False) -> Tensor:
    """Rotate the last 2·cos.shape[-1] dims of x [N, ..., c] by the row's angle; `inverse` rotates back.

    Pairs are adjacent channels (interleaved), the dims before them stay as they are. Result in x's dtype.
    """
    shape = (cos.shape[0],) + (1,) * (x.dim() - 2) + (cos.shape[1],)
    dtype = wide(x.dtype)
    cos, sin = cos.view(shape).to(dtype), sin.view(shape).to(dtype)
    if inverse:
        sin = -sin
    # split and unbind, not slices: a slice's gradient is a tensor of zeros as large as x.
    dims = 2 * cos.shape[-1]
    still, turning = x.split([x.shape[-1] - dims, dims], dim=-1)
    even, odd = turning.to(dtype).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return torch.cat((still, turned.to(x.dtype)), dim=-1)
