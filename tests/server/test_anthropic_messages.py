"""Messages, driven by Anthropic's own client against a scripted model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message

from narrows.server.errors import ApiError, overloaded
from narrows.text.chat import encode_conversation
from narrows.text.messages import (
    AssistantMessage,
    Conversation,
    SystemMessage,
    Tool,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from narrows.text.tokenizer import DSML, END_OF_THINKING
from tests.server.scripted import KEY, Live, Scripted, call, calls, reply
from tests.server.test_delivery import events_of, post
from tests.text.conversations import EMBEDDED

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"name": "weather", "description": "Forecast", "input_schema": SCHEMA},
    {"name": "time", "input_schema": {"type": "object", "properties": {}}},
]
CALL = calls(call("weather", ("city", "true", "Bergen"), ("days", "false", "2")))
TWO_CALLS = calls(call("weather", ("city", "true", "Bergen"), ("days", "false", "2")), call("time"))
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture(params=["", "/anthropic"])
def client(server: Live, request: pytest.FixtureRequest) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url + request.param, api_key=KEY, max_retries=0) as client:
        yield client


def ask(client: anthropic.Anthropic, **options: Any) -> Message:
    message: Message = client.messages.create(**{"model": "scripted", "max_tokens": 2000, "messages": HELLO, **options})
    return message


def told(message: Message) -> list[dict[str, Any]]:
    """The blocks, without what is drawn by chance."""
    blocks = [block.model_dump(exclude_none=True) for block in message.content]
    return [{name: value for name, value in block.items() if name not in ("id", "signature")} for block in blocks]


EVERYTHING = [
    {"type": "thinking", "thinking": "So."},
    {"type": "text", "text": "Let me see 😀."},
    {"type": "tool_use", "name": "weather", "input": {"city": "Bergen", "days": 2}},
    {"type": "tool_use", "name": "time", "input": {}},
]


def test_a_message_comes_whole(script: Scripted, client: anthropic.Anthropic) -> None:
    script.replies, script.reused = [reply("So.</think>", "Let me see 😀.", TWO_CALLS)], 2
    message = ask(client, thinking=THINKING, tools=TOOLS)
    assert told(message) == EVERYTHING
    assert (message.stop_reason, message.stop_sequence, message.role) == ("tool_use", None, "assistant")
    assert message.usage.input_tokens == len(script.jobs[0].prompt) - 2
    assert message.usage.cache_read_input_tokens == 2
    assert message.usage.output_tokens > message.usage.output_tokens_details.thinking_tokens > 1  # type: ignore[union-attr]
    budget = script.jobs[0].thinking
    assert budget is not None
    assert (budget.tokens, budget.end) == (1024, EMBEDDED.control(END_OF_THINKING))


def test_a_stream_adds_up_to_the_same(script: Scripted, client: anthropic.Anthropic) -> None:
    script.replies, script.reused = [reply("So.</think>", "Let me see 😀.", TWO_CALLS)], 2
    options: Any = {"model": "scripted", "max_tokens": 2000, "messages": HELLO, "thinking": THINKING, "tools": TOOLS}
    with client.messages.stream(**options) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert told(message) == EVERYTHING
    assert kinds.count("input_json") > 3
    whole = ask(client, thinking=THINKING, tools=TOOLS)
    assert message.usage.model_dump() == whole.usage.model_dump(exclude={"cost"})  # which the SDK does not add up
    assert message.stop_reason == whole.stop_reason


def test_events_come_in_the_protocols_order(script: Scripted, server: Live) -> None:
    script.replies, script.reused = [reply("So.</think>", "ok", CALL)], 2
    answer = post(server, "/v1/messages", max_tokens=100, stream=True, thinking=THINKING, tools=TOOLS)
    events = list(events_of(answer))
    kinds = [event["type"] for event in events]
    merged = [kind for place, kind in enumerate(kinds) if kinds[place - 1 : place] != [kind]]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert merged == ["message_start", "ping", *block * 3, "message_delta", "message_stop"]
    start = events[0]["message"]
    assert start["usage"]["input_tokens"] == len(script.jobs[0].prompt) - 2
    assert (start["usage"]["output_tokens"], start["stop_reason"], start["content"]) == (0, None, [])
    assert [event["index"] for event in events if event["type"] == "content_block_start"] == [0, 1, 2]
    deltas = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert deltas[deltas.index("text_delta") - 1] == "signature_delta"
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] > 10


def test_the_prompt_is_the_conversation(script: Scripted, client: anthropic.Anthropic) -> None:
    script.replies = [reply("</think>ok")]
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}, {"type": "text", "text": "Soon?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I ask.", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "One "},
                {"type": "text", "text": "moment."},
                {"type": "tool_use", "id": "a", "name": "weather", "input": {"days": 1}},
                {"type": "tool_use", "id": "b", "name": "time", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "noon"}]},
                {"type": "tool_result", "tool_use_id": "a", "content": "no", "is_error": True},
                {"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}},
            ],
        },
        {"role": "user", "content": "Well?"},
    ]
    system: Any = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "In Norwegian."}]
    ask(client, system=system, messages=messages, tools=TOOLS, thinking=THINKING)
    tools = tuple(Tool(one["name"], one.get("description", ""), one["input_schema"]) for one in TOOLS)
    made = (ToolCall("a", "weather", {"days": 1}), ToolCall("b", "time", {}))
    conversation = Conversation(
        (
            SystemMessage("Be brief.\n\nIn Norwegian."),
            UserMessage("Weather?\n\nSoon?"),
            AssistantMessage("One moment.", "I ask.", made),
            ToolMessage("b", "noon"),
            ToolMessage("a", "Error: no"),
            UserMessage("And?\n\nWell?"),
        ),
        tools,
    )
    assert script.jobs[0].prompt == encode_conversation(EMBEDDED, conversation).token_ids
    counted = client.messages.count_tokens(
        model="scripted", system=system, messages=messages, tools=TOOLS, thinking=THINKING
    )
    assert counted.input_tokens == len(script.jobs[0].prompt)


def test_counting_charges_nothing(script: Scripted, client: anthropic.Anthropic, server: Live) -> None:
    assert client.messages.count_tokens(model="scripted", messages=HELLO).input_tokens > 3
    assert script.jobs == []
    assert server.ledger.rows == []


def test_the_last_message_is_continued_where_it_is_the_assistants(
    script: Scripted, client: anthropic.Anthropic
) -> None:
    script.replies = [reply(" blue.")]
    message = ask(client, messages=[*HELLO, {"role": "assistant", "content": "The sky is"}])
    assert told(message) == [{"type": "text", "text": " blue."}]
    unfinished = AssistantMessage("The sky is", unfinished=True)
    wanted = encode_conversation(EMBEDDED, Conversation((UserMessage("Hello"), unfinished), effort="none"))
    assert script.jobs[0].prompt == wanted.token_ids


@pytest.mark.parametrize(
    ("options", "effort"),
    [
        ({}, "none"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}}, "none"),
        ({"thinking": THINKING}, "high"),
        ({"thinking": {"type": "adaptive"}}, "high"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "max"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, "high"),
    ],
)
def test_efforts(script: Scripted, client: anthropic.Anthropic, options: dict[str, Any], effort: Any) -> None:
    script.replies = [reply("ok" if effort == "none" else "</think>ok")]
    ask(client, **options)
    wanted = encode_conversation(EMBEDDED, Conversation((UserMessage("Hello"),), effort=effort))
    assert script.jobs[0].prompt == wanted.token_ids


def test_thoughts_that_are_not_wanted_are_not_shown(script: Scripted, client: anthropic.Anthropic) -> None:
    script.replies = [reply("So.</think>ok")]
    message = ask(client, thinking={"type": "adaptive", "display": "omitted"})
    assert told(message) == [{"type": "thinking", "thinking": ""}, {"type": "text", "text": "ok"}]


@pytest.mark.parametrize(
    ("text", "options", "reason", "sequence"),
    [
        (reply("one"), {}, "end_turn", None),
        (reply("one two three"), {"max_tokens": 2}, "max_tokens", None),
        (reply("one STOP two"), {"stop_sequences": ["HALT", "STOP"]}, "stop_sequence", "STOP"),
        (reply("one", CALL), {"tools": TOOLS}, "tool_use", None),
    ],
)
def test_every_reason_to_stop(
    script: Scripted, client: anthropic.Anthropic, text: str, options: Any, reason: str, sequence: str | None
) -> None:
    script.replies = [text]
    message = ask(client, **options)
    assert (message.stop_reason, message.stop_sequence) == (reason, sequence)
    with client.messages.stream(**{"model": "scripted", "max_tokens": 99, "messages": HELLO, **options}) as stream:
        message = stream.get_final_message()
    assert (message.stop_reason, message.stop_sequence) == (reason, sequence)


def test_a_call_that_breaks_off_keeps_what_came_whole(script: Scripted, client: anthropic.Anthropic) -> None:
    script.replies = [CALL]
    tokens = len(EMBEDDED.encode(CALL.split("days")[0].replace(DSML, ""))) + 6
    message = ask(client, tools=TOOLS, max_tokens=tokens)
    assert message.stop_reason == "max_tokens"
    assert told(message)[0]["input"] == {"city": "Bergen"}


def test_numbers_of_any_size_are_told(script: Scripted, client: anthropic.Anthropic) -> None:
    script.replies = [reply(calls(call("time", ("at", "false", '[1e999, {"b": -1e999}]'), ("n", "false", "9" * 400))))]
    (made,) = told(ask(client, tools=TOOLS))
    largest = sys.float_info.max
    assert made["input"] == {"at": [largest, {"b": -largest}], "n": 10**400 - 1}


@pytest.mark.parametrize(
    ("options", "allowed", "refused"),
    [
        ({"tool_choice": {"type": "auto"}}, ["free", CALL, TWO_CALLS], []),
        ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, ["free", CALL], [TWO_CALLS]),
        ({"tool_choice": {"type": "any"}}, [CALL, TWO_CALLS], ["free"]),
        ({"tool_choice": {"type": "tool", "name": "time"}}, [calls(call("time"))], ["free", CALL]),
        ({"tools": [{**TOOLS[0], "strict": True}]}, [CALL, "free"], [calls(call("weather"))]),
        ({"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}, "tools": []},
         ['{"city": "x", "days": 1}'], ["free"]),
    ],
)  # fmt: skip
def test_choices_of_tools_bind_the_reply(
    script: Scripted, client: anthropic.Anthropic, options: Any, allowed: list[str], refused: list[str]
) -> None:
    for text in allowed:
        script.replies = [reply(text)]
        assert ask(client, **{"tools": TOOLS, **options}).stop_reason in ("end_turn", "tool_use")
    for text in refused:
        script.replies = [reply(text)]
        with pytest.raises(anthropic.InternalServerError):
            ask(client, **{"tools": TOOLS, **options})
    script.replies = [reply("ok")]
    ask(client, tools=TOOLS, tool_choice={"type": "none"})
    assert script.jobs[-1].parameters.logit_bias == {EMBEDDED.control(DSML): -100.0}


def test_sampling_goes_to_the_engine(script: Scripted, client: anthropic.Anthropic, server: Live) -> None:
    script.replies = [reply("ok")]
    message = ask(client, extra_body={"temperature": 0.3, "top_p": 0.8, "top_k": 9, "service_tier": "priority"})
    parameters = script.jobs[0].parameters
    assert (parameters.temperature, parameters.top_p, parameters.top_k) == (0.3, 0.8, 9)
    assert parameters.max_tokens == 2000
    assert script.jobs[0].priority > 0
    assert message.usage.service_tier == "priority"
    assert server.ledger.rows[0].wanted.tier == "priority"


def test_models_are_listed(client: anthropic.Anthropic) -> None:
    (model,) = client.models.list()
    assert (model.id, model.display_name, model.type) == ("scripted", "scripted", "model")
    assert client.models.retrieve("scripted") == model


USE = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": "x"}, "the model 'x' is not served here; ask for 'scripted'."),
    ({"max_tokens": 0}, "max_tokens is wrong"),
    ({"max_tokens": "5"}, "max_tokens is wrong (input should be a valid integer)"),
    ({"messages": []}, "messages is wrong"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role is 'system'; use"),
    ({"messages": [{"role": "user"}]}, "messages[0].content is missing; send a list."),
    (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "messages[0].content[0].type is 'image'; only text can be read here.",
    ),
    (
        {"messages": [*HELLO, {"role": "assistant", "content": [USE]}]},
        "the last message is the assistant's and uses tools; answer each use with a tool_result.",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}]}]},
        "answers the call 'a'",
    ),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "only tools that the client runs"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema is missing; send an object."),
    ({"tool_choice": {"type": "tool"}}, "tool_choice names no tool"),
    ({"tool_choice": {"type": "any"}}, "there are no tools"),
    ({"thinking": {"type": "sometimes"}}, "thinking.type is wrong"),
    ({"stop_sequences": [""]}, "a stop string is empty"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=range(len(BAD)))
def test_bodies_that_are_wrong(
    script: Scripted, client: anthropic.Anthropic, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(anthropic.NotFoundError if "model" in options else anthropic.BadRequestError) as error:
        ask(client, extra_body=options)
    assert message in str(error.value.body["error"]["message"])  # type: ignore[index]
    assert error.value.body["type"] == "error"  # type: ignore[index]
    assert error.value.body["request_id"] == error.value.request_id  # type: ignore[index]
    assert script.jobs == []


def test_errors_have_the_protocols_kinds(script: Scripted, server: Live, client: anthropic.Anthropic) -> None:
    for refusal, kind, status in (
        (ApiError(402, "spent."), "billing_error", 402),
        (ApiError(429, "wait.", retry_after=2), "rate_limit_error", 429),
        (overloaded("full."), "overloaded_error", 529),
    ):
        server.ledger.refusal = refusal
        with pytest.raises(anthropic.APIStatusError) as error:
            ask(client)
        assert (error.value.status_code, error.value.body["error"]["type"]) == (status, kind)  # type: ignore[index]
    with pytest.raises(anthropic.AuthenticationError) as refused:
        ask(client.with_options(api_key="wrong"))
    assert refused.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]


def test_a_fault_in_a_stream_is_an_event(script: Scripted, server: Live, client: anthropic.Anthropic) -> None:
    script.replies, script.fault = [reply("one ", "two")], ZeroDivisionError("x")
    answer = post(server, "/v1/messages", max_tokens=100, stream=True)
    lines = answer.read().decode()
    last = lines.rstrip().split("\n\n")[-1]
    assert last.startswith("event: error\ndata: ")
    assert json.loads(last.split("data: ")[1])["error"]["type"] == "api_error"
    with pytest.raises(anthropic.APIStatusError, match="the server failed"):
        list(client.messages.create(model="scripted", max_tokens=9, messages=HELLO, stream=True))
