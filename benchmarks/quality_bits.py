"""What a network would need to write tokens down, token by token, each with as much context as asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from narrows.model.network import Network
from narrows.text.tokenizer import Tokenizer
from narrows.training.batches import pack, packed

ROWS = 4096
"""Most rows of one pass."""

_HEAD_ROWS = 512  # rows whose logits exist at a time


class Window(NamedTuple):
    """Tokens `start` to `end` go through the network in one sample; those from `scored` on are counted."""

    start: int
    scored: int
    end: int


def windows(length: int, context: int, stride: int) -> Iterator[Window]:
    """Windows of at most `context` tokens that count every one of `length` tokens once.

    The first counts all it holds. Every later one is full and counts its last `stride` tokens (the last window: at
    most), so that these see at least `context - stride` tokens before them. Raises ValueError where 1 <= stride <=
    context does not hold.
    """
    if not 1 <= stride <= context:
        raise ValueError(f"stride {stride} must lie between 1 and the context of {context}")
    if length:
        yield Window(0, 0, min(context, length))
    for scored in range(context, length, stride):
        end = min(scored + stride, length)
        yield Window(end - context, scored, end)


@torch.inference_mode()
def nats(
    network: Network,
    tokenizer: Tokenizer,
    texts: Sequence[Sequence[int]],
    *,
    context: int,
    stride: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Tensor]:
    """-log p of every token of every text (ids without BOS), float64 [len(text)] each.

    Texts go through in `windows`, each a sample of its own after BOS, as in training. `progress` is told how many
    texts are done.
    """
    found = [torch.zeros(len(text), dtype=torch.float64) for text in texts]
    places = [(number, window) for number, text in enumerate(texts) for window in windows(len(text), context, stride)]
    samples = ([tokenizer.bos_id, *texts[number][window.start : window.end]] for number, window in places)
    place = iter(places)
    for group in packed(samples, ROWS):
        batch = pack(group).to(network.device)
        streams = network(batch.tokens, batch.positions, batch.segments)
        parts = zip(streams.split(_HEAD_ROWS), batch.targets.split(_HEAD_ROWS), strict=True)
        values = torch.cat([_of_targets(network.logits(rows), targets) for rows, targets in parts])
        for of_window in values.split([len(sample) - 1 for sample in group]):
            number, (start, scored, end) = next(place)
            found[number][scored:end] = of_window[scored - start :]
        progress(number)
    progress(len(texts))
    return found


def bits(values: Tensor) -> float:
    """Nats, summed, in bits."""
    return float(values.sum()) / math.log(2)


def _of_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [R, vocab], targets [R] -> -log softmax, float64 [R], on the CPU."""
    chosen = logits.gather(1, targets[:, None]).squeeze(1)
    return (logits.logsumexp(-1) - chosen).double().cpu()
