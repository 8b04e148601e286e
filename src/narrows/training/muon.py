"""Muon: momentum whose matrices are orthogonalised before they are applied (R §2.4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

# Eight steps that bring every singular value near 1, then two that settle it there (R §2.4).
_FAST = (3.4445, -4.7750, 2.0315)
_SETTLE = (2.0, -1.5, 0.5)
_COEFFICIENTS = (_FAST,) * 8 + (_SETTLE,) * 2
# Orthogonal times sqrt(max(n, m)) · 0.18 is about the size of an AdamW update, so both share a learning rate.
_UPDATE_SCALE = 0.18


def orthogonalize(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix of each, by Newton-Schulz: [B, n, m] -> bfloat16 [B, n, m].

    Zero matrices stay zero. Sums are taken in bfloat16, which R found to be enough.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-30)).bfloat16()
    for a, b, c in _COEFFICIENTS:
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """W <- W · (1 - lr · decay) - lr · 0.18 · sqrt(max(n, m)) · orthogonalize(Nesterov momentum of the gradient).

    `parameters`: pairs of a parameter [..., rows, columns] and the number of matrices that lie above each other in its
    rows (2 for gate and up projections in one tensor). Matrices of one shape are orthogonalised in one batch.
    """

    def __init__(
        self, parameters: Iterable[tuple[Parameter, int]], lr: float, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        pairs = list(parameters)
        self._stacked = [stacked for _, stacked in pairs]
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([parameter for parameter, _ in pairs], defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply the gradients; a parameter without one is left alone."""
        (group,) = self.param_groups
        lr, momentum, weight_decay = group["lr"], group["momentum"], group["weight_decay"]
        by_shape: dict[tuple[int, ...], list[tuple[Parameter, Tensor]]] = defaultdict(list)
        for parameter, stacked in zip(group["params"], self._stacked, strict=True):
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            average = state["momentum"].mul_(momentum).add_(parameter.grad)
            nesterov = parameter.grad.add(average, alpha=momentum)
            matrices = nesterov.view(-1, parameter.shape[-2] // stacked, parameter.shape[-1])
            by_shape[tuple(matrices.shape[1:])].append((parameter, matrices))
        for shape, members in by_shape.items():
            updates = orthogonalize(torch.cat([matrices for _, matrices in members]))
            parts = updates.split([matrices.shape[0] for _, matrices in members])
            for (parameter, _), update in zip(members, parts, strict=True):
                parameter.mul_(1 - lr * weight_decay)
                parameter.add_(update.reshape(parameter.shape), alpha=-lr * _UPDATE_SCALE * max(shape) ** 0.5)
