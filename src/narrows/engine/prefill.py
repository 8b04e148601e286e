"""One sequence through the network, chunk by chunk, for those who want every row: logits, measurements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from narrows.model.history import ContiguousHistory
from narrows.model.network import Network, positions_of

# Rows of one prefill step: enough to keep matrix products busy, few enough to bound the memory of their results.
PREFILL_ROWS = 1024


def new_history(network: Network) -> ContiguousHistory:
    """An empty history of one slot, in the network's dtype and on its device."""
    return ContiguousHistory(network.config, dtype=network.dtype, device=network.device)


@torch.inference_mode()
def prefill(network: Network, history: ContiguousHistory, token_ids: Sequence[int]) -> Iterator[Tensor]:
    """Run the tokens through the network chunk by chunk; yields each chunk's streams [rows, hc_mult, d]."""
    tokens = torch.tensor(token_ids, dtype=torch.int64, device=network.device)
    for chunk in tokens.split(PREFILL_ROWS):
        segments = [history.segment(chunk.shape[0])]
        yield network(chunk, positions_of(segments, chunk.device), segments, history)
