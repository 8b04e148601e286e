"""Guessing the next tokens with the MTP block, so that one step of the network can confirm several (R §2.4).

A draft is a row more in the next step; its logits are used only if the token drawn before it is the draft itself. So
no token, and no seed's text, depends on a draft, and the block may be given whatever past is cheap: a sequence that
enters a slot begins with none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from narrows.engine.paged_history import PagedHistory
from narrows.model.forward import Forward
from narrows.model.segments import positions_of

# Over how many drafts success is averaged, and after how many steps a sequence that gets none is tried again.
_REMEMBERED = 16
_RETRY_STEPS = 128


@dataclass(frozen=True)
class Followed:
    """What a step computed of the sequence in `slot`: streams [R, S, d] of consecutive rows, and the token behind each.
    `drafts`: how many guesses are wanted behind the last of them."""

    slot: int
    streams: Tensor
    next_tokens: Sequence[int]
    drafts: int


class Drafter:
    """The MTP block and its window, a slot for each of the engine's."""

    def __init__(self, network: Forward, slots: int, most: int) -> None:
        """`most` drafts at once."""
        self._network, self._device = network, network.device
        self._history = PagedHistory.for_mtp(
            network.config,
            slots=slots,
            dtype=network.dtype,
            device=network.device,
            rollback=most,
            precision=network.cache,
        )

    def forget(self, slot: int) -> None:
        """Another sequence comes, or rows are left out: what follows there begins anew."""
        self._history.reset(slot)

    def draft(self, followed: Sequence[Followed], guess: Callable[[int, Tensor, int], int | None]) -> list[list[int]]:
        """Follow these rows, and guess what comes behind the last tokens: a list for each.

        `guess(number, logits [V], ahead)`: which token the sequence of this number takes from the block's logits,
        `ahead` tokens behind the next; None for none, nor any behind it.
        """
        drafts: list[list[int]] = [[] for _ in followed]
        streams = torch.cat([one.streams for one in followed])
        last = self._step([one.slot for one in followed], [one.next_tokens for one in followed], streams)
        going = [number for number, one in enumerate(followed) if one.drafts]
        last = _rows(last, going)
        steps = [0] * len(followed)
        while going:
            more = []
            for place, (number, row) in enumerate(zip(going, self._network.mtp_logits(last).cpu(), strict=True)):
                token = guess(number, row, len(drafts[number]))
                if token is not None:
                    drafts[number].append(token)
                    if len(drafts[number]) < followed[number].drafts:
                        more.append(place)
            going, last = [going[place] for place in more], _rows(last, more)
            if going:
                slots = [followed[number].slot for number in going]
                last = self._step(slots, [drafts[number][-1:] for number in going], last)
                for number in going:
                    steps[number] += 1
        for one, count in zip(followed, steps, strict=True):
            self._history.roll_back(one.slot, count)
        return drafts

    def _step(self, slots: Sequence[int], tokens: Sequence[Sequence[int]], streams: Tensor) -> Tensor:
        """The block over the packed rows of these slots -> its streams of every slot's last row."""
        segments = [self._history.segment(len(rows), slot) for slot, rows in zip(slots, tokens, strict=True)]
        flat = torch.tensor([token for rows in tokens for token in rows], device=self._device)
        out = self._network.mtp_forward(flat, positions_of(segments, self._device), segments, streams, self._history)
        return _rows(out, [end - 1 for end in accumulate(segment.rows for segment in segments)])


def _rows(streams: Tensor, places: Sequence[int]) -> Tensor:
    """Some rows of streams. `streams[places]` would wake PyTorch's threads, which then look for work for a while."""
    return streams.index_select(0, torch.tensor(places, dtype=torch.int64, device=streams.device))


@dataclass
class Success:
    """How often a sequence's drafts stood of late, and whether more of them pay."""

    rate: float = 1.0
    refused: int = 0

    def record(self, drafted: int, stood: int) -> None:
        """Of the drafts of one step the first `stood` stood, and the next, if there was one, fell."""
        for place in range(min(drafted, stood + 1)):
            self.rate += ((place < stood) - self.rate) / _REMEMBERED

    def wanted(self, most: int, least_rate: float) -> int:
        """How many drafts to make now: none where fewer than `least_rate` stood, but for a trial now and then."""
        if self.rate >= least_rate:
            return most
        self.refused += 1
        if self.refused >= _RETRY_STEPS:
            self.refused, self.rate = 0, least_rate
        return 0
