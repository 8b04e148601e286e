"""What every protocol makes of a generation: events to words, streamed or whole, and the tokens counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from narrows.economics.money import plain
from narrows.engine.sequence import Drawn, Event, Finished, Prefilled, Scored
from narrows.server.accounting import Usage
from narrows.server.errors import ApiError


class Counted(Protocol):
    """One of the choices: how many tokens belong to it, and whether it wants no more."""

    tokens: int
    reasoning: int

    @property
    def stopped(self) -> bool:
        """Whether it has ended before the engine knows."""


class Answer(ABC):
    """One request's answer in one protocol. `choices` stand in the order of its prompts, `each` of them a prompt.

    `cost`, in picodollars, is known when all is over, before the usage is told.
    """

    def __init__(self, prompts: Sequence[int], choices: Sequence[Counted], each: int) -> None:
        """`prompts`: tokens of each prompt."""
        self._prompts, self._each = prompts, each
        self._counted = choices
        self.cost: int | None = None
        self._reused = [0] * len(prompts)
        self._prefilled = [0] * len(prompts)

    def usage(self) -> Usage:
        """Tokens so far."""
        hit = sum(self._reused)
        output = sum(choice.tokens for choice in self._counted)
        return Usage(hit, sum(self._prompts) - hit, output, sum(choice.reasoning for choice in self._counted))

    def priced(self) -> dict[str, str]:
        """The cost as a field of any protocol's usage: dollars as text, since a number of JSON's is not exact."""
        return {} if self.cost is None else {"cost": plain(self.cost)}

    def progress(self) -> tuple[int, int]:
        """Tokens of the prompts that the model has read, and all of them."""
        return sum(self._prefilled), sum(self._prompts)

    def push(self, part: int, events: Iterable[Event]) -> str:
        """Events of the prompt number `part` -> what is to be sent of them in a stream."""
        told: list[str] = []
        drawn: dict[int, list[Drawn]] = {}
        for event in events:
            number = part * self._each + event.sequence.index
            if isinstance(event, Drawn):
                drawn.setdefault(number, []).append(event)
            elif isinstance(event, Prefilled):
                self._prefilled[part] = max(self._prefilled[part], event.tokens)
                self._reused[part] = max(self._reused[part], event.reused)
                told += self._read(part)
            elif isinstance(event, Scored):
                self._prompt_scored(part, event)
            else:
                told += self._drawn(number, drawn.pop(number, []))
                told += self._finished(number, event)
        for number, tokens in drawn.items():
            told += self._drawn(number, tokens)
        return "".join(told)

    def stopped(self, part: int) -> Iterator[int]:
        """Which answers to the prompt number `part` want no more tokens."""
        for index, choice in enumerate(self._counted[part * self._each : (part + 1) * self._each]):
            if choice.stopped:
                yield index

    def begin(self) -> str:
        """What a stream begins with."""
        return ""

    def _read(self, part: int) -> Iterable[str]:
        """More of the prompt number `part` has been read."""
        return ()

    def _prompt_scored(self, part: int, event: Scored) -> None:  # noqa: B027 - most ask for no such thing
        """Scores of the prompt number `part`."""

    @abstractmethod
    def _drawn(self, number: int, tokens: Sequence[Drawn]) -> Iterable[str]:
        """More tokens of a choice."""

    @abstractmethod
    def _finished(self, number: int, finished: Finished) -> Iterable[str]:
        """The end of a choice."""

    @abstractmethod
    def end(self) -> str:
        """What a stream ends with when all has gone well."""

    @abstractmethod
    def whole(self) -> Mapping[str, Any]:
        """The answer as one JSON object."""

    @abstractmethod
    def failed(self, error: ApiError) -> str:
        """What a stream ends with otherwise."""
