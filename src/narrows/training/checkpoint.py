"""The state of a run in one file, from which it goes on as if it had never stopped."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from narrows.errors import NarrowsError


def save_state(
    file: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], progress: dict[str, int]
) -> None:
    """Write weights, optimisers and `progress` to `file`: complete, or not at all."""
    state = {
        "network": network.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "progress": progress,
    }
    unfinished = file.with_suffix(".unfinished")
    try:
        torch.save(state, unfinished)
        os.replace(unfinished, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        unfinished.unlink(missing_ok=True)
        raise NarrowsError(f"{file} cannot be written ({error}); free some space or choose another folder.") from None


def load_state(file: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, int] | None:
    """Restore what `save_state` wrote and return its `progress`; None if there is no such file."""
    if not file.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(file, weights_only=True)
        network.load_state_dict(state["network"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        progress: dict[str, int] = state["progress"]
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError):
        raise NarrowsError(
            f"{file} is damaged or belongs to a run with other settings; delete it to start from the beginning."
        ) from None
    return progress
