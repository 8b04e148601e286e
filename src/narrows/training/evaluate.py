"""What is measured on text held out from training: bits per byte."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from narrows.model.network import Network
from narrows.ops.cross_entropy import linear_cross_entropy
from narrows.text.tokenizer import Tokenizer
from narrows.training.batches import pack, packed


@torch.no_grad()
def bits_per_byte(network: Network, tokenizer: Tokenizer, texts: Sequence[Sequence[int]], rows: int) -> float:
    """What `network` would need to write `texts` (token ids each) down: bits per byte, without MTP or FIM.

    Each text starts afresh; `rows` rows at most in one pass, a longer text in a pass of its own.
    """
    was_training = network.training
    network.eval()
    device = network.device
    bits, size = 0.0, 0
    for group in packed(([tokenizer.bos_id, *text] for text in texts if text), rows):
        batch = pack(group).to(device)
        streams = network(batch.tokens, batch.positions, batch.segments)
        bits += float(linear_cross_entropy(network.collapse(streams), network.head.weight, batch.targets))
        size += sum(len(tokenizer.bytes_of(token)) for sample in group for token in sample[1:])
    network.train(was_training)
    return bits / math.log(2) / size
