"""The router's choice of experts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from narrows.ops.topk import top_k


def route(
    affinity_logits: Tensor, bias: Tensor | None, chosen: Tensor | None, *, k: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Weights and experts of every token (R §2.1).

    Affinity = sqrt(softplus(logit)), logits [N, E]. `bias` [E] takes part in the choice only; a hash layer hands over
    its `chosen` [N, k] instead. Weights are the chosen affinities, normalised to sum 1, times `scale`.
    -> weights [N, k], experts int64 [N, k] (ascending where they are chosen by affinity: of equals the lower wins).
    """
    affinity = F.softplus(affinity_logits).sqrt()
    if chosen is None:
        with torch.no_grad():
            wanted = affinity if bias is None else affinity + bias
            # What is not a number chooses some experts all the same, and reaches the loss through its weights.
            chosen = top_k(torch.nan_to_num(wanted), k)
    return _weighted(affinity, chosen, scale), chosen


def route_in_groups(
    affinity_logits: Tensor, bias: Tensor, *, groups: int, kept: int, k: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The same as DeepSeek-V3 has it (arXiv 2412.19437, eqs. 12-16): affinity = sigmoid(logit), and only the `kept`
    groups of experts, of as many in a row, may be chosen whose two highest affinities, bias included, have the highest
    sums."""
    affinity = affinity_logits.sigmoid()
    with torch.no_grad():
        wanted = torch.nan_to_num(affinity + bias).unflatten(-1, (groups, -1))
        best = top_k(wanted.topk(min(2, wanted.shape[-1]), dim=-1).values.sum(-1), kept)
        open_ = torch.zeros(wanted.shape[:-1], dtype=torch.bool, device=wanted.device).scatter_(-1, best, True)
        chosen = top_k(wanted.masked_fill(~open_[..., None], -torch.inf).flatten(-2), k)
    return _weighted(affinity, chosen, scale), chosen


def _weighted(affinity: Tensor, chosen: Tensor, scale: float) -> Tensor:
    """The chosen affinities, normalised to sum 1, times `scale`."""
    weights = affinity.gather(1, chosen)
    return weights / (weights.sum(-1, keepdim=True) + 1e-20) * scale
