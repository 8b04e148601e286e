"""One answer of a chat: the tokens that are drawn, as reasoning, content and calls that may be told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Literal

from narrows.engine.sequence import Drawn, Finished
from narrows.engine.stops import StopStrings
from narrows.errors import NarrowsError
from narrows.text.messages import Tool
from narrows.text.parse import ReplyParser
from narrows.text.reply_events import ArgumentsDelta, ContentDelta, Event, ReasoningDelta, ToolCallStart, merge_deltas
from narrows.text.tokenizer import END_OF_THINKING, Tokenizer

Ending = Literal["stop", "length", "tool_calls"]


class ReplyReader:
    """Reads one answer. Stop strings end its content, and are looked for in nothing else: a thought or an argument that
    holds one goes on.

    `tokens` are those that belong to the answer, `reasoning` those of them up to the end of its thoughts, `calls` how
    many there are, `stop_string` what ended it. `scored` and `scored_reasoning` are the tokens of what was told last,
    where they are wanted.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        thinking: bool,
        tools: Sequence[Tool] = (),
        stop: Iterable[str] = (),
        scores: bool = False,
    ) -> None:
        """`thinking`: it begins inside its reasoning. `scores`: keep tokens beside what they say."""
        self._parser = ReplyParser(tokenizer, thinking=thinking, tools=tools)
        self._stops = StopStrings(stop)
        self._thinking, self._scores = thinking, scores
        self._end_of_thinking: int | None = None
        with suppress(NarrowsError):
            self._end_of_thinking = tokenizer.control(END_OF_THINKING)
        self._pending: list[Drawn] = []
        self.scored: list[Drawn] = []
        self.scored_reasoning: list[Drawn] = []
        self.tokens = self.reasoning = self.calls = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string came: nothing that is drawn from here on belongs to the answer."""
        return self._stops.finished

    @property
    def stop_string(self) -> str | None:
        """What ended the content, if it was a stop string."""
        return self._stops.matched

    def push(self, drawn: Iterable[Drawn]) -> list[Event]:
        """More tokens -> what they say."""
        self.scored, self.scored_reasoning = [], []
        told: list[Event] = []
        for one in drawn:
            if self.stopped:
                break
            self.tokens += 1
            self.reasoning += self._thinking
            if self._scores:
                self._pending.append(one)
            for event in self._parser.feed((one.token,)):
                self._tell(event, told)
            if self._thinking and one.token == self._end_of_thinking:
                self._thinking = False
                self._pending.clear()
        return merge_deltas(told)

    def finish(self, finished: Finished) -> tuple[list[Event], Ending]:
        """The last token has come -> what was held back, and why it was the last."""
        self.scored, self.scored_reasoning = [], []
        told: list[Event] = []
        for event in self._parser.finish():
            self._tell(event, told)
        self._tell_held(told)
        if finished.reason == "length" and not self.stopped:
            return merge_deltas(told), "length"
        return merge_deltas(told), "tool_calls" if self.calls else "stop"

    def _tell(self, event: Event, told: list[Event]) -> None:
        if self.stopped:
            return
        match event:
            case ContentDelta():
                if text := self._stops.push(event.text):
                    told.append(ContentDelta(text))
                    self.scored += self._pending
                    self._pending.clear()
                return
            case ReasoningDelta():
                self.scored_reasoning += self._pending
            case ToolCallStart():
                self.calls += 1
                self._tell_held(told)
        if isinstance(event, ReasoningDelta | ToolCallStart | ArgumentsDelta):
            self._pending.clear()
        told.append(event)

    def _tell_held(self, told: list[Event]) -> None:
        """Tell what was held back because a stop string could have begun there."""
        if rest := self._stops.finish():
            told.append(ContentDelta(rest))
            self.scored += self._pending
            self._pending.clear()
