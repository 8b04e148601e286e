"""Segments, and the Step that a list of them becomes: every index that the layers need, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from narrows.model.config import LayerKind, ModelConfig
from narrows.ops.rope import rope_angles, rope_frequencies
from narrows.ops.tiles import Tiles

# Rows per attention tile, at most: a tile reads size + window - 1 keys, so longer tiles waste less on gathering them
# and more on masked scores.
TILE = 64


@dataclass(frozen=True)
class Segment:
    """`rows` consecutive tokens of one sequence, of which `past` tokens are already in history `slot`."""

    rows: int
    past: int = 0
    slot: int = 0


@dataclass(frozen=True)
class Recent:
    """How kept past rows and new rows of every segment lie in one storage: kept_0, new_0, kept_1, new_1, ...

    `kept[s]` past rows precede segment s's new ones; `first[s]` is the storage row of its first kept row.
    """

    kept: tuple[int, ...]
    first: tuple[int, ...]
    total: int

    @staticmethod
    def of(segments: Sequence[Segment], kept: Sequence[int]) -> Recent:
        first, total = [], 0
        for segment, count in zip(segments, kept, strict=True):
            first.append(total)
            total += count + segment.rows
        return Recent(tuple(kept), tuple(first), total)


@dataclass(frozen=True)
class Growth:
    """The entries that a step adds, of all segments, one behind the other.

    `first_new` [S] where each segment's new entries begin among them; `before` [S] how many entries it had, `new` [S]
    how many it gains; `visible` [N] entries that each row may see, `most` the largest.
    """

    first_new: Tensor
    before: tuple[int, ...]
    new: tuple[int, ...]
    visible: Tensor
    most: int


@dataclass(frozen=True)
class Windows(Growth):
    """The compressor windows that a step completes, and the entries that these become.

    `own` int64 [n, m]: storage rows of a window's tokens; `previous` the same for the window before it, except where
    `first` bool [n, 1, 1] says that there is none; `angles` RoPE's cos and sin at each window's first token.
    """

    recent: Recent
    own: Tensor
    previous: Tensor
    first: Tensor
    angles: tuple[Tensor, Tensor]


class PackedRows:
    """What any network's forward call knows of its rows. Raises ValueError when segments and positions do not fit."""

    def __init__(self, segments: Sequence[Segment], positions: Tensor, most_positions: int) -> None:
        self.segments = tuple(segments)
        self.positions = positions
        self.device = positions.device
        self.rows = sum(segment.rows for segment in segments)
        if not segments or any(segment.rows < 1 for segment in segments):
            raise ValueError("a step needs at least one segment, and every segment at least one row")
        if any(segment.past < 0 for segment in segments):
            raise ValueError("a segment has a negative past")
        if self.rows != positions.shape[0]:
            raise ValueError(f"the segments have {self.rows} rows, the step {positions.shape[0]} positions")
        longest = max(segment.past + segment.rows for segment in segments)
        if longest > most_positions:
            raise ValueError(f"position {longest - 1} lies beyond max_position_embeddings {most_positions}")
        if not torch.equal(positions, positions_of(segments, positions.device)):
            raise ValueError("the positions are not those of the segments' rows: past, past + 1, ... in each segment")

    @cached_property
    def slots(self) -> Tensor:
        """Every segment's history slot, int64 [S]."""
        return torch.tensor([segment.slot for segment in self.segments], device=self.device)

    @cached_property
    def tiles(self) -> Tiles:
        return Tiles.cut([segment.rows for segment in self.segments], TILE, self.device)

    @cached_property
    def single_rows(self) -> Tiles:
        return Tiles.cut([segment.rows for segment in self.segments], 1, self.device)

    def growth(self, ratio: int) -> Growth:
        """Where every `ratio` tokens become an entry, visible to whom they have passed."""
        before = tuple(segment.past // ratio for segment in self.segments)
        after = tuple((segment.past + segment.rows) // ratio for segment in self.segments)
        new = tuple(a - b for a, b in zip(after, before, strict=True))
        starts = torch.tensor((0, *new[:-1])).cumsum(0)
        return Growth(
            first_new=starts.to(self.device),
            before=before,
            new=new,
            visible=(self.positions + 1) // ratio,
            most=max(after),
        )


class Step(PackedRows):
    """The index plan of one forward call: everything that the layers look up."""

    def __init__(self, config: ModelConfig, segments: Sequence[Segment], positions: Tensor) -> None:
        super().__init__(segments, positions, config.max_position_embeddings)
        self.config = config
        self._windows: dict[LayerKind, Windows] = {}
        self._angles: dict[bool, tuple[Tensor, Tensor]] = {}

    @cached_property
    def window(self) -> Recent:
        """The sliding window's storage: the last window - 1 past rows precede the new ones."""
        size = self.config.sliding_window
        return Recent.of(self.segments, [min(segment.past, size - 1) for segment in self.segments])

    @cached_property
    def window_last(self) -> Tensor:
        """Storage row of every row's own window key, int64 [N]."""
        parts = [
            torch.arange(first + kept, first + kept + segment.rows)
            for segment, first, kept in zip(self.segments, self.window.first, self.window.kept, strict=True)
        ]
        return torch.cat(parts).to(self.device)

    @cached_property
    def window_first(self) -> Tensor:
        """Storage row of the oldest key that every row attends to, int64 [N]."""
        first = torch.tensor(self.window.first).repeat_interleave(
            torch.tensor([segment.rows for segment in self.segments])
        )
        return torch.maximum(first.to(self.device), self.window_last - self.config.sliding_window + 1)

    def angles(self, kind: LayerKind) -> tuple[Tensor, Tensor]:
        """RoPE's cos and sin of every row, for layers of this kind."""
        key = kind is LayerKind.SLIDING
        if key not in self._angles:
            self._angles[key] = rope_angles(self.positions, frequencies(self.config, kind).to(self.device))
        return self._angles[key]

    def windows(self, kind: LayerKind) -> Windows:
        """The compressor windows of this layer kind that the step completes."""
        if kind not in self._windows:
            self._windows[kind] = self._plan_windows(kind)
        return self._windows[kind]

    def _plan_windows(self, kind: LayerKind) -> Windows:
        ratio, overlap = self.config.compress_ratio(kind), kind is LayerKind.CSA
        kept = [tail_rows(segment.past, ratio, overlap) for segment in self.segments]
        recent = Recent.of(self.segments, kept)
        growth = self.growth(ratio)
        numbers = torch.cat([torch.arange(b, b + n) for b, n in zip(growth.before, growth.new, strict=True)])
        # Storage row of a segment's token 0, had all its tokens been kept.
        origin = torch.tensor(
            [
                first + count - segment.past
                for first, count, segment in zip(recent.first, kept, self.segments, strict=True)
            ]
        ).repeat_interleave(torch.tensor(growth.new))
        own = (origin + numbers * ratio)[:, None] + torch.arange(ratio)
        first = (numbers == 0)[:, None]
        return Windows(
            **vars(growth),
            recent=recent,
            own=own.to(self.device),
            previous=torch.where(first, own, own - ratio).to(self.device),
            first=first[:, :, None].to(self.device),
            angles=rope_angles((numbers * ratio).to(self.device), frequencies(self.config, kind).to(self.device)),
        )


def positions_of(segments: Sequence[Segment], device: torch.device | str = "cpu") -> Tensor:
    """Every row's position: past, past + 1, ... in each segment. int64 [N]."""
    return torch.cat([torch.arange(s.past, s.past + s.rows) for s in segments]).to(device)


def tail_rows(past: int, ratio: int, overlap: bool) -> int:
    """How many past rows a compressor still needs: the unfinished window's, and with overlap the window before it."""
    return past % ratio + (ratio if overlap and past >= ratio else 0)


@cache
def frequencies(config: ModelConfig, kind: LayerKind) -> Tensor:
    """RoPE's inverse frequencies in layers of this kind: YaRN and its own theta where there is a compressor."""
    if kind is LayerKind.SLIDING:
        return rope_frequencies(config.qk_rope_head_dim, config.rope_theta)
    return rope_frequencies(config.qk_rope_head_dim, config.compress_rope_theta, config.rope_scaling)
