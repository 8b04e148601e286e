"""What llama.cpp says of a middle: its text, why it ended, and how long that took."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from narrows.engine.sequence import Drawn, Finished
from narrows.engine.stops import StopStrings
from narrows.server.answer import Answer
from narrows.server.backend import Job, ModelInfo
from narrows.server.errors import ApiError, error_body
from narrows.server.sse import event


class InfillAnswer(Answer):
    """A middle."""

    def __init__(
        self,
        info: ModelInfo,
        job: Job,
        *,
        warming: bool,
        truncated: bool,
        stop: Sequence[str],
        indent: int,
        seconds: float | None,
        fields: Sequence[str],
    ) -> None:
        """`warming`: the prompt is only read, and the token that comes of it is nobody's. `fields`: the answer's that
        are wanted, all if none is named; slashes lead to inner ones."""
        self._middle = Middle(stop, indent, seconds)
        super().__init__([len(job.prompt)], [self._middle], each=1)
        self._job, self._warming, self._fields = job, warming, fields
        self._told = {"model": info.name, "truncated": truncated, "generation_settings": {"n_ctx": info.context}}
        self._began = time.monotonic()
        self._first = self._last = self._began
        self._stop_type = "none"

    def _drawn(self, number: int, tokens: Sequence[Drawn]) -> Iterable[str]:
        self._last = time.monotonic()
        if self._first == self._began:
            self._first = self._last
        text = "" if self._warming else "".join(self._middle.push(one.piece) for one in tokens)
        return [self._chunk(text)] if text else []

    def _finished(self, number: int, finished: Finished) -> Iterable[str]:
        text = "" if self._warming else self._middle.finish(finished.piece)
        if self._middle.stopping_word:
            self._stop_type = "word"
        else:
            self._stop_type = "eos" if finished.reason == "stop" and not self._middle.stopped else "limit"
        return [self._chunk(text)] if text else []

    def _chunk(self, text: str) -> str:
        counted = {"tokens_predicted": self._middle.tokens, "tokens_evaluated": len(self._job.prompt)}
        return event({"index": 0, "content": text, "stop": False, **counted})

    def end(self) -> str:
        return event({**self.whole(), "content": ""})

    def whole(self) -> Mapping[str, Any]:
        usage = self.usage()
        answer = {
            "index": 0,
            "content": self._middle.text,
            "stop": True,
            "stop_type": self._stop_type,
            "stopping_word": self._middle.stopping_word,
            "has_new_line": "\n" in self._middle.text,
            "tokens_predicted": usage.output,
            "tokens_evaluated": usage.prompt,
            "tokens_cached": usage.hit,
            **self._told,
            "timings": {
                "cache_n": usage.hit,
                **_pace("prompt", usage.miss, self._first - self._began),
                **_pace("predicted", usage.output, self._last - self._first),
            },
            **self.priced(),
        }
        return _only(answer, self._fields) if self._fields else answer

    def failed(self, error: ApiError) -> str:
        return event(error_body(error, "openai", ""))


class Middle:
    """A middle as it grows: its text up to where it ends. `tokens` are those that belong to it, `stopping_word` the
    stop string that ended it, if one did."""

    reasoning = 0

    def __init__(self, stop: Sequence[str], indent: int, seconds: float | None) -> None:
        """`indent`: characters that every line but the first is indented by at least; one that is not, ends it.
        `seconds`: behind which it ends with its line, from the first token on, if it has more than one line."""
        self._stops = StopStrings(stop)
        self._indent, self._seconds = indent, seconds
        self._indentation: str | None = None  # of a line whose first other character has not come; held back until then
        self._began: float | None = None
        self._late = self._outdented = False
        self._pieces: list[str] = []
        self.tokens = 0

    @property
    def stopped(self) -> bool:
        """Whether it has ended before the engine knows."""
        return self._stops.finished or self._late or self._outdented

    @property
    def stopping_word(self) -> str:
        """What ended it, if it was a stop string."""
        return self._stops.matched or ""

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self._pieces)

    def push(self, piece: str) -> str:
        """The next token's text -> what may be shown now."""
        if self.stopped:
            return ""
        self.tokens += 1
        now = time.monotonic()
        self._began = self._began or now
        text = self._stops.push(self._within_block(piece))
        self._late = self._seconds is not None and "\n" in text and now - self._began > self._seconds
        return self._add(text)

    def finish(self, piece: str) -> str:
        """The end -> what was held back."""
        if self.stopped:
            return ""
        text = self._stops.push(self._within_block(piece) + (self._indentation or ""))
        return self._add(text + self._stops.finish())

    def _add(self, text: str) -> str:
        self._pieces.append(text)
        return text

    def _within_block(self, piece: str) -> str:
        """What of it is indented as it has to be."""
        if not self._indent:
            return piece
        told: list[str] = []
        for character in piece:
            if self._indentation is not None:
                if character in " \t":
                    self._indentation += character
                    continue
                if character != "\n" and len(self._indentation) < self._indent:
                    self._outdented = True
                    break
                told.append(self._indentation)
            told.append(character)
            self._indentation = "" if character == "\n" else None
        return "".join(told)


def _pace(name: str, tokens: int, seconds: float) -> dict[str, float]:
    return {
        f"{name}_n": tokens,
        f"{name}_ms": seconds * 1000,
        f"{name}_per_token_ms": seconds * 1000 / max(1, tokens),
        f"{name}_per_second": tokens / max(seconds, 1e-9),
    }


def _only(answer: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """The fields that are there, each under its whole path."""
    told = {}
    for path in fields:
        value: Any = answer
        for name in path.split("/"):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            told[path] = value
    return told
