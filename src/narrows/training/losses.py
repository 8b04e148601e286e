"""What is minimised in training."""

from __future__ import annotations

import torch
from torch import Tensor

from narrows.model.network import Network
from narrows.ops.cross_entropy import linear_cross_entropy
from narrows.training.batches import Batch


def training_losses(network: Network, batch: Batch, *, mtp: bool = True) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, summed over the batch's rows: of the next token, and of the MTP block's (R §2.4).

    The second is 0 in a network without an MTP block, and where `mtp` leaves it alone.
    """
    streams = network(batch.tokens, batch.positions, batch.segments)
    head = network.head.weight
    loss = linear_cross_entropy(network.collapse(streams), head, batch.targets)
    if not (mtp and network.mtp):
        return loss, torch.zeros_like(loss)
    ahead = network.mtp_forward(batch.targets, batch.positions, batch.segments, streams)
    return loss, linear_cross_entropy(network.mtp_collapse(ahead), head, batch.second_targets)
