"""OpenAI's and DeepSeek's chat completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from narrows.engine.request import SamplingParameters
from narrows.engine.sequence import Drawn, Finished
from narrows.errors import UsageError
from narrows.server.answer import Answer
from narrows.server.backend import Backend
from narrows.server.body import (
    Body,
    Objects,
    Route,
    Short,
    Tokens,
    refuse,
)
from narrows.server.chat import Asked, Calls, Chat, chat_of, stop_strings
from narrows.server.errors import ApiError, error_body
from narrows.server.openai_bounds import Form, schema_of, tools_chosen
from narrows.server.openai_sampling import SampledBody
from narrows.server.openai_wire import EFFORTS, AskedEffort, scores_of, tier_of, usage_of
from narrows.server.schema import generation
from narrows.server.service import Plan, Service
from narrows.server.sse import event
from narrows.text.messages import Effort
from narrows.text.read_messages import read_messages, read_tools
from narrows.text.reply_events import (
    ArgumentsDelta,
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallStart,
)

router = APIRouter(route_class=Route)

_INSTEAD = {
    "functions": "send tools",
    "function_call": "send tool_choice",
    "audio": "ask for text",
    "web_search_options": "give the model a tool that searches",
}


class JsonSchema(Body):
    """A schema that a reply must satisfy."""

    name: Short = "reply"
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Body):
    """What a reply must be."""

    type: Form
    json_schema: JsonSchema | None = None


class ThinkingSwitch(Body):
    """DeepSeek's switch, and how many tokens the reasoning may have."""

    type: Literal["enabled", "disabled"]
    budget_tokens: Annotated[int, Field(ge=0)] | None = None


