"""Messages and tools in Anthropic's form, as the conversations that all protocols share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from narrows.errors import UsageError
from narrows.text.messages import AssistantMessage, Message, SystemMessage, Tool, ToolCall, ToolMessage, UserMessage
from narrows.text.plain_data import as_list, as_object, as_string

_Block = tuple[dict[str, Any], str]
"""A block of content, and its place."""


def read_conversation(system: Any, messages: Sequence[Any]) -> tuple[Message, ...]:
    """A request's `system` and `messages`. One that ends with the assistant's is to be continued there.

    UsageError, which names the place, for what is of another kind.
    """
    told: list[Message] = []
    if system:
        told.append(SystemMessage("\n\n".join(_text(block, place) for block, place in _blocks(system, "system"))))
    placed = ((as_object(one, f"messages[{place}]"), f"messages[{place}]") for place, one in enumerate(messages))
    last = len(messages) - 1
    for role, turns in groupby(placed, key=lambda one: one[0].get("role")):  # turns that follow each other are one
        several = list(turns)
        blocks = [block for turn, place in several for block in _blocks(turn.get("content"), f"{place}.content")]
        if role == "user":
            told += _user(blocks)
        elif role == "assistant":
            told.append(_assistant(blocks, unfinished=several[-1][1] == f"messages[{last}]"))
        else:
            raise UsageError(f"{several[0][1]}.role is {role!r}; use user or assistant.")
    return tuple(told)


def read_tools(tools: Sequence[Any]) -> tuple[Tool, ...]:
    """A request's tools: those that its client runs."""
    told = []
    for number, one in enumerate(tools):
        place = f"tools[{number}]"
        tool = as_object(one, place)
        if tool.get("type") not in (None, "custom"):
            raise UsageError(f"{place}.type is {tool['type']!r}; only tools that the client runs can be called.")
        schema = as_object(tool.get("input_schema"), f"{place}.input_schema")
        description = as_string(tool.get("description") or "", f"{place}.description")
        told.append(Tool(as_string(tool.get("name"), f"{place}.name"), description, schema))
    return tuple(told)


def _blocks(content: Any, place: str) -> list[_Block]:
    if isinstance(content, str):
        return [({"type": "text", "text": content}, place)]
    return [
        (dict(as_object(one, f"{place}[{number}]")), f"{place}[{number}]")
        for number, one in enumerate(as_list(content, place))
    ]


def _user(blocks: Iterable[_Block]) -> Iterable[Message]:
    """Texts that stand together are one message; results of tools stand alone."""
    for is_result, group in groupby(blocks, key=lambda one: one[0].get("type") == "tool_result"):
        if is_result:
            yield from (_result(block, place) for block, place in group)
        else:
            yield UserMessage("\n\n".join(_text(block, place) for block, place in group))


def _result(block: dict[str, Any], place: str) -> ToolMessage:
    content = _blocks(block.get("content") or "", f"{place}.content")
    text = "\n\n".join(_text(part, where) for part, where in content)
    told = f"Error: {text}" if block.get("is_error") is True else text
    return ToolMessage(as_string(block.get("tool_use_id"), f"{place}.tool_use_id"), told)


def _assistant(blocks: Sequence[_Block], *, unfinished: bool) -> AssistantMessage:
    def of(kind: str, read: Callable[[dict[str, Any], str], Any]) -> list[Any]:
        return [read(block, place) for block, place in blocks if block.get("type") == kind]

    for block, place in blocks:
        if block.get("type") not in ("text", "thinking", "redacted_thinking", "tool_use"):
            raise UsageError(f"{place}.type is {block.get('type')!r}; an assistant's are text, thinking and tool_use.")
    calls = of("tool_use", _call)
    if calls and unfinished:
        raise UsageError("the last message is the assistant's and uses tools; answer each use with a tool_result.")
    return AssistantMessage(
        "".join(of("text", _text)),
        "".join(of("thinking", lambda block, place: as_string(block.get("thinking"), f"{place}.thinking"))),
        tuple(calls),
        unfinished=unfinished,
    )


def _call(block: dict[str, Any], place: str) -> ToolCall:
    return ToolCall(
        as_string(block.get("id"), f"{place}.id"),
        as_string(block.get("name"), f"{place}.name"),
        as_object(block.get("input"), f"{place}.input"),
    )


def _text(block: dict[str, Any], place: str) -> str:
    if block.get("type") != "text":
        raise UsageError(f"{place}.type is {block.get('type')!r}; only text can be read here.")
    return as_string(block.get("text"), f"{place}.text")
