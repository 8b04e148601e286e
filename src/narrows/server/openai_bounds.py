"""What binds a reply, in the forms that OpenAI's endpoints share: choices of tools, and schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from narrows.errors import UsageError
from narrows.server.chat import Calls

Form = Literal["text", "json_object", "json_schema"]
"""What a reply must be."""


def schema_of(form: Form, schema: Mapping[str, Any] | None, place: str) -> Mapping[str, Any] | None:
    """The schema that binds a reply, which stands at `place` where the form asks for one. None: the reply is free."""
    if form == "text":
        return None
    if form == "json_object":
        return {"type": "object"}
    if schema is None:
        raise UsageError(f"{place} is missing; give the schema, or ask for json_object.")
    return schema


def tools_chosen(choice: Calls | dict[str, Any] | None, *, nested: bool) -> tuple[Calls, frozenset[str]]:
    """Whether calls may or must come, and of which tools alone; of all where none is named.

    `nested`: what is chosen lies a field deeper, as chat completions have it.
    """
    if choice is None or isinstance(choice, str):
        return choice or "auto", frozenset()
    if choice.get("type") != "allowed_tools":
        return "required", frozenset({_name(choice, nested)})
    allowed = choice.get("allowed_tools") if nested else choice
    if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list) or not allowed["tools"]:
        raise UsageError("tool_choice allows no tools; list some, or send none in its place.")
    mode = allowed.get("mode")
    if mode not in ("auto", "required"):
        raise UsageError(f"the mode of tool_choice is {mode!r}; use auto or required.")
    return mode, frozenset(_name(one, nested) for one in allowed["tools"])


def _name(chosen: Any, nested: bool) -> str:
    function = chosen.get("function") if nested and isinstance(chosen, dict) else chosen
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or chosen.get("type") != "function":
        form = '"function": {"name": NAME}' if nested else '"name": NAME'
        raise UsageError(f'tool_choice names no function; send {{"type": "function", {form}}}.')
    return name
