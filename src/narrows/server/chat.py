"""A chat request, whatever its protocol: a conversation and its bounds to a job for the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Literal

from narrows.engine.grammar import Grammar
from narrows.engine.request import SamplingParameters, ThinkingBudget
from narrows.errors import UsageError
from narrows.server.accounting import Tier
from narrows.server.backend import Backend, Job
from narrows.server.errors import ApiError
from narrows.server.reply import ReplyReader
from narrows.server.service import priority_of, room
from narrows.server.settings import Settings
from narrows.text.chat import Prompt, encode_conversation
from narrows.text.messages import AssistantMessage, Conversation, Effort, Message, SystemMessage, Tool
from narrows.text.tokenizer import DSML, END_OF_THINKING

Calls = Literal["auto", "none", "required"]

# As good as forbidden, and still a number that every protocol knows.
_NEVER = -100.0


@dataclass(frozen=True)
class Asked:
    """What a chat request says. `parameters` without `stop`, and with the number of tokens that was asked for, or None.

    `calls`: whether tools may or must be called; `only`: these alone, where any are named; `strict`: those whose schema
    binds; `parallel`: several calls at once. `content_schema`: what a reply that calls nothing must satisfy. `budget`:
    tokens of reasoning.
    """

    messages: tuple[Message, ...]
    parameters: SamplingParameters
    max_tokens: int | None
    effort: Effort
    stop: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    calls: Calls = "auto"
    only: frozenset[str] = frozenset()
    strict: frozenset[str] = frozenset()
    parallel: bool = True
    content_schema: Mapping[str, Any] | None = None
    budget: int | None = None
    tier: Tier = "default"


@dataclass(frozen=True)
class Chat:
    """A chat request in the engine's words."""

    job: Job
    asked: Asked
    thinking: bool

    def readers(self, backend: Backend) -> list[ReplyReader]:
        """One for each of the answers."""
        asked = self.asked
        return [
            ReplyReader(
                backend.info.tokenizer,
                thinking=self.thinking,
                tools=asked.tools,
                stop=asked.stop,
                scores=asked.parameters.logprobs is not None,
            )
            for _ in range(asked.parameters.n)
        ]


def prompt_of(backend: Backend, asked: Asked) -> Prompt:
    """The prompt. UsageError for a conversation that cannot be one."""
    messages = joined(asked.messages)
    last = messages[-1] if messages else None
    if isinstance(last, AssistantMessage) and not last.unfinished:
        raise UsageError(
            f"messages[{len(asked.messages) - 1}], the last, is a finished assistant message; add a user message, or "
            "set its prefix to true to have it continued."
        )
    return encode_conversation(
        backend.info.tokenizer, Conversation(messages, asked.tools, asked.effort, asked.content_schema)
    )


def chat_of(backend: Backend, asked: Asked, settings: Settings) -> Chat:
    """The job that a request asks for. UsageError, or 400, for what cannot be."""
    if len(asked.tools) > settings.most_tools:
        raise UsageError(f"{len(asked.tools):,} tools are given; send {settings.most_tools} or fewer.")
    if asked.parameters.n > settings.most_choices:
        raise UsageError(f"n is {asked.parameters.n}; ask for {settings.most_choices} or fewer.")
    if not backend.info.chat:
        raise ApiError(
            400,
            f"{backend.info.name} continues text and was not trained to chat; use /v1/completions, or start the server "
            "with --chat to let it pretend.",
            param="model",
        )
    prompt = prompt_of(backend, asked)
    tokenizer = backend.info.tokenizer
    grammar = _grammar(backend, asked)
    end = tokenizer.control(END_OF_THINKING) if prompt.thinking else None
    bias = dict(asked.parameters.logit_bias)
    if asked.calls == "none" and asked.tools:
        bias[tokenizer.control(DSML)] = _NEVER
    job = Job(
        prompt.token_ids,
        replace(
            asked.parameters,
            max_tokens=room(backend, prompt.token_ids, asked.max_tokens, settings.default_tokens),
            logit_bias=bias,
        ),
        priority=priority_of(asked.tier),
        timeout=settings.request_seconds,
        grammar=grammar,
        grammar_after=None if grammar is None else end,
        thinking=None if end is None or asked.budget is None else ThinkingBudget(asked.budget, end),
    )
    return Chat(job, asked, prompt.thinking)


def stop_strings(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """One, several or none. UsageError for an empty one."""
    return SamplingParameters(stop=(given,) if isinstance(given, str) else tuple(given or ())).stop


def joined(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages with those of the system that stand first made one, as clients send several."""
    first = list(takewhile(lambda one: isinstance(one, SystemMessage), messages))
    if len(first) < 2:
        return tuple(messages)
    text = "\n\n".join(message.content for message in first if isinstance(message, SystemMessage))
    return (SystemMessage(text), *messages[len(first) :])


def _grammar(backend: Backend, asked: Asked) -> Grammar | None:
    """What binds the reply; None where it is free."""
    schema, tools = asked.content_schema, asked.tools
    if asked.only:
        if unknown := asked.only - {tool.name for tool in tools}:
            raise UsageError(f"tool_choice names {min(unknown)!r}, which is none of the tools; name one of them.")
        tools = tuple(tool for tool in tools if tool.name in asked.only)
    required = asked.calls == "required"
    if required and not tools:
        raise UsageError("tool_choice asks for a call and there are no tools; send some, or leave it out.")
    if not tools or asked.calls == "none":
        return None if schema is None else Grammar.json_schema(backend.vocabulary, schema)
    if not required and schema is None and asked.parallel and not (asked.strict or asked.only):
        return None
    bound = [tool if tool.name in asked.strict else replace(tool, parameters={"type": "object"}) for tool in tools]
    return Grammar.tool_calls(backend.vocabulary, bound, required=required, parallel=asked.parallel, content=schema)
