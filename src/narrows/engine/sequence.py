"""A request's life in the engine: what was asked, and every sequence that answers it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from narrows.engine.paged_history import Contents, State
from narrows.engine.prefix_tree import Node
from narrows.engine.request import ThinkingBudget
from narrows.engine.sampling import Sampled, Sampler, SamplingParameters
from narrows.engine.scheduler import Job
from narrows.engine.speculation import Success
from narrows.engine.text import TextStream
from narrows.engine.thinking import Thinking

if TYPE_CHECKING:
    from narrows.engine.grammar import GrammarState

FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]


@dataclass(frozen=True)
class Request:
    """What is asked: token ids to continue, how, how urgently (higher first), and until when (time.monotonic).

    `grammar` makes a fresh state of the constraint for every sequence; `thinking` bounds its reasoning.
    """

    prompt: tuple[int, ...]
    parameters: SamplingParameters
    priority: int = 0
    deadline: float | None = None
    grammar: Callable[[], GrammarState] | None = None
    thinking: ThinkingBudget | None = None


@dataclass(frozen=True)
class Parked:
    """A sequence's history outside its slot. `contents`: of its blocks, where it had to give these up too."""

    state: State
    contents: Contents | None


@dataclass(eq=False, repr=False)
class SequenceState:
    """One of a request's `n` answers: its tokens, and where its history is."""

    request: Request
    index: int
    job: Job
    sampler: Sampler
    text: TextStream
    grammar: GrammarState | None
    thinking: Thinking | None
    tokens: list[int]
    blocks: list[int] = field(default_factory=list)
    node: Node[State] | None = None
    parked: Parked | None = None
    siblings: list[SequenceState] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    success: Success = field(default_factory=Success)
    output_snapshot: Node[State] | None = None
    reused: int = 0
    cancelled: FinishReason | None = None
    last: Sampled | None = None

    def __repr__(self) -> str:
        return f"SequenceState({self.index}: {len(self.request.prompt)} + {self.produced} tokens)"

    @property
    def produced(self) -> int:
        """Tokens drawn so far."""
        return len(self.tokens) - len(self.request.prompt)

    def mask(self) -> Tensor | None:
        """Which tokens may come next: bool [V], None for all. UsageError where a grammar leads nowhere."""
        forced = None if self.thinking is None else self.thinking.mask()
        return self.grammar.mask() if forced is None and self.grammar is not None else forced

    def follow(self, token: int) -> None:
        """Take note of a token that `mask` allows and that does not end the reply."""
        if self.thinking is not None:
            self.thinking.advance(token)
        if self.grammar is not None:
            self.grammar.advance(token)


@dataclass(frozen=True)
class Prefilled:
    """So many tokens of a sequence's prompt are in its history now, of which `reused` came from a known prefix; `piece`
    is empty, as every event has one."""

    sequence: SequenceState
    tokens: int
    reused: int
    piece: str = ""


@dataclass(frozen=True)
class Scored:
    """Tokens of a sequence's prompt from position `start` on, each with its log-probability behind those before it and
    the alternatives asked for. The first token of a prompt stands behind nothing, and has none."""

    sequence: SequenceState
    start: int
    tokens: tuple[Sampled, ...]
    piece: str = ""


@dataclass(frozen=True)
class Drawn:
    """A token of a sequence, the text that it made safe to show, its log-probability, the alternatives asked for."""

    sequence: SequenceState
    token: int
    piece: str
    logprob: float
    alternatives: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Finished:
    """A sequence's end; `piece`: what was held back and may be shown after all; `error` says what failed; `last`: the
    token that ends a text, where it was drawn."""

    sequence: SequenceState
    reason: FinishReason
    piece: str = ""
    error: Exception | None = None
    last: Sampled | None = None


Event = Prefilled | Scored | Drawn | Finished


def boundaries(prompt: int, block: int, every: int, forks: Sequence[int] = ()) -> frozenset[int]:
    """Lengths at which a prompt of so many tokens leaves a snapshot: its last full block that is not all of it,
    every `every` tokens before, and where it leaves a known prefix."""
    last = (prompt - 1) // block * block
    regular = range(every // block * block, last, every // block * block) if every >= block else ()
    return frozenset(length for length in (last, *regular, *forks) if 0 < length <= last)
