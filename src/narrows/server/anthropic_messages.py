"""Anthropic's messages."""

from __future__ import annotations

import math
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field
from pydantic_core import from_json

from narrows.engine.request import SamplingParameters
from narrows.engine.sequence import Drawn, Finished
from narrows.errors import UsageError
from narrows.server.answer import Answer
from narrows.server.anthropic_read import read_conversation, read_tools
from narrows.server.backend import Backend
from narrows.server.body import Body, Objects, Route, Share, Short, Temperature, Texts, Tokens
from narrows.server.chat import Asked, Calls, Chat, chat_of, prompt_of, stop_strings
from narrows.server.errors import ApiError, error_body
from narrows.server.reply import Ending
from narrows.server.schema import body_errors, generation
from narrows.server.service import Plan, Service
from narrows.server.sse import event
from narrows.server.visit import Visit
from narrows.text.messages import Effort
from narrows.text.reply_events import (
    ArgumentsDelta,
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallEnd,
    ToolCallStart,
)

router = APIRouter(route_class=Route)

_CALLS: dict[str, Calls] = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}
_STOP_REASONS: dict[Ending, str] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}

# Clients hand thoughts back with a signature, and some drop those without; here nothing depends on it.
_SIGNATURE = "unsigned"


class ThinkingConfig(Body):
    """Whether to think, how long, and whether to show it."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class ToolChoice(Body):
    """Whether tools may or must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: Short | None = None
    disable_parallel_tool_use: bool | None = None


class OutputFormat(Body):
    """A schema that the reply must satisfy."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Body):
    """What the reply must be, and how hard to think about it."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class CountBody(Body):
    """POST /v1/messages/count_tokens."""

    model: Short
    messages: Annotated[Objects, Field(min_length=1)]
    system: str | Objects | None = None
    tools: Objects | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None


class MessagesBody(CountBody):
    """POST /v1/messages."""

    max_tokens: Tokens
    stream: bool | None = None
    stop_sequences: Texts | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Tokens | None = None
    service_tier: Literal["auto", "standard_only", "priority"] | None = None


@router.post(
    "/messages",
    tags=["Anthropic"],
    responses=generation("id", "type", "role", "model", "content", "usage", protocol="anthropic"),
)
async def messages(request: Request, body: MessagesBody) -> Response:
    """Answer a conversation."""
    service = Service.of(request)
    visit = Visit.of(request.scope)

    def plan(backend: Backend) -> Plan:
        chat = chat_of(backend, asked_by(body), service.settings)
        shown = body.thinking is None or body.thinking.display != "omitted"
        answer = MessagesAnswer(backend, chat, visit.id, thinking_shown=shown)
        return Plan([chat.job], answer, body.stream is True, chat.asked.tier)

    return await service.answer(request, body.model, plan)


@router.post("/messages/count_tokens", tags=["Anthropic"], responses=body_errors(403, 404, protocol="anthropic"))
async def count_tokens(request: Request, body: CountBody) -> dict[str, int]:
    """How many tokens the prompt of a conversation has."""
    service = Service.of(request)
    service.check_scope(request, "inference")
    backend = service.backend(body.model)
    service.lifecycle.enter()
    try:
        prompt = await service.prepared(lambda: prompt_of(backend, _asked(body)))
    finally:
        service.lifecycle.leave()
    return {"input_tokens": len(prompt.token_ids)}


def asked_by(body: MessagesBody) -> Asked:
    """A request in the words that all chat protocols share. UsageError for what contradicts itself."""
    sampling: dict[str, Any] = {"top_p": body.top_p, "top_k": body.top_k}
    return _asked(
        body,
        parameters=SamplingParameters(
            temperature=1.0 if body.temperature is None else body.temperature,
            **{name: value for name, value in sampling.items() if value is not None},
        ),
        max_tokens=body.max_tokens,
        stop=stop_strings(body.stop_sequences),
        tier="priority" if body.service_tier == "priority" else "default",
    )


def _asked(body: CountBody, **more: Any) -> Asked:
    tools = read_tools(body.tools or [])
    choice = body.tool_choice or ToolChoice(type="auto")
    if choice.type == "tool" and choice.name is None:
        raise UsageError("tool_choice names no tool; add its name.")
    output = body.output_config or OutputConfig()
    return Asked(
        **{
            "messages": read_conversation(body.system, body.messages),
            "parameters": SamplingParameters(),
            "max_tokens": None,
            "effort": _effort(body.thinking, output),
            "tools": tools,
            "calls": _CALLS[choice.type],
            "only": frozenset({choice.name} if choice.type == "tool" else ()),
            "strict": frozenset(one["name"] for one in body.tools or [] if one.get("strict") is True),
            "parallel": choice.disable_parallel_tool_use is not True,
            "content_schema": None if output.format is None else output.format.schema_,
            "budget": None if body.thinking is None else body.thinking.budget_tokens,
            **more,
        }
    )


def _effort(thinking: ThinkingConfig | None, output: OutputConfig) -> Effort:
    if thinking is None or thinking.type == "disabled":
        return "none"
    return "max" if output.effort in ("xhigh", "max") else "high"


