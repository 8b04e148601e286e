"""The state of a run in one file, from which it goes on as if it had never stopped."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from narrows.errors import NarrowsError
from narrows.model.network import Network
from narrows.training.masters import Masters


@dataclass
class Progress:
    """How far a run is: steps taken, where its stage's batches stand, and what spikes are measured by."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    mean_norm: float = 0.0  # running mean of the gradient's norm; 0 before the first step
    skipped_in_a_row: int = 0


def save_state(
    file: Path,
    network: Network,
    masters: Masters,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: Progress,
    identity: dict[str, Any],
) -> None:
    """Write all of it to `file`: complete and on the disk, or not at all, and then the file stays what it was.

    `identity`: what the run was started from; plain values, compared when the file is read.
    """
    state = {
        "identity": identity,
        "masters": masters.parameters,
        "buffers": dict(network.named_buffers()),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "progress": vars(progress),
    }
    unfinished = file.with_suffix(".unfinished")
    try:
        with unfinished.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        unfinished.unlink(missing_ok=True)
        raise NarrowsError(
            f"{file} cannot be written ({error}); free some space and start again: the last checkpoint is untouched."
        ) from None


def load_state(
    file: Path,
    network: Network,
    masters: Masters,
    optimizers: Sequence[torch.optim.Optimizer],
    identity: dict[str, Any],
) -> Progress:
    """Restore what `save_state` wrote; a fresh Progress if there is no such file.

    NarrowsError, naming what differs, for the state of a run with another identity, and for a damaged file.
    """
    if not file.exists():
        return Progress()
    try:
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location=network.device)
        _check_identity(file, state["identity"], identity)
        with torch.no_grad():
            _restore(masters.parameters, state["masters"])
            _restore(dict(network.named_buffers()), state["buffers"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return Progress(**state["progress"])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise NarrowsError(f"{file} is damaged ({error}); delete it to start from the beginning.") from None


def _restore(here: dict[str, Any], saved: dict[str, Tensor]) -> None:
    for name, tensor in here.items():
        tensor.copy_(saved[name])


def _check_identity(file: Path, saved: dict[str, Any], identity: dict[str, Any]) -> None:
    for key in {**saved, **identity}:
        if saved.get(key) != identity.get(key):
            raise NarrowsError(
                f"{file} belongs to a run with another {key} ({saved.get(key)!r}, here {identity.get(key)!r}); "
                "choose another folder for this run, or delete the file to start from the beginning."
            )
