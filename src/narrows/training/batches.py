"""Batches: samples packed one behind the other, without padding; an endless, reproducible row of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from narrows.model.segments import Segment
from narrows.ops.cross_entropy import IGNORED
from narrows.text.fim import Layout
from narrows.training.samples import TokenStream, fim_sample


@dataclass(frozen=True)
class Batch:
    """N rows of several samples, one behind the other; each sample is a segment without a past.

    `tokens`, `positions`, `targets` (the next token) and `second_targets` (the one after it, IGNORED in a sample's
    last row) are int64 [N].
    """

    tokens: Tensor
    positions: Tensor
    segments: tuple[Segment, ...]
    targets: Tensor
    second_targets: Tensor

    @property
    def rows(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        tensors = (self.tokens, self.positions, self.targets, self.second_targets)
        tokens, positions, targets, second_targets = (tensor.to(device) for tensor in tensors)
        return type(self)(tokens, positions, self.segments, targets, second_targets)


def pack(samples: Sequence[Sequence[int]]) -> Batch:
    """One batch of `samples`, each of two tokens at least; a sample of n + 1 tokens becomes n rows."""
    arrays = [torch.tensor(sample, dtype=torch.int64) for sample in samples]
    end = torch.tensor([IGNORED])
    return Batch(
        tokens=torch.cat([array[:-1] for array in arrays]),
        positions=torch.cat([torch.arange(len(array) - 1) for array in arrays]),
        segments=tuple(Segment(len(array) - 1) for array in arrays),
        targets=torch.cat([array[1:] for array in arrays]),
        second_targets=torch.cat([part for array in arrays for part in (array[2:], end)]),
    )


def packed(samples: Iterator[list[int]], rows: int) -> Iterator[list[list[int]]]:
    """`samples` in groups of at most `rows` rows (one sample at least)."""
    waiting: list[list[int]] = []
    size = 0
    for sample in samples:
        if waiting and size + len(sample) - 1 > rows:
            yield waiting
            waiting, size = [], 0
        waiting.append(sample)
        size += len(sample) - 1
    if waiting:
        yield waiting


class TrainingBatches:
    """Batches for ever, epoch after epoch: each a function of the seeds and of where the reader stands.

    `epoch` and `position` (samples already used in that epoch) are all that a checkpoint has to keep.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        length: int,
        rows: int,
        fim_rate: float,
        seeds: tuple[int, ...],
        fim_layout: Layout = "psm",
    ) -> None:
        """`length`: most rows of a sample; `rows`: most rows of a batch; `fim_rate`: share of samples turned to FIM."""
        self._stream, self._length, self._rows = stream, length, rows
        self._fim_rate, self._fim_layout = fim_rate, fim_layout
        self._seeds = seeds
        self.seek(0, 0)

    def seek(self, epoch: int, position: int) -> None:
        """Go on behind the first `position` samples of `epoch`."""
        self.epoch, self.position = epoch, position
        random = np.random.default_rng((*self._seeds, epoch))
        self._pieces = random.permutation(self._stream.cut(self._length, random), axis=0)

    def next(self) -> Batch:
        """The next samples, as many as fit into a batch (one at least)."""
        samples = next(packed(self._samples(), self._rows))
        self.position += len(samples)
        return pack(samples)

    def _samples(self) -> Iterator[list[int]]:
        """From where the reader stands on; it stands still until `next` has taken some."""
        if self.position == len(self._pieces):
            self.seek(self.epoch + 1, 0)
        for position in range(self.position, len(self._pieces)):
            random = np.random.default_rng((*self._seeds, self.epoch, position))
            start, end = self._pieces[position].tolist()
            tokens = self._stream.tokens[start:end].tolist()
            if random.random() < self._fim_rate:
                yield fim_sample(self._stream.tokenizer, tokens, self._length + 1, random, self._fim_layout)
            else:
                yield [self._stream.tokenizer.bos_id, *tokens]