class ChatBody(SampledBody):
    """POST /v1/chat/completions."""

    messages: Annotated[Objects, Field(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Objects | None = None
    tool_choice: Calls | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: AskedEffort | None = None
    thinking: ThinkingSwitch | None = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    web_search_options: Any = None


@router.post(
    "/chat/completions",
    tags=["OpenAI"],
    responses=generation("id", "object", "created", "model", "choices", "usage"),
)
async def chat_completions(request: Request, body: ChatBody) -> Response:
    """Answer a conversation."""
    service = Service.of(request)

    def plan(backend: Backend) -> Plan:
        chat = chat_of(backend, asked_by(body), service.settings)
        return Plan([chat.job], ChatAnswer(backend, chat, body.include_usage), body.stream is True, chat.asked.tier)

    return await service.answer(request, body.model, plan)


def asked_by(body: ChatBody) -> Asked:
    """A request in the words that all chat protocols share. UsageError for what contradicts itself."""
    refuse(vars(body), _INSTEAD)
    tools = read_tools(body.tools or [])
    strict = [one["function"]["name"] for one in body.tools or [] if one["function"].get("strict") is True]
    calls, only = tools_chosen(body.tool_choice, nested=True)
    return Asked(
        messages=read_messages(body.messages),
        parameters=SamplingParameters(
            **body.sampling(),
            n=body.n or 1,
            logprobs=_scores(body),
        ),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        effort=_effort(body),
        stop=stop_strings(body.stop),
        tools=tools,
        calls=calls,
        only=only,
        strict=frozenset(strict),
        parallel=body.parallel_tool_calls is not False,
        content_schema=_schema(body.response_format),
        budget=None if body.thinking is None else body.thinking.budget_tokens,
        tier=tier_of(body.service_tier),
    )


def _scores(body: ChatBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise UsageError("top_logprobs is given without logprobs; set that to true.")
    return None


def _effort(body: ChatBody) -> Effort:
    if body.thinking is not None and body.thinking.type == "disabled":
        return "none"
    if body.reasoning_effort is None:
        return "high"
    effort = EFFORTS[body.reasoning_effort]
    return "high" if effort == "none" and body.thinking is not None else effort


def _schema(wanted: ResponseFormat | None) -> Mapping[str, Any] | None:
    if wanted is None:
        return None
    schema = None if wanted.json_schema is None else wanted.json_schema.schema_
    return schema_of(wanted.type, schema, "response_format.json_schema")


class ChatAnswer(Answer):
    """A chat completion."""

    def __init__(self, backend: Backend, chat: Chat, include_usage: bool) -> None:
        self._readers = chat.readers(backend)
        super().__init__([len(chat.job.prompt)], self._readers, each=len(self._readers))
        self._tokenizer = backend.info.tokenizer
        self._scores = chat.asked.parameters.logprobs is not None
        self._include_usage = include_usage
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": backend.info.name,
            "service_tier": chat.asked.tier,
        }
        self._messages = [_Message() for _ in self._readers]

    def begin(self) -> str:
        begun: dict[str, Any] = {"role": "assistant", "content": ""}
        return "".join(self._chunk(number, begun) for number in range(len(self._readers)))

    def _drawn(self, number: int, tokens: Sequence[Drawn]) -> Iterable[str]:
        return self._tell(number, self._readers[number].push(tokens))

    def _finished(self, number: int, finished: Finished) -> Iterable[str]:
        events, ending = self._readers[number].finish(finished)
        told = [*self._tell(number, events)]
        self._messages[number].finish_reason = ending
        return [*told, self._chunk(number, {}, ending)]

    def _tell(self, number: int, events: Iterable[Event]) -> Iterable[str]:
        reader, message = self._readers[number], self._messages[number]
        scores = None
        if reader.scored or reader.scored_reasoning:
            scores = {
                "content": scores_of(self._tokenizer, reader.scored),
                "reasoning_content": scores_of(self._tokenizer, reader.scored_reasoning),
                "refusal": None,
            }
            message.add_scores(scores)
        for delta in filter(None, map(message.add, events)):
            yield self._chunk(number, delta, scores=scores)
            scores = None

    def _chunk(
        self, number: int, delta: dict[str, Any], ending: str | None = None, scores: dict[str, Any] | None = None
    ) -> str:
        choice = {"index": number, "delta": delta, "logprobs": scores, "finish_reason": ending}
        usage = {"usage": None} if self._include_usage else {}
        return event({**self._head, "object": "chat.completion.chunk", "choices": [choice], **usage})

    def end(self) -> str:
        usage = ""
        if self._include_usage:
            last = {"object": "chat.completion.chunk", "choices": [], "usage": usage_of(self.usage()) | self.priced()}
            usage = event({**self._head, **last})
        return f"{usage}data: [DONE]\n\n"

    def whole(self) -> Mapping[str, Any]:
        choices = [
            {
                "index": number,
                "message": message.whole(),
                "logprobs": message.scores if self._scores else None,
                "finish_reason": message.finish_reason,
            }
            for number, message in enumerate(self._messages)
        ]
        usage = usage_of(self.usage()) | self.priced()
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage}

    def failed(self, error: ApiError) -> str:
        return event(error_body(error, "openai", ""))


class _Message:
    """A message as it grows."""

    def __init__(self) -> None:
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._calls: list[tuple[dict[str, Any], list[str]]] = []
        self.scores: dict[str, Any] = {"content": [], "reasoning_content": [], "refusal": None}
        self.finish_reason: str | None = None

    def add(self, event: Event) -> dict[str, Any] | None:
        """Take an event in -> the delta that tells it, if one does."""
        match event:
            case ReasoningDelta():
                self._reasoning.append(event.text)
                return {"reasoning_content": event.text}
            case ContentDelta():
                self._content.append(event.text)
                return {"content": event.text}
            case ToolCallStart():
                call = {"id": f"call_{secrets.token_hex(12)}", "type": "function"}
                self._calls.append(({**call, "name": event.name}, []))
                function = {"name": event.name, "arguments": ""}
                return {"tool_calls": [{"index": event.index, **call, "function": function}]}
            case ArgumentsDelta():
                self._calls[event.index][1].append(event.text)
                return {"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}
        return None

    def add_scores(self, scores: Mapping[str, Any]) -> None:
        """Keep the scores of more tokens."""
        for name in ("content", "reasoning_content"):
            self.scores[name] += scores[name]

    def whole(self) -> dict[str, Any]:
        """All of it."""
        content = "".join(self._content)
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if self._calls else "")}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": call["type"],
                    "function": {"name": call["name"], "arguments": "".join(arguments)},
                }
                for call, arguments in self._calls
            ]
        return message
