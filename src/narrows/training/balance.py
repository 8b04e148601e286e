"""Load balancing (R §2.1): the routers' biases follow the load, and a small loss evens out single sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from narrows.model.moe import Router
from narrows.model.network import Network
from narrows.model.segments import Segment


class LoadBalancer:
    """Watches every router that chooses by affinity, from its making until `close`.

    `speed` is how far a step moves a bias: up where an expert got fewer tokens than the mean, down where more.
    """

    def __init__(self, network: Network, speed: float) -> None:
        self._speed = speed
        self.routers = {
            name: module for name, module in network.named_modules() if isinstance(module, Router) and not module.hashed
        }
        self._hooks = [router.register_forward_hook(self._watch) for router in self.routers.values()]
        self._segments: Tensor | None = None
        self._losses: list[Tensor] = []
        self._loads: dict[Router, Tensor] = {}

    def begin(self, segments: Sequence[Segment], device: torch.device) -> None:
        """Before a pass over these segments."""
        rows = torch.tensor([segment.rows for segment in segments], device=device)
        self._segments = torch.arange(len(segments), device=device).repeat_interleave(rows)
        self._losses = []

    def loss(self) -> Tensor:
        """Behind the pass: the sequence-wise balance loss, averaged over its sequences, summed over the layers.

        Σ_i f_i · P_i per sequence: f_i the share of its choices that expert i got, times the experts; P_i the mean of
        its share of the affinities. 1 where all is even.
        """
        return torch.stack(self._losses).sum() if self._losses else torch.zeros(())

    @torch.no_grad()
    def update(self) -> dict[str, list[int]]:
        """Move the biases by the loads since the last update or `forget`. -> each router's tokens per expert: none
        of one that was not used."""
        for router, load in self._loads.items():
            load = load.to(router.bias.dtype)
            router.bias += self._speed * torch.sign(load.mean() - load)
        loads = {
            name: self._loads[router].tolist() if router in self._loads else [0] * router.weight.shape[0]
            for name, router in self.routers.items()
        }
        self.forget()
        return loads

    def forget(self) -> None:
        """Drop the loads: the step is not taken."""
        self._loads = {}

    def close(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()

    def _watch(self, router: nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        if not router.training or self._segments is None:
            return
        assert isinstance(router, Router)
        x, chosen = inputs[0], outputs[1]
        count, sequences = router.weight.shape[0], int(self._segments[-1]) + 1
        affinity = F.softplus(F.linear(x.to(router.weight.dtype), router.weight)).sqrt()
        share = affinity / (affinity.sum(-1, keepdim=True) + 1e-20)
        lengths = self._segments.bincount().to(share.dtype)[:, None]
        mean_share = share.new_zeros(sequences, count).index_add(0, self._segments, share) / lengths
        expert = (self._segments[:, None] * count + chosen).flatten()
        choices = expert.bincount(minlength=sequences * count).view(sequences, count)
        frequency = choices * (count / chosen.shape[1]) / lengths
        self._losses.append((frequency * mean_share).sum(-1).mean())
        load = choices.sum(0)
        self._loads[router] = self._loads.get(router, 0) + load
