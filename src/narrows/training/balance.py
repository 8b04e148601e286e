"""Load balancing without a loss: the router's bias follows the load (R §2.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from narrows.model.moe import MoE
from narrows.model.network import Network


class LoadBalancer:
    """Counts every expert's tokens over a step's passes and moves the biases once a step.

    `speed` is how far a bias moves: up where an expert got fewer tokens than the mean, down where it got more.
    """

    def __init__(self, network: Network, speed: float) -> None:
        self._layers = [module for module in network.modules() if isinstance(module, MoE) and not module.gate.hashed]
        self._speed = speed
        self._loads: list[Tensor | int] = [0] * len(self._layers)

    def count(self) -> None:
        """Add the loads of the pass that was just computed."""
        for number, layer in enumerate(self._layers):
            assert layer.last_load is not None, "counted before a forward pass in training mode"
            self._loads[number] = self._loads[number] + layer.last_load

    @torch.no_grad()
    def update(self) -> float:
        """Move the biases and forget the counts. -> the largest load over the mean load, of all layers."""
        worst = 0.0
        for layer, load in zip(self._layers, self._loads, strict=True):
            load = torch.as_tensor(load, dtype=layer.gate.bias.dtype)
            mean = load.mean()
            layer.gate.bias += self._speed * torch.sign(mean - load)
            worst = max(worst, float(load.max() / mean))
        self._loads = [0] * len(self._layers)
        return worst
