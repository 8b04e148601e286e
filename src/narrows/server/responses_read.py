"""Input items and tools of OpenAI's Responses, as the conversations that all protocols share."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from narrows.errors import UsageError
from narrows.text.messages import AssistantMessage, Message, SystemMessage, Tool, ToolCall, ToolMessage, UserMessage
from narrows.text.plain_data import as_list, as_object, as_string

# How reasoning that was sealed here begins.
_SEAL = "narrows:"

# Parts of a content that are text.
_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}


def read_input(instructions: str | None, given: str | Sequence[Any]) -> tuple[Message, ...]:
    """A request's `instructions` and `input`. An item of the assistant's that is the last and `incomplete` is to be
    continued there.

    UsageError, which names the place, for what is of another kind.
    """
    told: list[Message] = [SystemMessage(instructions)] if instructions else []
    if isinstance(given, str):
        return (*told, UserMessage(given))
    turn = _Turn()
    for number, one in enumerate(given):
        place = f"input[{number}]"
        item = as_object(one, place)
        if turn.takes(item, place):
            continue
        turn.end(told)
        match item.get("type", "message"), item.get("role"):
            case "message", "system" | "developer":
                told.append(SystemMessage(_text(item.get("content"), f"{place}.content")))
            case "message", "user":
                told.append(UserMessage(_text(item.get("content"), f"{place}.content")))
            case "function_call_output", _:
                output = _text(item.get("output"), f"{place}.output")
                told.append(ToolMessage(as_string(item.get("call_id"), f"{place}.call_id"), output))
            case "message", role:
                raise UsageError(f"{place}.role is {role!r}; use system, developer, user or assistant.")
            case "item_reference", _:
                raise UsageError(f"{place} refers to an item, and none are kept here; send the item itself.")
            case kind, _:
                raise UsageError(
                    f"{place}.type is {kind!r}; send message, reasoning, function_call or function_call_output."
                )
    turn.end(told, last=True)
    return tuple(told)


def read_tools(given: Sequence[Any]) -> tuple[tuple[Tool, ...], frozenset[str]]:
    """A request's tools, and which of them have a schema that binds: all that do not say otherwise."""
    tools, strict = [], []
    for number, one in enumerate(given):
        place = f"tools[{number}]"
        tool = as_object(one, place)
        if tool.get("type") != "function":
            raise UsageError(f"{place}.type is {tool.get('type')!r}; only functions, which the client runs, are there.")
        name = as_string(tool.get("name"), f"{place}.name")
        parameters = as_object(tool.get("parameters") or {"type": "object", "properties": {}}, f"{place}.parameters")
        tools.append(Tool(name, as_string(tool.get("description") or "", f"{place}.description"), parameters))
        if tool.get("strict") is not False:
            strict.append(name)
    return tuple(tools), frozenset(strict)


@dataclass
class _Turn:
    """An assistant's turn, which comes as several items: thoughts, text, calls."""

    reasoning: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    ended: tuple[str, Any] = ("", None)  # where its last item stands, and that item's status

    def takes(self, item: Mapping[str, Any], place: str) -> bool:
        """Take the item in, if it is a part of such a turn."""
        match item.get("type", "message"):
            case "reasoning":
                self.reasoning += _thoughts(item, place)
            case "function_call":
                self.calls.append(_call(item, place))
            case "message" if item.get("role") == "assistant":
                self.content.append(_text(item.get("content"), f"{place}.content"))
            case _:
                return False
        self.ended = (place, item.get("status"))
        return True

    def end(self, told: list[Message], *, last: bool = False) -> None:
        """Put the message that it was, if there was one. The `last` of all must be one to go on with."""
        if self.reasoning or self.content or self.calls:
            if last:
                self._check_last()
            content, reasoning = "\n\n".join(self.content), "\n\n".join(self.reasoning)
            told.append(AssistantMessage(content, reasoning, tuple(self.calls), unfinished=last))
        self.reasoning, self.content, self.calls = [], [], []

    def _check_last(self) -> None:
        place, status = self.ended
        if self.calls:
            raise UsageError(f"{place}, the last, ends a turn that makes calls; add the function_call_output of each.")
        if status != "incomplete":
            raise UsageError(
                f"{place}, the last, is the assistant's and finished; add a user message, or set its status to "
                '"incomplete" to have it continued.'
            )


def sealed(reasoning: str) -> str:
    """Reasoning as `encrypted_content`, the one form in which some clients hand it back. It hides nothing: the same
    client has read it already."""
    return _SEAL + b64encode(reasoning.encode()).decode()


def _thoughts(item: Mapping[str, Any], place: str) -> list[str]:
    """What was thought; of thoughts that another server sealed, their summary."""
    seal = item.get("encrypted_content")
    if not item.get("content") and isinstance(seal, str) and seal.startswith(_SEAL):
        try:
            return [b64decode(seal.removeprefix(_SEAL), validate=True).decode()]
        except ValueError:
            raise UsageError(
                f"{place}.encrypted_content is damaged; send it as it came, or leave the item out."
            ) from None
    texts = []
    for number, part in enumerate(as_list(item.get("content") or item.get("summary") or [], f"{place}.content")):
        where = f"{place}.content[{number}]"
        texts.append(as_string(as_object(part, where).get("text"), f"{where}.text"))
    return texts


def _text(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for number, part in enumerate(as_list(content, place)):
        fields = as_object(part, f"{place}[{number}]")
        kind = fields.get("type")
        if not isinstance(kind, str) or kind not in _TEXTS:
            raise UsageError(f"{place}[{number}].type is {kind!r}; only text can be read.")
        texts.append(as_string(fields.get(_TEXTS[kind]), f"{place}[{number}].{_TEXTS[kind]}"))
    return "\n\n".join(texts)


def _call(item: Mapping[str, Any], place: str) -> ToolCall:
    given = as_string(item.get("arguments"), f"{place}.arguments")
    try:
        arguments = json.loads(given or "{}")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place}.arguments is not valid JSON ({error}); send an object.") from None
    name = as_string(item.get("name"), f"{place}.name")
    return ToolCall(
        as_string(item.get("call_id"), f"{place}.call_id"), name, as_object(arguments, f"{place}.arguments")
    )
