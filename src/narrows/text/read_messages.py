"""Messages and tools from plain data, in the form of chat completions that requests and data sets share."""

from __future__ import annotations

import json
from typing import Any

from narrows.errors import UsageError
from narrows.text.messages import AssistantMessage, Message, SystemMessage, Tool, ToolCall, ToolMessage, UserMessage
from narrows.text.plain_data import as_list, as_object, as_string


def read_messages(data: Any) -> tuple[Message, ...]:
    """Messages from parsed JSON: objects with `role` (system or developer, user, assistant, tool) and `content`.

    `content` is text, null or a list of text parts. An assistant's may have `reasoning_content`, `tool_calls` and
    `prefix` (true: to be continued); a tool's has `tool_call_id`. Other fields are ignored. Raises UsageError, which
    names the place, for what is of another kind.
    """
    return tuple(_message(message, f"messages[{place}]") for place, message in enumerate(as_list(data, "messages")))


def read_tools(data: Any) -> tuple[Tool, ...]:
    """Tools from parsed JSON: objects of type "function" whose `function` has `name`, `description`, `parameters`.

    Without parameters the tool takes none. Raises UsageError, which names the place, for what is of another kind.
    """
    return tuple(_tool(tool, f"tools[{place}]") for place, tool in enumerate(as_list(data, "tools")))


def _message(data: Any, place: str) -> Message:
    fields = as_object(data, place)
    content = _content(fields.get("content"), f"{place}.content")
    match fields.get("role"):
        case "system" | "developer":
            return SystemMessage(content)
        case "user":
            return UserMessage(content)
        case "assistant":
            calls = as_list(fields.get("tool_calls") or [], f"{place}.tool_calls")
            return AssistantMessage(
                content,
                as_string(fields.get("reasoning_content") or "", f"{place}.reasoning_content"),
                tuple(_call(call, f"{place}.tool_calls[{number}]") for number, call in enumerate(calls)),
                unfinished=fields.get("prefix") is True,
            )
        case "tool":
            return ToolMessage(as_string(fields.get("tool_call_id"), f"{place}.tool_call_id"), content)
        case role:
            raise UsageError(f"{place}.role is {role!r}; use system, user, assistant or tool.")


def _content(data: Any, place: str) -> str:
    if data is None:
        return ""
    if isinstance(data, str):
        return data
    texts = []
    for number, part in enumerate(as_list(data, place)):
        fields = as_object(part, f"{place}[{number}]")
        if fields.get("type") != "text":
            raise UsageError(f"{place}[{number}].type is {fields.get('type')!r}; only text can be read.")
        texts.append(as_string(fields.get("text"), f"{place}[{number}].text"))
    return "\n\n".join(texts)


def _call(data: Any, place: str) -> ToolCall:
    fields = as_object(data, place)
    function = as_object(fields.get("function"), f"{place}.function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{place}.function.arguments is not valid JSON ({error}); send an object.") from None
    return ToolCall(
        as_string(fields.get("id"), f"{place}.id"),
        as_string(function.get("name"), f"{place}.function.name"),
        as_object(arguments, f"{place}.function.arguments"),
    )


def _tool(data: Any, place: str) -> Tool:
    fields = as_object(data, place)
    if fields.get("type") != "function":
        raise UsageError(f"{place}.type is {fields.get('type')!r}; only functions can be called.")
    function = as_object(fields.get("function"), f"{place}.function")
    return Tool(
        as_string(function.get("name"), f"{place}.function.name"),
        as_string(function.get("description") or "", f"{place}.function.description"),
        as_object(
            function.get("parameters") or {"type": "object", "properties": {}},
            f"{place}.function.parameters",
        ),
    )
