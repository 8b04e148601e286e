"""Top-k with a defined answer to ties."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(scores: Tensor, k: int) -> Tensor:
    """Indices of the k highest scores along the last dim, ascending; of equal scores the lower index wins.

    scores [..., n] -> int64 [..., k]; -inf is never chosen: where fewer than k others are, the rest is -1.
    """
    n = scores.shape[-1]
    if n > k:
        cut = scores.topk(k, dim=-1).values[..., -1:]
        above, at_cut = scores > cut, scores == cut
        room = k - above.sum(-1, keepdim=True)
        chosen = above | (at_cut & (at_cut.cumsum(-1) <= room))
        chosen &= scores > -torch.inf
    else:
        chosen = scores > -torch.inf
    place = torch.where(chosen, chosen.cumsum(-1) - 1, k)
    out = scores.new_full((*scores.shape[:-1], k + 1), -1, dtype=torch.int64)
    out.scatter_(-1, place, torch.arange(n, device=scores.device).expand_as(place))
    return out[..., :k]
