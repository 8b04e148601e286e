"""One sequence through the network, chunk by chunk, for those who want every row: logits, measurements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from narrows.engine.paged_history import PagedHistory, block_tokens
from narrows.model.forward import Forward
from narrows.model.segments import positions_of

# Rows of one prefill step: enough to keep matrix products busy, few enough to bound the memory of their results.
PREFILL_ROWS = 1024


def new_history(network: Forward, tokens: int) -> PagedHistory:
    """An empty history for one sequence of so many tokens, in the network's dtype and on its device."""
    blocks = -(-tokens // block_tokens(network.config))
    history = PagedHistory(
        network.config,
        slots=1,
        blocks=blocks,
        dtype=network.dtype,
        device=network.device,
        precision=network.cache,
    )
    history.bind(0, range(history.blocks_for(tokens)))
    return history


@torch.inference_mode()
def prefill(network: Forward, history: PagedHistory, token_ids: Sequence[int]) -> Iterator[Tensor]:
    """Run the tokens through the network chunk by chunk; yields each chunk's streams [rows, hc_mult, d]."""
    tokens = torch.tensor(token_ids, dtype=torch.int64, device=network.device)
    for chunk in tokens.split(PREFILL_ROWS):
        segments = [history.segment(chunk.shape[0])]
        yield network(chunk, positions_of(segments, chunk.device), segments, history)
