"""What the server asks of a model: tokens for a prompt. The engine stands behind it, and in tests a script."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from narrows.engine.grammar import Grammar, Vocabulary
from narrows.engine.request import SamplingParameters, ThinkingBudget
from narrows.engine.sequence import Event
from narrows.text.fim import Layout
from narrows.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ModelInfo:
    """What is served: the name that requests use, the tokenizer, how many tokens there are, and how many a prompt and
    its reply have together at most; since when (seconds since 1970). `chat`: it was trained to answer; `trained`: the
    longest context that it has seen, where that is known."""

    name: str
    tokenizer: Tokenizer
    vocab_size: int
    context: int
    created: int
    chat: bool
    fim_layout: Layout = "psm"
    trained: int | None = None


@dataclass(frozen=True)
class Job:
    """A prompt and how it is to be continued: what `Engine.submit` takes."""

    prompt: Sequence[int]
    parameters: SamplingParameters
    priority: int = 0
    timeout: float | None = None
    grammar: Grammar | None = None
    grammar_after: int | None = None
    thinking: ThinkingBudget | None = None


class Stream(Protocol):
    """A job under way. Of an event's sequence, only `index` is read."""

    def batches(self) -> AsyncGenerator[list[Event]]:
        """The events of all its answers, as many at once as have come; leaving it cancels the job."""

    def cancel(self, index: int | None = None) -> None:
        """End the job, or its answer number `index`, at the next step."""


class Backend(Protocol):
    """One model. Its methods may take as long as a step of the engine: call them in a thread."""

    @property
    def info(self) -> ModelInfo:
        """What is served."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer as grammars need it."""

    def start(self, job: Job) -> Stream:
        """Queue a job. UsageError for one that can never run."""

    def stats(self) -> Mapping[str, float]:
        """Figures for `/metrics`."""