class MessagesAnswer(Answer):
    """A message: blocks of thinking, text and uses of tools."""

    def __init__(self, backend: Backend, chat: Chat, request_id: str, *, thinking_shown: bool) -> None:
        (self._reader,) = chat.readers(backend)
        super().__init__([len(chat.job.prompt)], [self._reader], each=1)
        self._tier = "priority" if chat.asked.tier == "priority" else "standard"
        self._request_id, self._thinking_shown = request_id, thinking_shown
        self._head = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": backend.info.name,
        }
        self._begun = False
        self._blocks: list[_Block] = []
        self._open = False
        self._stop: dict[str, str | None] = {"stop_reason": None, "stop_sequence": None}

    def _read(self, part: int) -> Iterable[str]:
        if not self._begun:  # only now is it known what of the prompt was known
            self._begun = True
            message: dict[str, Any] = {**self._head, "content": [], **self._stop, "usage": self._usage()}
            yield event({"type": "message_start", "message": message}, "message_start")
            yield event({"type": "ping"}, "ping")

    def _drawn(self, number: int, tokens: Sequence[Drawn]) -> Iterable[str]:
        return self._tell(self._reader.push(tokens))

    def _finished(self, number: int, finished: Finished) -> Iterable[str]:
        events, ending = self._reader.finish(finished)
        told = [*self._tell(events), *self._close()]
        stopped = self._reader.stop_string
        self._stop = {
            "stop_reason": _STOP_REASONS[ending] if stopped is None else "stop_sequence",
            "stop_sequence": stopped,
        }
        return told

    def _tell(self, events: Iterable[Event]) -> Iterable[str]:
        for one in events:
            match one:
                case ReasoningDelta():
                    yield from self._within({"type": "thinking", "thinking": "", "signature": ""})
                    if self._thinking_shown:
                        yield self._delta("thinking_delta", "thinking", one.text)
                case ContentDelta():
                    yield from self._within({"type": "text", "text": ""})
                    yield self._delta("text_delta", "text", one.text)
                case ToolCallStart():
                    yield from self._close()
                    call = {"id": f"toolu_{secrets.token_hex(12)}", "name": one.name}
                    yield from self._within({"type": "tool_use", **call, "input": {}})
                case ArgumentsDelta():
                    yield self._delta("input_json_delta", "partial_json", one.text)
                case ToolCallEnd():
                    yield from self._close()

    def _within(self, beginning: dict[str, Any]) -> Iterable[str]:
        """See to it that a block of this kind is open."""
        if self._open and self._blocks[-1].beginning["type"] == beginning["type"]:
            return
        yield from self._close()
        self._blocks.append(_Block(beginning))
        self._open = True
        yield self._block_event("content_block_start", content_block=beginning)

    def _delta(self, kind: str, field: str, text: str) -> str:
        self._blocks[-1].texts.append(text)
        return self._block_event("content_block_delta", delta={"type": kind, field: text})

    def _close(self) -> Iterable[str]:
        if not self._open:
            return
        self._open = False
        if self._blocks[-1].beginning["type"] == "thinking":
            signed = {"type": "signature_delta", "signature": _SIGNATURE}
            yield self._block_event("content_block_delta", delta=signed)
        yield self._block_event("content_block_stop")

    def _block_event(self, kind: str, **fields: Any) -> str:
        return event({"type": kind, "index": len(self._blocks) - 1, **fields}, kind)

    def _usage(self) -> dict[str, Any]:
        """Anthropic's count of a prompt leaves out what was known."""
        usage = self.usage()
        return {
            "input_tokens": usage.miss,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.hit,
            "output_tokens": usage.output,
            "output_tokens_details": {"thinking_tokens": usage.reasoning},
            "service_tier": self._tier,
            **self.priced(),
        }

    def end(self) -> str:
        last = {"type": "message_delta", "delta": self._stop, "usage": self._usage()}
        return event(last, "message_delta") + event({"type": "message_stop"}, "message_stop")

    def whole(self) -> Mapping[str, Any]:
        content = [block.whole() for block in self._blocks]
        return {**self._head, "content": content, **self._stop, "usage": self._usage()}

    def failed(self, error: ApiError) -> str:
        return event(error_body(error, "anthropic", self._request_id), "error")


class _Block:
    """A block as it grows."""

    def __init__(self, beginning: dict[str, Any]) -> None:
        self.beginning = beginning
        self.texts: list[str] = []

    def whole(self) -> dict[str, Any]:
        """All of it. Arguments that broke off are those of them that came whole."""
        text = "".join(self.texts)
        match self.beginning["type"]:
            case "thinking":
                return {**self.beginning, "thinking": text, "signature": _SIGNATURE}
            case "text":
                return {**self.beginning, "text": text}
        try:
            arguments = _finite(from_json(text, allow_partial=True, allow_inf_nan=False))
        except ValueError:
            arguments = {}
        return {**self.beginning, "input": arguments}


def _finite(value: Any) -> Any:
    """The value with the largest number there is for every larger one: a model may write 1e999, and JSON cannot say
    what Python makes of it."""
    match value:
        case dict():
            return {name: _finite(one) for name, one in value.items()}
        case list():
            return [*map(_finite, value)]
        case float() if math.isinf(value):
            return math.copysign(sys.float_info.max, value)
    return value
