"""Bytes that a step must read from memory: of the weights, and of its requests' histories."""

from __future__ import annotations

from narrows.economics.storage import history_read
from narrows.economics.weights import EMBEDDING, ROUTED, Weight, weights
from narrows.economics.work import AnyConfig
from narrows.model.precision import Precision


def chosen_experts(config: AnyConfig, rows: float) -> float:
    """Different experts of a layer that so many rows need, if each chooses independently."""
    experts = config.n_routed_experts
    return experts * (1 - (1 - config.num_experts_per_tok / experts) ** rows)


def read_of(config: AnyConfig, weight: Weight, rows: float) -> float:
    """Bytes of these tensors that a step of so many rows reads: of tables a row each, of experts those that are
    chosen, of everything else all, once."""
    if weight.component == EMBEDDING or weight.name == "tid2eid":
        return rows * weight.bytes / weight.shape[0]
    if weight.component == ROUTED:
        return weight.bytes * chosen_experts(config, rows) / config.n_routed_experts
    return weight.bytes


def weights_read(config: AnyConfig, precision: Precision, rows: int = 1) -> int:
    """Of all weights, without the MTP block's."""
    return round(sum(read_of(config, weight, rows) for weight in weights(config, precision)))


def bytes_per_token(config: AnyConfig, precision: Precision, past: int) -> int:
    """What decoding one token behind `past` others must read: weights and history.

    The compressors' unfinished windows, a small part of the history, are left out.
    """
    return weights_read(config, precision) + sum(read.bytes for read in history_read(config, past + 1, precision))
