"""Batches: samples packed one behind the other, without padding; an endless, reproducible row of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from narrows.model.segments import Segment
from narrows.ops.cross_entropy import IGNORED
from narrows.text.fim import Layout
from narrows.training.ahead import Ahead
from narrows.training.samples import TokenStream, fim_sample

Sample = Sequence[int] | NDArray[np.int64]
"""Token ids of one text, as they follow each other."""

AnySample = TypeVar("AnySample", bound=Sample)

_TOGETHER = 8  # samples that are made at a time


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


def pack(samples: Sequence[Sample]) -> Batch:
    """One batch of `samples`, each of two tokens at least; a sample of n + 1 tokens becomes n rows."""
    arrays = [torch.as_tensor(sample, dtype=torch.int64) for sample in samples]
    end = torch.tensor([IGNORED])
    return Batch(
        tokens=torch.cat([array[:-1] for array in arrays]),
        positions=torch.cat([torch.arange(len(array) - 1) for array in arrays]),
        segments=tuple(Segment(len(array) - 1) for array in arrays),
        targets=torch.cat([array[1:] for array in arrays]),
        second_targets=torch.cat([part for array in arrays for part in (array[2:], end)]),
    )


def packed(samples: Iterable[AnySample], rows: int) -> Iterator[list[AnySample]]:
    """`samples` in groups of at most `rows` rows (one sample at least)."""
    waiting: list[AnySample] = []
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
        processes: int = 0,
    ) -> None:
        """`length`: most rows of a sample; `rows`: most rows of a batch; `fim_rate`: share of samples turned to FIM;
        `processes`: how many of them make samples ahead (0: they are made when they are asked for)."""
        self._stream, self._length, self._rows = stream, length, rows
        self._fim_rate, self._fim_layout = fim_rate, fim_layout
        self._seeds = seeds
        self._ahead = Ahead(self._arrange, processes) if processes else None
        self.seek(0, 0)

    def seek(self, epoch: int, position: int) -> None:
        """Go on behind the first `position` samples of `epoch`."""
        self.epoch, self.position = epoch, position
        random = np.random.default_rng((*self._seeds, epoch))
        self._pieces = random.permutation(self._stream.cut(self._length, random), axis=0)
        self._groups = packed(self._samples(), self._rows)

    def next(self) -> Batch:
        """The next samples, as many as fit into a batch (one at least)."""
        if self.position == len(self._pieces):
            self.seek(self.epoch + 1, 0)
        samples = next(self._groups)
        self.position += len(samples)
        return pack(samples)

    def close(self) -> None:
        """End the processes, if there are any."""
        if self._ahead is not None:
            self._ahead.close()

    def _samples(self) -> Iterator[NDArray[np.int64]]:
        """The epoch's, from where the reader stands on."""
        parts = (range(start, start + _TOGETHER) for start in range(self.position, len(self._pieces), _TOGETHER))
        numbered = ((self.epoch, part.start, self._pieces[part.start : part.stop]) for part in parts)
        arranged = map(self._arrange, numbered) if self._ahead is None else self._ahead.map(numbered)
        for samples in arranged:
            yield from samples

    def _arrange(self, numbered: tuple[int, int, NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        """The samples of some pieces of an epoch, the first of which has this number."""
        epoch, first, pieces = numbered
        samples = []
        for position, (start, end) in enumerate(pieces.tolist(), first):
            random = np.random.default_rng((*self._seeds, epoch, position))
            tokens = self._stream.tokens[start:end].tolist()
            tokenizer = self._stream.tokenizer
            if random.random() < self._fim_rate:
                tokens = fim_sample(tokenizer, tokens, self._length + 1, random, self._fim_layout)
            else:
                tokens = [tokenizer.bos_id, *tokens]
            samples.append(np.array(tokens, dtype=np.int64))
        return samples
