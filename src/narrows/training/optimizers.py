"""Which parameter is trained by which optimiser (R §4.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch.nn import Parameter

from narrows.model.config import ModelConfig
from narrows.training.muon import Muon

_BETAS = (0.9, 0.95)
_EPSILON = 1e-20
# Two-dimensional, but not for Muon: the embedding, the head, and the compressors' bias per window position.
_TABLES = ("embed.weight", "head.weight", "ape")


def make_optimizers(
    parameters: Mapping[str, Parameter], config: ModelConfig, lr: float, weight_decay: float = 0.1
) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for all matrices, AdamW for embedding, head, norms, sinks and the static parts of mHC.

    `parameters` by the network's names. The two share one learning rate.
    """
    matrices: list[tuple[Parameter, int]] = []
    others: list[Parameter] = []
    for name, parameter in parameters.items():
        if parameter.ndim >= 2 and not name.endswith(_TABLES):
            matrices.append((parameter, _stacked_matrices(name, config)))
        else:
            others.append(parameter)
    adamw = torch.optim.AdamW(others, lr=lr, betas=_BETAS, eps=_EPSILON, weight_decay=weight_decay, fused=True)
    return Muon(matrices, lr=lr, weight_decay=weight_decay), adamw


def _stacked_matrices(name: str, config: ModelConfig) -> int:
    """How many matrices one parameter holds above each other: each is orthogonalised by itself."""
    if name.endswith("experts.w13"):
        return 2  # gate and up
    if name.endswith("attn.wo_a.weight"):
        return config.o_groups
    return 1


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    """Use `lr` from the next step on."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
