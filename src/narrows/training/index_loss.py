"""The indexer's own loss: its scores learn from the attention that they will choose for (R §2.3.1; V3.2's recipe)."""

from __future__ import annotations

import torch
from torch import Tensor

from narrows.model.attention import Attended, Attention
from narrows.model.config import LayerKind
from narrows.model.history import BatchHistory
from narrows.model.network import Network
from narrows.ops.pages import Pages


class IndexerTeacher:
    """Watches CSA layers' attention while `active`, from its making until `close`, and collects the indexers' losses.

    The target is the attention over entries, summed over the heads and normalised to sum 1. The loss is the KL
    divergence of the softmax over index scores from it: over all visible entries, or over the selected ones where
    there is a selection. Nothing of it flows into the rest of the network.
    """

    def __init__(self, network: Network) -> None:
        self.active = False
        self._layers = [m for m in network.modules() if isinstance(m, Attention) and m.kind is LayerKind.CSA]
        self._losses: list[Tensor] = []
        for layer in self._layers:
            layer.observer = self._watch

    def loss(self) -> Tensor:
        """Of the pass since the last call, in nats: summed over rows, averaged over layers; 0 if there was none."""
        losses, self._losses = self._losses, []
        return torch.stack(losses).mean() if losses else torch.zeros(())

    def close(self) -> None:
        """Stop watching."""
        for layer in self._layers:
            layer.observer = None

    def _watch(self, attention: Attention, seen: Attended) -> None:
        if self.active and attention.training and seen.entries is not None:
            history = BatchHistory()
            history.begin(seen.step.segments)
            queries, weights, keys = attention.indexer.index(seen.x.detach(), seen.latent.detach(), seen.step, history)
            self._losses.append(index_loss(attention, seen, queries, weights, keys))


def index_loss(attention: Attention, seen: Attended, queries: Tensor, weights: Tensor, keys: Pages) -> Tensor:
    """Σ over rows of KL(attention over entries ‖ softmax of the scores Σ_h w_h · ReLU(q_h · key)), in nats.

    queries [N, h, c], weights [N, h]: the indexer's; keys: one index key an entry. Rows that see no entry count
    nothing.
    """
    entries = seen.entries
    assert entries is not None
    heads, dim = queries.shape[1:]
    larger = max(heads, seen.q.shape[1])
    number = torch.arange(entries.most, device=queries.device)
    total = queries.new_zeros((), dtype=torch.float32)
    for run in seen.step.tiles.groups(lambda size: (entries.most + seen.window.size + size) * max(size * larger, dim)):
        rows, segment = run.rows, run.segment
        allowed = number < entries.visible[rows][:, :, None]  # [T, B, E]
        if entries.selected is not None:
            named = torch.zeros((*rows.shape, entries.most + 1), dtype=torch.bool, device=rows.device)
            selected = entries.selected[rows]
            named.scatter_(-1, torch.where(selected < 0, entries.most, selected), True)
            allowed &= named[..., :-1]
        target = _attention_over_entries(attention, seen, rows, segment, allowed)
        key = keys.gather(segment[:, None], number, torch.float32)
        products = torch.bmm(queries[rows].to(torch.float32).flatten(1, 2), key.mT).relu()
        products = products.unflatten(1, (rows.shape[1], heads))
        scores = torch.einsum("tbhe,tbh->tbe", products, weights[rows].to(torch.float32))
        scores = scores.masked_fill(~allowed, -torch.inf)
        counted = (allowed.any(-1) & run.real)[..., None]
        log_share = scores.where(counted, 0.0).log_softmax(-1).where(allowed, 0.0)
        total = total + ((torch.special.xlogy(target, target) - target * log_share) * counted).sum()
    return total


@torch.no_grad()
def _attention_over_entries(
    attention: Attention, seen: Attended, rows: Tensor, segment: Tensor, allowed: Tensor
) -> Tensor:
    """Each row's attention over its entries, summed over heads, normalised: [T, B, E]; zeros where it sees none."""
    entries, window = seen.entries, seen.window
    assert entries is not None
    size, (heads, dim) = rows.shape[1], seen.q.shape[1:]
    q = (seen.q[rows].to(torch.float32) * dim**-0.5).flatten(1, 2)

    def scores(keys: Tensor, seeing: Tensor) -> Tensor:  # [T, B, H, K]
        product = torch.bmm(q, keys.to(torch.float32).mT).unflatten(1, (size, heads))
        return product.masked_fill_(~seeing[:, :, None], -torch.inf)

    width = min(window.size + size - 1, window.storage.shape[0])
    start = window.first[rows[:, 0]].clamp(max=window.storage.shape[0] - width)
    near = start[:, None] + torch.arange(width, device=rows.device)
    in_window = (near[:, None] >= window.first[rows][..., None]) & (near[:, None] <= window.last[rows][..., None])
    far = entries.pages.gather(segment[:, None], torch.arange(entries.most, device=rows.device), torch.float32)
    over_entries = scores(far, allowed)
    sink = attention.attn_sink.to(torch.float32)[:, None].expand(*over_entries.shape[:3], 1)
    everything = torch.cat((scores(window.storage[near], in_window), over_entries, sink), dim=-1)
    total = everything.logsumexp(-1, keepdim=True)
    summed = (over_entries - total).exp_().sum(2)
    return summed / (summed.sum(-1, keepdim=True) + 1e-20)
