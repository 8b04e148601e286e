"""How far a network's predictions are from another's, and what it needs to write a text down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from narrows.engine.prefill import new_history, prefill
from narrows.errors import NarrowsError
from narrows.model.network import Network
from narrows.text.tokenizer import Tokenizer

_HEAD_ROWS = 128  # rows whose logits exist at a time


@dataclass(frozen=True)
class Measured:
    """`bits_per_byte`: of the text, in the measured network. `divergence`: KL(other ‖ measured), a mean over tokens, in
    nats. `tokens`: how many were predicted."""

    bits_per_byte: float
    divergence: float
    tokens: int


class Predictions:
    """What a network predicts for every token of some texts: the head's inputs [R, d] and the head, but no logits, so
    that the network itself is needed no more."""

    @torch.inference_mode()
    def __init__(self, network: Network, tokenizer: Tokenizer, texts: Sequence[Sequence[int]]) -> None:
        """`texts`: token ids without BOS, each a sequence of its own, in the history that belongs to the network."""
        rows = []
        for text in texts:
            tokens = [tokenizer.bos_id, *text[:-1]]
            history = new_history(network, len(tokens))
            rows += [network.collapse(streams) for streams in prefill(network, history, tokens)]
        self._rows, self._head = torch.cat(rows), network.head

    def logs(self, start: int, end: int) -> Tensor:
        """log p of every token in the vocabulary, of these rows: float64 [end - start, vocab]."""
        return self._head(self._rows[start:end]).double().log_softmax(-1)


@torch.inference_mode()
def compare(
    other: Predictions, measured: Predictions, tokenizer: Tokenizer, texts: Sequence[Sequence[int]]
) -> Measured:
    """`measured` beside `other`, both of these texts, which together hold a token at least.

    NarrowsError where predictions are not finite.
    """
    targets = torch.tensor([token for text in texts for token in text])
    nats = divergence = 0.0
    for start in range(0, len(targets), _HEAD_ROWS):
        end = min(start + _HEAD_ROWS, len(targets))
        theirs, ours = other.logs(start, end), measured.logs(start, end)
        nats -= float(ours.gather(1, targets[start:end, None]).sum())
        divergence += float((theirs.exp() * (theirs - ours)).sum())
    if not math.isfinite(nats + divergence):
        raise NarrowsError("its logits are not finite; check its weights.")
    size = sum(len(tokenizer.bytes_of(token)) for text in texts for token in text)
    # Rounding may leave a little less than the nothing that it is between equals.
    return Measured(nats / math.log(2) / size, max(divergence, 0.0) / len(targets), len(targets))
