"""OpenAI's responses. Nothing of them is kept: every request brings its whole conversation along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from narrows.engine.request import SamplingParameters
from narrows.server.backend import Backend
from narrows.server.body import Body, Objects, Route, Share, Short, Temperature, Tokens, refuse
from narrows.server.chat import Asked, Calls, chat_of
from narrows.server.openai_bounds import Form, schema_of, tools_chosen
from narrows.server.openai_wire import EFFORTS, AskedEffort, AskedTier, tier_of
from narrows.server.responses_answer import ResponseAnswer
from narrows.server.responses_read import read_input, read_tools
from narrows.server.schema import generation
from narrows.server.service import Plan, Service

router = APIRouter(route_class=Route)

_SCORES = "message.output_text.logprobs"
_SEALED = "reasoning.encrypted_content"
_INSTEAD = {
    "previous_response_id": "nothing is kept here: send the whole conversation as input",
    "conversation": "nothing is kept here: send the whole conversation as input",
    "prompt": "no prompts are kept here: send instructions and input",
    "background": "stay connected, or stream",
    "context_management": "shorten the input yourself",
}


class Reasoning(Body):
    """How hard to think. What is thought is told whole, whatever `summary` says."""

    effort: AskedEffort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class TextFormat(Body):
    """What the text of a response must be."""

    type: Form
    name: Short | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextOptions(Body):
    """How the text is written."""

    format: TextFormat | None = None


class ResponseBody(Body):
    """POST /v1/responses."""

    model: Short
    input: str | Annotated[Objects, Field(min_length=1)]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Annotated[list[Short], Field(fail_fast=True)] | None = None
    tools: Objects | None = None
    tool_choice: Calls | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Tokens | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    service_tier: AskedTier | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    user: Short | None = None
    store: bool | None = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    context_management: Any = None


@router.post(
    "/responses", tags=["OpenAI"], responses=generation("id", "object", "created_at", "model", "output", "usage")
)
async def responses(request: Request, body: ResponseBody) -> Response:
    """Answer a conversation, item by item."""
    service = Service.of(request)

    def plan(backend: Backend) -> Plan:
        chat = chat_of(backend, asked_by(body), service.settings)
        answer = ResponseAnswer(backend, chat, _repeated(body), sealing=_SEALED in (body.include or ()))
        return Plan([chat.job], answer, body.stream is True, chat.asked.tier)

    return await service.answer(request, body.model, plan)


def asked_by(body: ResponseBody) -> Asked:
    """A request in the words that all chat protocols share. UsageError for what contradicts itself."""
    refuse({**vars(body), "background": body.background or None}, _INSTEAD)
    tools, strict = read_tools(body.tools or [])
    calls, only = tools_chosen(body.tool_choice, nested=False)
    effort = body.reasoning.effort if body.reasoning is not None else None
    scored = body.top_logprobs is not None or _SCORES in (body.include or ())
    return Asked(
        messages=read_input(body.instructions, body.input),
        parameters=SamplingParameters(
            temperature=1.0 if body.temperature is None else body.temperature,
            logprobs=(body.top_logprobs or 0) if scored else None,
            top_p=1.0 if body.top_p is None else body.top_p,
        ),
        max_tokens=body.max_output_tokens,
        effort="high" if effort is None else EFFORTS[effort],
        tools=tools,
        calls=calls,
        only=only,
        strict=strict,
        parallel=body.parallel_tool_calls is not False and body.max_tool_calls != 1,
        content_schema=_schema(body.text),
        tier=tier_of(body.service_tier),
    )


def _schema(options: TextOptions | None) -> Mapping[str, Any] | None:
    wanted = options.format if options is not None else None
    return None if wanted is None else schema_of(wanted.type, wanted.schema_, "text.format.schema")


def _repeated(body: ResponseBody) -> dict[str, Any]:
    """The fields of a response that repeat its request."""
    wanted = body.text.format if body.text is not None else None
    effort = body.reasoning.effort if body.reasoning is not None else None
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": effort or "high", "summary": None},
        "store": False,
        "background": False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "text": {"format": {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True, exclude_none=True)},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "truncation": "disabled",
        "metadata": body.metadata or {},
        "user": body.user,
    }
