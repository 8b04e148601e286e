"""From logits to a token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from narrows.ops import native

# Below it logits / temperature could overflow; nothing is drawn differently.
_COLDEST = 1e-260


def sample(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """One token a row of logits [R, vocab] -> int64 [R].

    Temperature 0 is greedy (of equal logits the lower token wins); above, a draw from softmax(logits / temperature),
    taken on the CPU so that a seed gives the same text on every device.
    """
    if temperature == 0.0:
        return logits.argmax(-1)
    return draw(soften(logits.detach().to("cpu"), temperature), generator).to(logits.device)


def soften(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) of logits [..., vocab], in float64; the temperature is above 0."""
    return torch.softmax(logits.to(torch.float64) / max(temperature, _COLDEST), dim=-1)


def draw(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One token a row of weights [R, vocab], in proportion to them -> int64 [R]; never one whose weight is 0.

    By inverting their cumulative sum. The weights are float64 and on the generator's device.
    """
    cumulative = weights.cumsum(-1)
    places = torch.rand(weights.shape[0], 1, generator=generator, dtype=torch.float64) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, places, right=True).squeeze(-1).clamp(max=weights.shape[-1] - 1)


@dataclass(frozen=True)
class Summary:
    """Of logits [V]: the token of the largest, of equal ones the lowest, and log Σ e^logit; `finite`: whether all are.
    Where they are not the rest means nothing."""

    finite: bool
    largest: int
    log_sum: float


def summarize(logits: Tensor) -> Summary:
    """What of logits [V] every draw needs to know."""
    if native.serves(logits) and logits.dtype == torch.float32:
        return Summary(*native.kernels.summarize(native.plain(logits)))
    row = logits.detach().to("cpu", torch.float64)
    return Summary(bool(row.isfinite().all()), int(row.argmax()), float(row.logsumexp(-1)))
