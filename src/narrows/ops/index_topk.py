"""The lightning indexer's selection, streaming over the entries."""

from __future__ import annotations

import torch
from torch import Tensor

from narrows.ops.dtypes import through_bf16, wide
from narrows.ops.pages import Pages
from narrows.ops.tiles import CACHED, Tiles, element_budget
from narrows.ops.topk import top_k


@torch.no_grad()
def index_topk(
    queries: Tensor,
    weights: Tensor,
    keys: Pages,
    visible: Tensor,
    tiles: Tiles,
    *,
    k: int,
    most: int,
    rounds_queries: bool = False,
) -> Tensor:
    """The k entries with the highest scores Σ_h w_h · ReLU(q_h · key) among those a row may see (R eqs. 15-17).

    queries [N, h, c], weights [N, h] (all scaling folded in), keys of c features, visible int64 [N]: row n may see
    the entries below visible[n]; most: the largest of them; rounds_queries: products read the queries, turned where the
    keys are, rounded to BF16. Entries are read in blocks and a running top-k is kept, so nothing of size rows × entries
    exists.
    -> int64 [N, k]: entry numbers within the row's segment, ascending; -1 where fewer are visible. Of equal scores
    the lower entry wins. A row that may see no more than k takes all of them whatever their scores, so that it does not
    matter for it whether its step had to choose for others; else -inf and NaN are not taken.
    """
    heads, dim = queries.shape[1:]
    queries = keys.queries(queries)
    if rounds_queries:
        queries = through_bf16(queries)
    dtype = wide(queries.dtype)
    budget = 2 * CACHED if queries.device.type == "cpu" else element_budget(queries.device)

    def block(size: int) -> int:
        """Entries read at a time by a tile of `size` rows."""
        return max(k, min(most, budget // (size * heads)))

    out = []
    for run in tiles.groups(lambda size: block(size) * max(size * heads, dim)):
        rows, segment, size = run.rows, run.segment, run.rows.shape[1]
        q = queries[rows].to(dtype).flatten(1, 2)
        w = weights[rows].to(dtype)[:, :, None, :]
        limit = visible[rows][:, :, None]
        best = torch.full((*rows.shape, k), -torch.inf, dtype=dtype, device=rows.device)
        best_entry = rows.new_full((*rows.shape, k), -1)
        for start in range(0, most, block(size)):
            entry = torch.arange(start, min(start + block(size), most), device=rows.device)
            key = keys.gather(segment[:, None], entry, dtype)
            products = torch.relu_(torch.bmm(q, key.mT)).unflatten(1, (size, heads))
            scores = torch.matmul(w, products).squeeze(2).masked_fill_(entry >= limit, -torch.inf)
            # Candidates stay in ascending order of entry, so that top_k's rule for ties is ours.
            best = torch.cat((best, scores), dim=-1)
            best_entry = torch.cat((best_entry, entry.expand_as(scores)), dim=-1)
            chosen = top_k(best, k)
            found = chosen >= 0
            best = best.gather(-1, chosen.clamp(min=0)).masked_fill_(~found, -torch.inf)
            best_entry = best_entry.gather(-1, chosen.clamp(min=0)).masked_fill_(~found, -1)
        out.append(best_entry)
    number = torch.arange(k, device=visible.device)
    everything = torch.where(number < visible[:, None], number, -1)
    return torch.where((visible <= k)[:, None], everything, tiles.untile(out))
