"""Attention over latents that many heads share: DeepSeek-V3's MLA with its projections absorbed into the query."""

from __future__ import annotations

import torch
from torch import Tensor

from narrows.ops.dtypes import wide
from narrows.ops.pages import Pages
from narrows.ops.tiles import Tiles


def latent_attention(
    q: Tensor,
    latents: Pages,
    visible: Tensor,
    selected: Tensor | None,
    tiles: Tiles,
    *,
    width: int,
    most: int,
    scale: float,
) -> Tensor:
    """Σ_i softmax_i(scale · q · latent_i) · latent_i[:width], over the latents that a row attends to.

    q [N, H, c]; latents of c features, of which the first `width` are the value; row n may see those below visible[n]
    (`most`: the largest of them) and, where there is a selection, of these only selected [N, k] (-1: none).
    -> [N, H, width]. Reference: arXiv 2405.04434, eqs. 9-11 and C; it differentiates with respect to everything.
    """
    heads, dtype = q.shape[1], wide(q.dtype)
    keys = min(most, selected.shape[1]) if selected is not None else most
    out = []
    for run in tiles.groups(lambda size: size * keys * max(heads, q.shape[2] if selected is not None else 1)):
        rows = run.rows
        if selected is None:
            entry = torch.arange(most, device=q.device).expand(*rows.shape, most)
            blocked = entry >= visible[rows][..., None]
            latent = latents.gather(run.segment[:, None], entry[:, 0], dtype)[:, None]
        else:
            entry = selected[rows]
            blocked = entry < 0
            latent = latents.gather(run.segment[:, None, None], entry.clamp(min=0), dtype)
        queries = q[rows].to(dtype) * scale
        scores = torch.matmul(queries, latent.mT).masked_fill(blocked[:, :, None], -torch.inf)
        out.append(torch.matmul(scores.softmax(-1), latent[..., :width]))
    return tiles.untile(out).to(q.dtype)
