"""Bodies that were valid, with something done to them: as JSON text, since much of it no JSON value could hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

from tests.server.test_bad_input import DEEP, RECURSIVE, tool


class Raw(str):
    """JSON text that is written as it is."""


SAID = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hm.", "reasoning_content": "Well"},
    {"role": "user", "content": [{"type": "text", "text": "What now?"}]},
]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}
CALLED = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": "x"}'}}
ANSWERED = {"role": "tool", "tool_call_id": "call_1", "content": "42"}
SCHEMAS: list[Any] = [
    *(
        PERSON,
        RECURSIVE,
        Raw(json.dumps(DEEP)),
        True,
        False,
        {},
        {"$ref": "#"},
        {"$ref": "#/$defs/nobody"},
        {"$ref": "https://a.b/c"},
    ),
    *({"enum": []}, {"const": None}, {"type": []}, {"type": "what"}, {"oneOf": []}, {"not": {}}, {"multipleOf": 0}),
    *({"type": "string", "pattern": pattern} for pattern in ("(a+)+$", "[", "(?=a)b", "a{1000000}", "\\p{L}*")),
    *({"type": "string", "format": form} for form in ("date", "uri", "email", "nothing")),
    {"type": "string", "minLength": 10**9},
    {"type": "array", "minItems": 10**6, "items": {"type": "string"}},
    {"type": "integer", "minimum": 10, "maximum": 5},
    {"type": "integer", "minimum": -(10**40), "maximum": 10**40},
    {"type": "number", "minimum": 1e300, "exclusiveMaximum": 1e301},
    {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
    {"anyOf": [{"anyOf": [{"anyOf": [{"type": "string"}, {"type": "null"}]} for _ in range(20)]} for _ in range(20)]},
    {"type": "object", "properties": {f"field {number}": {"type": "string"} for number in range(1000)}},
    {"type": "object", "required": ["missing"], "properties": {"": {"type": "boolean"}}},
    {"enum": [*range(2000)]},
    {"type": "object", "patternProperties": {"^a": {}}, "propertyNames": {"maxLength": 3}},
]

BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"model": "scripted", "messages": SAID, "max_tokens": 20, "temperature": 1, "top_p": 0.5, "seed": 1, "n": 2},
        {
            "model": "scripted",
            "messages": [*SAID, {"role": "assistant", "tool_calls": [CALLED]}, ANSWERED],
            "tools": [tool(parameters=PERSON, strict=True), tool("g")],
            "tool_choice": "auto",
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": 30,
        },
        {
            "model": "scripted",
            "messages": SAID,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": PERSON, "strict": True}},
            "thinking": {"type": "enabled", "budget_tokens": 5},
            "reasoning_effort": "low",
            "max_tokens": 30,
        },
        {
            "model": "scripted",
            "messages": SAID,
            "logprobs": True,
            "top_logprobs": 2,
            "stop": ["x", "\n"],
            "logit_bias": {"5": 1.5},
            "service_tier": "priority",
            "presence_penalty": 0.1,
        },
    ],
    "/v1/completions": [
        {"model": "scripted", "prompt": "def f(", "suffix": "return 1", "max_tokens": 10, "stream": True},
        {"model": "scripted", "prompt": [[5, 6], [7]], "max_tokens": 5, "n": 2, "logprobs": 2, "echo": True},
        {"model": "scripted", "prompt": ["a", "b"], "stop": "x", "stream_options": {"include_usage": True}},
    ],
    "/v1/responses": [
        {"model": "scripted", "input": "Hello", "instructions": "Be brief.", "max_output_tokens": 20, "stream": True},
        {
            "model": "scripted",
            "input": [
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Well"}]},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "42"},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": PERSON, "strict": False}],
            "tool_choice": {"type": "function", "name": "f"},
            "metadata": {"a": "b"},
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 2,
        },
        {
            "model": "scripted",
            "input": [{"role": "user", "content": "Hello"}],
            "text": {"format": {"type": "json_schema", "name": "x", "schema": PERSON}},
            "reasoning": {"effort": "high"},
        },
    ],
    "/v1/messages": [
        {"model": "scripted", "max_tokens": 20, "system": "Be brief.", "messages": SAID[1:2], "stream": True},
        {
            "model": "scripted",
            "max_tokens": 30,
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {"a": "x"}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "42"}]},
            ],
            "tools": [{"name": "f", "input_schema": PERSON, "strict": True}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        },
        {
            "model": "scripted",
            "max_tokens": 30,
            "messages": [*SAID[1:2], {"role": "assistant", "content": "Then"}],
            "thinking": {"type": "enabled", "budget_tokens": 5},
            "stop_sequences": ["x"],
            "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": PERSON}},
        },
    ],
    "/v1/messages/count_tokens": [{"model": "scripted", "messages": SAID[1:2], "system": "Be brief."}],
    "/infill": [
        {
            "input_prefix": "import os\n\n",
            "input_suffix": "\nprint(x)\n",
            "input_extra": [{"filename": "a.py", "text": "y = 1\n"}],
            "prompt": "x = ",
            "n_predict": 10,
            "n_indent": 0,
            "t_max_predict_ms": 100,
            "stop": ["\n\n"],
            "stream": True,
        },
        {
            "input_prefix": "def f(",
            "n_predict": 0,
            "response_fields": ["content"],
            "seed": -1,
            "top_k": 5,
            "top_p": 0.5,
        },
    ],
    "/api/keys": [
        {"name": "new", "scopes": ["inference"], "budget": "1.50", "expires": "2100-01-01T00:00:00Z", "concurrency": 2}
    ],
    "/api/keys/nobody": [{"budget": "1.00"}],
}
METHODS = {"/api/keys/nobody": "PATCH"}

_DEEP_LIST: Any = []
for _ in range(90):
    _DEEP_LIST = [_DEEP_LIST]


ODD = [
    *(None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 0.5, -0.0, 1e308, [], {}, [[]], [{}]),
    *map(Raw, ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400, "9" * 5000, "1E400", "0.1e-999", "01")),
    *map(Raw, ('"\\ud800"', '"\\udfff x"', '"\\ud83d\\ude00"', '"\\u0000"', '"\\x"', '"\t"', "undefined", "")),
    *map(Raw, ("[" * 150 + "]" * 150, "[" * 5000 + "]" * 5000, '{"a":' * 900 + "1" + "}" * 900, "/*c*/1", "[1,]")),
    *("", " ", "a", "\x00", "\x7f\u2028", "a" * 20_000, "𝕏🎉", "é" * 600, "user", "assistant", "tool", "text"),
    *("</think>", "<think>", "<｜end▁of▁sentence｜>", "<｜DSML｜tool_calls>", "\n\n<｜DSML｜invoke name=", "{}"),
    *("\ufeff", "none", "auto", "required", "function", "json_schema", "2026-02-30", "-1.5", "1e5", "../..", "%s{}"),
    _DEEP_LIST,
    [*range(3000)],
    {str(number): number for number in range(500)},
    [tool(f"f{number}") for number in range(10_000)],
    [{"role": "user", "content": "x"} for _ in range(2000)],
    *({"type": "text", "text": one} for one in ("x", 5, None)),
    *SCHEMAS,
]

_texts = st.text(max_size=20) | st.text(st.characters(codec=None, categories=("Cs", "Cc", "Lo")), max_size=3)
_numbers = st.integers() | st.floats() | st.integers(-3, 300)
odd_values = st.sampled_from(ODD) | st.sampled_from(SCHEMAS) | _texts | _numbers
keys = st.sampled_from(["", "type", "role", "content", "text", "name", "id", "strict", "$ref", "properties", "\x00"])


@st.composite
def bodies(draw: st.DrawFn, path: str) -> bytes:
    """A body for this endpoint, of which at most a few places are wrong."""
    body = _Object(deepcopy(draw(st.sampled_from(BODIES[path]))))
    for _ in range(draw(st.integers(0, 3))):
        _mutate(draw, body)
    text = _written(body.value).encode("utf-8", errors="surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        text = draw(_spoiled(text))
    return text


class _Object:
    """Holds the whole of a body, so that this too can be replaced."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _mutate(draw: st.DrawFn, body: _Object) -> None:
    places = [*_places(body.value)]
    if not places:
        return
    holder, name = draw(st.sampled_from(places))
    match draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "wrap", "twice", "whole"])):
        case "replace":
            holder[name] = deepcopy(draw(odd_values))
        case "remove":
            del holder[name]
        case "add" if isinstance(holder, dict):
            holder[draw(keys)] = deepcopy(draw(odd_values))
        case "wrap":
            holder[name] = draw(st.sampled_from([[holder[name]], {"a": holder[name]}, _written(holder[name])]))
        case "twice" if isinstance(holder, dict):
            again = _written({name: draw(odd_values)})[1:-1]
            holder[name] = Raw(f"{_written(holder[name])}, {again}")
        case "add" | "twice":
            holder.append(deepcopy(draw(odd_values)))
        case "whole":
            if draw(st.integers(0, 9)) == 0:
                body.value = deepcopy(draw(odd_values))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a value that holds something: what it lies in, and where there."""
    if isinstance(value, dict):
        for name in value:
            yield value, name
            yield from _places(value[name])
    elif isinstance(value, list):
        for number, one in enumerate(value[:20]):
            yield value, number
            yield from _places(one)


def _written(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {_written(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    return json.dumps(value, ensure_ascii=isinstance(value, str) and len(value) % 2 == 0)


@st.composite
def _spoiled(draw: st.DrawFn, text: bytes) -> bytes:
    """The text as bytes with a few of them cut out, put in, or in another encoding."""
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 10)))
    return draw(
        st.sampled_from(
            [
                text[:start],
                text[start:],
                text[:start] + draw(st.binary(max_size=5)) + text[end:],
                b"\xef\xbb\xbf" + text,
                text.decode("utf-8", "replace").encode("utf-16"),
                text + text,
                text + b"\x00",
            ]
        )
    )
