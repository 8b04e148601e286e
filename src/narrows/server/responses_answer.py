"""A response of OpenAI's: output items, whole or as the events of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from narrows.engine.sequence import Drawn, Finished
from narrows.server.answer import Answer
from narrows.server.backend import Backend
from narrows.server.chat import Chat
from narrows.server.errors import ApiError
from narrows.server.openai_wire import scores_of
from narrows.server.responses_read import sealed
from narrows.server.sse import event
from narrows.text.reply_events import ArgumentsDelta, ContentDelta, Event, ReasoningDelta, ToolCallEnd, ToolCallStart


class ResponseAnswer(Answer):
    """A response. `asked` are the fields of it that repeat the request."""

    def __init__(self, backend: Backend, chat: Chat, asked: Mapping[str, Any], *, sealing: bool) -> None:
        """`sealing`: reasoning comes in its sealed form too."""
        (self._reader,) = chat.readers(backend)
        super().__init__([len(chat.job.prompt)], [self._reader], each=1)
        self._tokenizer, self._sealing = backend.info.tokenizer, sealing
        self._scores = chat.asked.parameters.logprobs is not None
        self._head: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(12)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": backend.info.name,
            "service_tier": chat.asked.tier,
            **asked,
        }
        self._status = "in_progress"
        self._error: dict[str, str] | None = None
        self._items: list[_Item] = []
        self._open = False
        self._number = 0

    def begin(self) -> str:
        return self._event("response.created", response=self.whole()) + self._event(
            "response.in_progress", response=self.whole()
        )

    def _drawn(self, number: int, tokens: Sequence[Drawn]) -> Iterable[str]:
        return self._tell(self._reader.push(tokens))

    def _finished(self, number: int, finished: Finished) -> Iterable[str]:
        events, ending = self._reader.finish(finished)
        told = [*self._tell(events)]
        self._status = "incomplete" if ending == "length" else "completed"
        return [*told, *self._close(self._status)]

    def _tell(self, events: Iterable[Event]) -> Iterable[str]:
        scores = scores_of(self._tokenizer, self._reader.scored) if self._scores else []
        for one in events:
            match one:
                case ReasoningDelta():
                    yield from self._within("reasoning")
                    yield self._delta(one.text)
                case ContentDelta():
                    yield from self._within("message")
                    yield self._delta(one.text, logprobs=scores)
                    self._items[-1].scores += scores
                    scores = []
                case ToolCallStart():
                    yield from self._close()
                    yield from self._begin(_Call(one.name))
                case ArgumentsDelta():
                    yield self._delta(one.text)
                case ToolCallEnd():
                    yield from self._close("completed" if one.complete else "incomplete")

    def _within(self, kind: str) -> Iterable[str]:
        """See to it that an item of this kind is open."""
        if self._open and self._items[-1].kind == kind:
            return
        yield from self._close()
        yield from self._begin(_Reasoning(self._sealing) if kind == "reasoning" else _Text())

    def _begin(self, item: _Item) -> Iterable[str]:
        self._items.append(item)
        self._open = True
        yield self._event("response.output_item.added", **self._place("output_index"), item=item.whole())
        if item.part is not None:
            yield self._event("response.content_part.added", **self._place(), part=item.part(""))

    def _delta(self, text: str, **more: Any) -> str:
        item = self._items[-1]
        item.texts.append(text)
        scores = more if isinstance(item, _Text) else {}
        return self._event(f"{item.words}.delta", **self._place(), delta=text, **scores)

    def _close(self, status: str = "completed") -> Iterable[str]:
        if not self._open:
            return
        self._open = False
        item = self._items[-1]
        item.status = status
        yield self._event(f"{item.words}.done", **self._place(), **item.done())
        if item.part is not None:
            yield self._event("response.content_part.done", **self._place(), part=item.content())
        yield self._event("response.output_item.done", **self._place("output_index"), item=item.whole())

    def _place(self, *fields: str) -> dict[str, Any]:
        """Where in the output something is; all that is known of it, unless `fields` are named."""
        item = self._items[-1]
        place: dict[str, Any] = {"item_id": item.id, "output_index": len(self._items) - 1}
        if item.part is not None:
            place["content_index"] = 0
        return {name: place[name] for name in fields or place}

    def _event(self, kind: str, **fields: Any) -> str:
        numbered = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event(numbered, kind)

    def end(self) -> str:
        return self._event(f"response.{self._status}", response=self.whole())

    def whole(self) -> Mapping[str, Any]:
        over = self._status != "in_progress"
        usage = self.usage()
        told = {
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.hit, "cache_write_tokens": 0},
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.prompt + usage.output,
            **self.priced(),
        }
        return {
            **self._head,
            "status": self._status,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "output": [item.whole() for item in self._items],
            "usage": told if over and self._error is None else None,
        }

    def failed(self, error: ApiError) -> str:
        self._status = "failed"
        code = "rate_limit_exceeded" if error.status_code == 429 else "server_error"
        self._error = {"code": code if error.status_code >= 429 else "invalid_prompt", "message": error.message}
        told = self._event("error", **self._error, param=error.param)
        return told + self._event("response.failed", response=self.whole())


class _Item:
    """An item of the output as it grows. `kind`: its type; `words`: what the events of its text are called."""

    kind: str
    words: str
    part: Any = None  # makes the part of its content that a text is, where it has such a part

    def __init__(self, prefix: str) -> None:
        self.id = f"{prefix}_{secrets.token_hex(12)}"
        self.texts: list[str] = []
        self.scores: list[dict[str, Any]] = []
        self.status = "in_progress"

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.texts)

    def content(self) -> dict[str, Any]:
        """The part of its content."""
        part: dict[str, Any] = self.part(self.text)
        return part

    def done(self) -> dict[str, Any]:
        """What the last event of its text says."""
        return {"text": self.text}

    def whole(self) -> dict[str, Any]:
        """All of it."""
        raise NotImplementedError


class _Reasoning(_Item):
    """Thoughts; `sealed`, where their client wants them in that form too."""

    kind = "reasoning"
    words = "response.reasoning_text"

    def __init__(self, sealing: bool) -> None:
        super().__init__("rs")
        self._sealing = sealing

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": text}

    def whole(self) -> dict[str, Any]:
        content = [] if self.status == "in_progress" else [self.content()]
        told = {"type": "reasoning", "id": self.id, "summary": [], "content": content, "status": self.status}
        return told | {"encrypted_content": sealed(self.text)} if self._sealing and content else told


class _Text(_Item):
    """A message."""

    kind = "message"
    words = "response.output_text"

    def __init__(self) -> None:
        super().__init__("msg")

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.scores if text else []}

    def done(self) -> dict[str, Any]:
        return {"text": self.text, "logprobs": self.scores}

    def whole(self) -> dict[str, Any]:
        content = [] if self.status == "in_progress" else [self.content()]
        return {"type": "message", "id": self.id, "role": "assistant", "content": content, "status": self.status}


class _Call(_Item):
    """A call of a function."""

    kind = "function_call"
    words = "response.function_call_arguments"

    def __init__(self, name: str) -> None:
        super().__init__("fc")
        self._name, self._call_id = name, f"call_{secrets.token_hex(12)}"

    def done(self) -> dict[str, Any]:
        return {"name": self._name, "arguments": self.text}

    def whole(self) -> dict[str, Any]:
        named = {"call_id": self._call_id, "name": self._name, "arguments": self.text}
        return {"type": "function_call", "id": self.id, **named, "status": self.status}
