"""What no request should be: refused in the protocol's own shape with a sentence that helps; never a 5xx."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.scripted import KEY, Live, Scripted, reply

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = {"model": "scripted", "messages": HELLO}
OTHERS = {"prompt": "x", "input": "x"}
DEEP: Any = "x"
for _ in range(300):
    DEEP = {"properties": {"a": DEEP}, "type": "object"} if isinstance(DEEP, dict) else {"type": "string"}
RECURSIVE = {
    "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}},
    "$ref": "#/$defs/node",
}


def tool(name: str = "f", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def post(server: Live, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", path, body, {"x-api-key": KEY, "content-type": "application/json"} | headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text)


def told(server: Live, path: str, body: Any) -> str:
    """The sentence with which a body is refused."""
    given = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, answer = post(server, path, given)
    assert status == 400, answer
    error = answer["error"]
    assert error["type"] == "invalid_request_error"
    assert error.keys() == {"type", "message", "param", "code"}
    return str(error["message"])


BODIES: list[tuple[Any, str]] = [
    (b"", "the body is no JSON object, or not called one; send"),
    (b"[]", "the body is no JSON object, or not called one; send"),
    (b"null", "the body is no JSON object, or not called one; send"),
    (b'"text"', "the body is no JSON object, or not called one; send"),
    (b"{", "the body is not valid JSON (EOF while parsing"),
    (b'{"model": scripted}', "the body is not valid JSON (expected value at line 1 column 11); send an object."),
    (b'{"model": "\xff\xfe"}', "the body is not valid JSON (invalid unicode code point at line 1 column 12); send"),
    (b'{"a":' * 100_000, "the body is not valid JSON (recursion limit exceeded"),
    (b"9" * 10_000, "the body is not valid JSON (number out of range"),
    ({}, "model is wrong (field required); correct it."),
    ({**CHAT, "model": 5}, "model is wrong (input should be a valid string); correct it."),
    ({**CHAT, "max_tokens": "5"}, "max_tokens is wrong (input should be a valid integer); correct it."),
    ({**CHAT, "max_tokens": 0}, "max_tokens is wrong (input should be greater than or equal to 1)"),
    ({**CHAT, "max_tokens": True}, "max_tokens is wrong (input should be a valid integer)"),
    ({**CHAT, "n": 129}, "n is wrong (input should be less than or equal to 128)"),
    ({**CHAT, "temperature": 2.5}, "temperature is wrong (input should be less than or equal to 2)"),
    (b'{"model":"scripted","messages":[{}],"temperature":NaN}', "(expected value at line 1 column"),
    (b'{"model":"scripted","messages":[{}],"seed":1e999}', "the body holds a number that is too large for a float"),
    ({**CHAT, "top_p": 0}, "top_p is 0; choose a number above 0"),
    ({**CHAT, "stop": [""]}, "a stop string is empty"),
    ({**CHAT, "stop": [5]}, "stop[0] is wrong (input should be a valid string)"),
    ({**CHAT, "seed": 2**70}, "seed is wrong"),
    ({**CHAT, "logit_bias": {"x": 1}}, "logit_bias names 'x', which is no token id"),
    ({**CHAT, "logit_bias": {"5": 1000}}, "logit_bias of token 5 is 1000.0; choose -100 to 100"),
    ({**CHAT, "top_logprobs": 3}, "top_logprobs is given without logprobs"),
    ({**CHAT, "reasoning_effort": "huge"}, "reasoning_effort is wrong (input should be 'none', 'minimal'"),
    ({**CHAT, "stream_options": 5}, "stream_options is wrong"),
    ({**CHAT, "functions": []}, "functions is not supported; send tools."),
    ({**CHAT, "messages": []}, "messages is wrong (list should have at least 1 item"),
    ({**CHAT, "messages": "hi"}, "messages is wrong (input should be a valid list)"),
    ({**CHAT, "messages": [5]}, "messages[0] is wrong (input should be a valid dictionary)"),
    ({**CHAT, "messages": [{"role": "wizard"}]}, "messages[0].role is 'wizard'; use system, user, assistant or tool."),
    ({**CHAT, "messages": [{"role": "user", "content": 5}]}, "messages[0].content is of type int; send a list."),
    (
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0].type is 'image_url'; only text can be read.",
    ),
    ({**CHAT, "messages": [{"role": "system", "content": "x"}]}, "the conversation has no user message; add one."),
    ({**CHAT, "messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "messages[1], the last, is a finished"),
    ({**CHAT, "messages": [*HELLO, {"role": "tool", "tool_call_id": "a"}]}, "messages[1] answers the call 'a'"),
    (
        b'{"model":"scripted","messages":[{"role":"user","content":"\\ud800"}]}',
        "the body is not valid JSON (unexpected end of hex escape at line 1 column 65)",
    ),
    (
        {**CHAT, "messages": [{"role": "user", "content": "word " * 9000}]},
        "the model holds 4,096 with the reply; shorten",
    ),
    ({**CHAT, "tools": [tool(f"f{number}") for number in range(10_000)]}, "10,000 tools are given; send 256 or fewer."),
    ({**CHAT, "tools": [tool(), tool()]}, "two tools have the name 'f'; give each its own."),
    ({**CHAT, "tools": [tool('a"b')]}, "cannot be written in a tool call"),
    ({**CHAT, "tools": [{"type": "custom"}]}, "tools[0].type is 'custom'; only functions can be called."),
    ({**CHAT, "tools": [{}]}, "tools[0].type is None; only functions"),
    ({**CHAT, "tool_choice": "required"}, "tool_choice asks for a call and there are no tools"),
    ({**CHAT, "tool_choice": {"type": "x"}}, "tool_choice names no function; send"),
    (
        {**CHAT, "tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice names 'g', which is none of the tools",
    ),
    ({**CHAT, "response_format": {"type": "json_schema"}}, "response_format.json_schema is missing"),
    (
        {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "what"}}}},
        "the JSON schema cannot constrain a reply",
    ),
    (
        {**CHAT, "tools": [tool(strict=True, parameters={"type": "object", "oneOf": []})]},
        "the parameters of tool 'f' are limited by 'oneOf'",
    ),
]


@pytest.mark.parametrize(("body", "message"), BODIES, ids=range(len(BODIES)))
def test_bodies_that_are_wrong(script: Scripted, server: Live, body: Any, message: str) -> None:
    assert message in told(server, "/v1/chat/completions", body)
    assert server.ledger.rows == []
    assert script.jobs == []


@pytest.mark.parametrize("odd", ["NaN", "-Infinity", "1e999", '"\\ud800"', "9" * 5000])
@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "messages", "messages/count_tokens"])
def test_what_could_not_be_sent_back_is_taken_nowhere(script: Scripted, server: Live, path: str, odd: str) -> None:
    script.replies = [reply("</think>ok")]
    body = f'{{"model": "scripted", "messages": [], "input": "Hello", "prompt": "Hello", "tools": [{{"odd": {odd}}}]}}'
    status, answer = post(server, f"/v1/{path}", body.encode())
    assert status == 400
    assert "the body " in answer["error"]["message"]
    assert server.ledger.rows == []


def test_schemas_are_taken_however_deep(script: Scripted, server: Live) -> None:
    script.replies = ["</think>{"]
    # The first has no finite value: such a reply ends at its limit.
    ending = {**RECURSIVE, "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}}}
    for schema in (RECURSIVE, ending, {"type": "object", "properties": {"a": DEEP}}):
        wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
        status, answer = post(server, "/v1/chat/completions", json.dumps({**CHAT, "response_format": wanted}).encode())
        assert status in (200, 400), answer
        status, answer = post(
            server,
            "/v1/chat/completions",
            json.dumps({**CHAT, "tools": [tool(parameters=schema, strict=True)], "tool_choice": "none"}).encode(),
        )
        assert status in (200, 400), answer


def test_a_body_needs_no_content_type_but_no_other_one(script: Scripted, server: Live) -> None:
    script.replies = [reply("</think>ok")]
    body = json.dumps(CHAT).encode()
    assert post(server, "/v1/chat/completions", body, **{"content-type": ""})[0] == 200
    status, answer = post(server, "/v1/chat/completions", body, **{"content-type": "text/plain"})
    assert status == 400
    assert "Content-Type: application/json" in answer["error"]["message"]


def test_unknown_models_are_named(server: Live) -> None:
    for name in ("scriptd", "", "x" * 500):
        status, answer = post(server, "/v1/chat/completions", json.dumps({**CHAT, "model": name}).encode())
        assert status == 404
        assert answer["error"]["code"] == "model_not_found"
        assert answer["error"]["message"].endswith("is not served here; ask for 'scripted'.")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8")),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=5,
)
PATHS = {
    "/v1/chat/completions": [
        *(
            "messages",
            "stream",
            "stream_options",
            "max_tokens",
            "temperature",
            "top_p",
            "stop",
            "seed",
            "n",
            "logprobs",
        ),
        *("tools", "tool_choice", "response_format", "reasoning_effort", "thinking", "logit_bias", "service_tier"),
    ],
    "/v1/messages": [
        *("messages", "system", "stream", "max_tokens", "temperature", "top_k", "stop_sequences", "tools"),
        *("tool_choice", "thinking", "output_config", "service_tier"),
    ],
    "/v1/responses": [
        *("input", "instructions", "stream", "max_output_tokens", "temperature", "include", "tools", "tool_choice"),
        *("text", "reasoning", "service_tier", "metadata", "background", "conversation"),
    ],
    "/infill": [
        *("input_prefix", "input_suffix", "input_extra", "prompt", "n_predict", "n_indent", "t_max_predict_ms"),
        *("temperature", "top_k", "seed", "stop", "stream", "response_fields"),
    ],
    "/v1/completions": [
        *("prompt", "suffix", "stream", "max_tokens", "temperature", "stop", "n", "logprobs", "best_of", "echo"),
    ],
}


@given(st.data(), st.sampled_from(sorted(PATHS)))
def test_fields_of_every_kind_are_taken_or_refused(scripted_server: Any, data: st.DataObject, path: str) -> None:
    script, server = scripted_server
    script.replies = [reply("</think>{}")]
    fields = data.draw(st.dictionaries(st.sampled_from(PATHS[path]), json_values, min_size=1, max_size=3))
    status, answer = post_any(server, path, json.dumps({**CHAT, **OTHERS, "max_tokens": 5, **fields}).encode())
    assert status in (200, 400), answer


@given(st.binary(max_size=60), st.sampled_from(sorted(PATHS)))
def test_bytes_of_every_kind_are_refused(scripted_server: Any, body: bytes, path: str) -> None:
    _, server = scripted_server
    status, answer = post_any(server, path, body)
    assert status == 400, answer


def post_any(server: Live, path: str, body: bytes) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", path, body, {"x-api-key": KEY, "content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()
