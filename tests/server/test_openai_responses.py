"""Responses, driven by OpenAI's own client against a scripted model."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from narrows.economics.money import plain
from narrows.server.responses_read import read_tools
from narrows.text.chat import encode_conversation
from narrows.text.messages import AssistantMessage, Conversation, SystemMessage, ToolCall, ToolMessage, UserMessage
from tests.server.scripted import ENDLESS, Live, Scripted, reply, wait_for
from tests.server.test_openai_chat import CALL, TWO_CALLS, WEATHER
from tests.text.conversations import EMBEDDED

TOOLS: list[Any] = [
    {"type": "function", "name": "weather", "description": "Forecast", "parameters": WEATHER},
    {"type": "function", "name": "time", "parameters": {"type": "object", "properties": {}}, "strict": False},
]
THOUGHTS = ("response.reasoning_text.delta", "response.output_text.delta", "response.function_call_arguments.delta")


def ask(client: openai.OpenAI, **options: Any) -> Response:
    return client.responses.create(**{"model": "scripted", "input": "Hello", **options})


def told(client: openai.OpenAI, **options: Any) -> list[Any]:
    return list(client.responses.create(**{"model": "scripted", "input": "Hello", "stream": True, **options}))


def kinds(events: list[Any]) -> list[str]:
    """What the events are, deltas that follow each other as one."""
    all_of_them = [event.type.removeprefix("response.") for event in events]
    return [one for one, before in zip(all_of_them, [None, *all_of_them], strict=False) if one != before]


def prompt(*messages: Any, **options: Any) -> Any:
    return encode_conversation(EMBEDDED, Conversation(messages, **options)).token_ids


def test_a_response_comes_whole(script: Scripted, client: openai.OpenAI) -> None:
    script.replies, script.reused = [reply("So.</think>", "Hello there 😀.")], 2
    answer = ask(client, metadata={"a": "b"}, temperature=0.5)
    assert answer.output_text == "Hello there 😀."
    thoughts, message = answer.output
    assert thoughts.type == "reasoning"
    assert thoughts.content is not None
    assert [part.text for part in thoughts.content] == ["So."]
    assert (message.type, message.status) == ("message", "completed")
    assert (answer.status, answer.error, answer.incomplete_details) == ("completed", None, None)
    assert (answer.metadata, answer.temperature, answer.store) == ({"a": "b"}, 0.5, False)
    length, reasoning = len(script.jobs[0].prompt), len(EMBEDDED.encode("So.")) + 1
    output = reasoning + len(EMBEDDED.encode("Hello there 😀."))
    assert answer.usage is not None
    assert answer.usage.model_dump(exclude_none=True) == {
        "input_tokens": length,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": length + output,
        "cost": plain(length * 10_000 + output * 20_000),
    }


def test_a_stream_adds_up_to_the_same_in_the_order_that_its_types_say(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("So it is.</think>", "Let me see 😀.", TWO_CALLS)]
    events = told(client, tools=TOOLS)
    item = ["output_item.added", "content_part.added", "{}.delta", "{}.done", "content_part.done", "output_item.done"]
    one_call = [one.format("function_call_arguments") for one in item if "part" not in one]
    assert kinds(events) == [
        "created",
        "in_progress",
        *[one.format("reasoning_text") for one in item],
        *[one.format("output_text") for one in item],
        *one_call,
        *one_call,
        "completed",
    ]
    assert [event.sequence_number for event in events] == [*range(len(events))]
    final = events[-1].response
    whole = ask(client, tools=TOOLS)
    for streamed, other in zip(final.output, whole.output, strict=True):
        assert streamed.model_dump(exclude={"id", "call_id"}) == other.model_dump(exclude={"id", "call_id"})
    assert final.usage == whole.usage
    # What was told by pieces is what the items say.
    texts: dict[tuple[str, str], str] = {}
    for event in events:
        if event.type in THOUGHTS:
            texts[event.item_id, event.type] = texts.get((event.item_id, event.type), "") + event.delta
        if event.type == "response.output_item.done":
            assert event.item == final.output[event.output_index]
        if event.type == "response.function_call_arguments.done":
            assert event.arguments == texts[event.item_id, THOUGHTS[2]]
    thoughts, message, weather, time = final.output
    assert texts[thoughts.id, THOUGHTS[0]] == "So it is."
    assert texts[message.id, THOUGHTS[1]] == message.content[0].text == "Let me see 😀."
    assert (weather.name, json.loads(weather.arguments)) == ("weather", {"city": "Bergen", "days": 2})
    assert (time.name, time.arguments) == ("time", "{}")
    assert weather.call_id != time.call_id


def test_the_sdks_own_stream_follows(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("So.</think>", "Let me see.", CALL)]
    tools: Any = TOOLS
    with client.responses.stream(model="scripted", input="Hello", tools=tools) as stream:
        seen = {event.type for event in stream}
        final = stream.get_final_response()
    assert {"response.output_text.delta", "response.function_call_arguments.done", "response.completed"} <= seen
    assert final.output_text == "Let me see."
    (function,) = [item for item in final.output if item.type == "function_call"]
    assert json.loads(function.arguments) == {"city": "Bergen", "days": 2}


def test_a_conversation_goes_on_with_what_came_back(script: Scripted, client: openai.OpenAI) -> None:
    """An agent's loop: the output is the next input, with the calls' results behind it."""
    script.replies = [reply("I ask.</think>", "Let me see.", CALL)]
    first = ask(client, instructions="Be brief.", tools=TOOLS)
    (made,) = [item for item in first.output if item.type == "function_call"]
    given: list[Any] = [
        {"role": "developer", "content": "In Norwegian."},
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        *[item.model_dump() for item in first.output],
        {"type": "function_call_output", "call_id": made.call_id, "output": "rain"},
    ]
    script.replies = [reply("</think>ok")]
    ask(client, instructions="Be brief.", input=given, tools=TOOLS)
    wanted = (
        SystemMessage("Be brief.\n\nIn Norwegian."),
        UserMessage("Weather?"),
        AssistantMessage("Let me see.", "I ask.", (ToolCall(made.call_id, "weather", {"city": "Bergen", "days": 2}),)),
        ToolMessage(made.call_id, "rain"),
    )
    assert script.jobs[1].prompt == prompt(*wanted, tools=read_tools(TOOLS)[0])


@pytest.mark.parametrize("sealed", [False, True])
def test_thoughts_go_back_as_they_came(script: Scripted, client: openai.OpenAI, sealed: bool) -> None:
    script.replies = [reply("I ask 😀.</think>", "Yes.")]
    include: Any = ["reasoning.encrypted_content"] if sealed else []
    output = [item.model_dump(exclude_none=True) for item in ask(client, include=include).output]
    assert ("encrypted_content" in output[0]) == sealed
    if sealed:
        (done, _) = [event.item for event in told(client, include=include) if event.type == "response.output_item.done"]
        assert done.encrypted_content == output[0]["encrypted_content"]
        del output[0]["content"]  # as clients do that keep the seal alone
    user: Any = {"role": "user", "content": "Hello"}
    ask(client, input=[user, *output, user])
    messages = (UserMessage("Hello"), AssistantMessage("Yes.", "I ask 😀."), UserMessage("Hello"))
    assert script.jobs[-1].prompt == prompt(*messages)


@pytest.mark.parametrize("said", ["sky, I", "sky</think>The sky is"])
def test_an_incomplete_response_is_continued(script: Scripted, client: openai.OpenAI, said: str) -> None:
    limit = len(EMBEDDED.encode(said.replace("</think>", ""))) + ("</think>" in said)
    script.replies = [f"{said} blue."]
    output = [item.model_dump(exclude_none=True) for item in ask(client, max_output_tokens=limit).output]
    script.replies = [reply(" blue." if "</think>" in said else " think.</think>ok")]
    ask(client, input=[{"role": "user", "content": "Hello"}, *output])
    reasoning, _, content = said.partition("</think>")
    assert script.jobs[1].prompt == prompt(UserMessage("Hello"), AssistantMessage(content, reasoning, unfinished=True))


@pytest.mark.parametrize(
    ("effort", "wanted"), [("minimal", "none"), ("none", "none"), ("low", "high"), ("high", "high"), ("xhigh", "max")]
)
def test_efforts(script: Scripted, client: openai.OpenAI, effort: Any, wanted: Any) -> None:
    script.replies = [reply("ok" if wanted == "none" else "</think>ok")]
    answer = ask(client, reasoning={"effort": effort})
    assert answer.output_text == "ok"
    assert script.jobs[0].prompt == prompt(UserMessage("Hello"), effort=wanted)


def test_tools_that_must_be_called(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("</think>", CALL)]
    for choice in ("required", {"type": "function", "name": "weather"}):
        ask(client, tools=TOOLS, tool_choice=choice)
        assert script.jobs[-1].grammar is not None
    for allowed, mode in (("weather", "auto"), ("weather", "required"), ("time", "auto")):
        choice = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": allowed}]}
        if allowed == "time":
            with pytest.raises(openai.InternalServerError):  # the script calls what it must not
                ask(client, tools=TOOLS, tool_choice=choice)
        else:
            (made,) = [
                one for one in ask(client, tools=TOOLS, tool_choice=choice).output if one.type == "function_call"
            ]
            assert made.name == "weather"
    assert len({tuple(job.prompt) for job in script.jobs}) == 1  # which keeps known prefixes known
    script.replies = [reply("</think>", CALL)]
    ask(client, tools=TOOLS, parallel_tool_calls=False)
    assert script.jobs[-1].grammar is not None
    script.replies = [reply("</think>no")]
    ask(client, tools=[{**tool, "strict": False} for tool in TOOLS])
    assert script.jobs[-1].grammar is None


class City(BaseModel):
    name: str
    people: int


def test_a_schema_binds_and_parses(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply('</think>{"name": "Bergen", "people": 291940}')]
    parsed = client.responses.parse(model="scripted", input="Hello", text_format=City).output_parsed
    assert parsed == City(name="Bergen", people=291940)
    assert script.jobs[-1].grammar is not None
    script.replies = [reply("</think>{}")]
    assert ask(client, text={"format": {"type": "json_object"}}).output_text == "{}"


def test_logprobs(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("So.</think>", "Hi there")]
    answer = ask(client, include=["message.output_text.logprobs"], top_logprobs=2)
    message: Any = answer.output[1]
    scores = message.content[0].logprobs
    assert "".join(one.token for one in scores) == "Hi there"
    assert all(len(one.top_logprobs) == 2 and one.logprob == -0.5 for one in scores)
    events = told(client, include=["message.output_text.logprobs"])
    streamed = [one for event in events if event.type == THOUGHTS[1] for one in event.logprobs]
    assert [one.token for one in streamed] == [one.token for one in scores]


def test_what_is_cut_at_its_length_is_incomplete(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [ENDLESS]
    answer = ask(client, max_output_tokens=9, reasoning={"effort": "none"})
    assert (answer.status, answer.output[0].status) == ("incomplete", "incomplete")
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert kinds(told(client, max_output_tokens=9))[-1] == "incomplete"


def test_what_fails_says_so(script: Scripted, client: openai.OpenAI, server: Live) -> None:
    script.replies, script.fault = [reply("</think>ok")], RuntimeError("secret text")
    with pytest.raises(openai.InternalServerError, match="the server failed; its log says more"):
        ask(client)
    *_, error, last = told(client)
    assert (error.type, error.code, error.message) == ("error", "server_error", last.response.error.message)
    assert last.sequence_number == error.sequence_number + 1
    assert (last.type, last.response.status, last.response.error.code) == ("response.failed", "failed", "server_error")
    assert "secret" not in last.response.error.message
    assert [row.outcome for row in server.ledger.rows] == ["error", "error"]


def test_who_leaves_is_charged_for_what_was_sent(script: Scripted, client: openai.OpenAI, server: Live) -> None:
    script.replies, script.pause = [ENDLESS], 0.01
    with client.responses.create(model="scripted", input="Hello", stream=True) as stream:
        for event in stream:
            if event.type == "response.reasoning_text.delta":
                break
    wait_for(lambda: server.ledger.rows[0].outcome)
    assert server.ledger.rows[0].outcome == "cut"
    assert None in script.cancelled
    assert 0 < server.ledger.rows[0].usage.output < 100


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"previous_response_id": "resp_1"}, "nothing is kept here: send the whole conversation"),
        ({"conversation": "conv_1"}, "send the whole conversation"),
        ({"background": True}, "stay connected"),
        ({"prompt": {"id": "x"}}, "send instructions and input"),
        ({"tools": [{"type": "web_search"}]}, r"tools\[0\].type is 'web_search'; only functions"),
        ({"tools": [{"type": "function"}]}, r"tools\[0\].name is missing"),
        ({"input": []}, "input is wrong"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "none are kept here; send the item itself"),
        ({"input": [{"type": "computer_call"}]}, r"input\[0\].type is 'computer_call'"),
        ({"input": [{"role": "wizard", "content": "x"}]}, r"input\[0\].role is 'wizard'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "only text can be read"),
        ({"input": [{"role": "user", "content": 3}]}, r"input\[0\].content is of type int; send a list"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "b", "arguments": "{"}]}, "not valid JSON"),
        ({"input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "set its status to"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "b", "arguments": "{}"}]}, "add the function_ca"),
        ({"input": [{"type": "reasoning", "encrypted_content": "narrows:/w=="}]}, "encrypted_content is damaged; send"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice allows no tools"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "no", "tools": [{"type": "function", "name": "f"}]}},
            "the mode of tool_choice is 'no'; use auto or required",
        ),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice names no function"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema is missing"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"reasoning": {"effort": "heroic"}}, "reasoning.effort"),
    ],
)
def test_what_cannot_be(script: Scripted, client: openai.OpenAI, options: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        ask(client, **options)
    assert script.jobs == []


def test_the_embedded_model_answers(embedded_client: openai.OpenAI) -> None:
    asked: Any = {"model": "chat", "input": "import os\n", "max_output_tokens": 16, "reasoning": {"effort": "none"}}
    whole = embedded_client.responses.create(**asked, temperature=0)
    *_, last = embedded_client.responses.create(**asked, temperature=0, stream=True)
    assert last.response.output_text == whole.output_text
    assert whole.usage is not None
    assert 0 < whole.usage.output_tokens <= 16
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    text: Any = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    bound = embedded_client.responses.create(**asked | {"max_output_tokens": 200}, text=text)
    if bound.status == "completed":
        assert isinstance(json.loads(bound.output_text)["n"], int)
