"""Chat completions, driven by OpenAI's own client against a scripted model."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from narrows.economics.money import plain
from narrows.server.chat import Asked
from narrows.server.openai_chat import ChatBody, asked_by
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
from tests.server.scripted import Live, Scripted, call, calls, reply
from tests.text.conversations import EMBEDDED

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "Forecast", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}},
]
ONLY_TIME = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "time"}}]},
}
STRICT: list[Any] = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}, TOOLS[1]]
CALL = calls(call("weather", ("city", "true", "Bergen"), ("days", "false", "2")))
TWO_CALLS = calls(call("weather", ("city", "true", "Bergen"), ("days", "false", "2")), call("time"))


def ask(client: openai.OpenAI, **options: Any) -> ChatCompletion:
    return client.chat.completions.create(**{"model": "scripted", "messages": HELLO, **options})


def stream(client: openai.OpenAI, **options: Any) -> list[ChatCompletionChunk]:
    return list(client.chat.completions.create(**{"model": "scripted", "messages": HELLO, "stream": True, **options}))


def text_of(chunks: list[ChatCompletionChunk], field: str = "content", index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(getattr(choice.delta, field, None) or "" for choice in choices)


def test_reasoning_and_content_come_whole(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("So.</think>", "Hello <b>ther</b>e 😀</")]
    script.reused = 2
    answer = ask(client)
    message = answer.choices[0].message
    assert message.content == "Hello <b>ther</b>e 😀</"
    assert message.reasoning_content == "So."  # type: ignore[attr-defined]
    assert message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    prompt = len(script.jobs[0].prompt)
    output = len(EMBEDDED.encode("So.")) + 1 + len(EMBEDDED.encode("Hello <b>ther</b>e 😀</"))
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": len(EMBEDDED.encode("So.")) + 1},
        "prompt_cache_hit_tokens": 2,
        "prompt_cache_miss_tokens": prompt - 2,
        "cost": plain(prompt * 10_000 + output * 20_000),
    }


def test_a_stream_says_the_same_in_order(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("So.</think>", "Hello <b>ther</b>e 😀</")]
    chunks = stream(client, stream_options={"include_usage": True})
    assert text_of(chunks, "reasoning_content") == "So."
    assert text_of(chunks) == "Hello <b>ther</b>e 😀</"
    assert chunks[0].choices[0].delta.role == "assistant"
    *most, finish, usage = chunks
    assert [choice.finish_reason for chunk in most for choice in chunk.choices] == [None] * len(most)
    assert finish.choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage == ask(client).usage
    assert {(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks} == {
        (chunks[0].id, chunks[0].created, "scripted", "chat.completion.chunk")
    }
    assert all(chunk.usage is None for chunk in stream(client))


def test_calls_come_whole_and_streamed(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("Hm</think>", "Let me see.", TWO_CALLS)]
    answer = ask(client, tools=TOOLS)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content == "Let me see."
    assert message.tool_calls is not None
    functions = [one.function for one in message.tool_calls if one.type == "function"]
    told = [(function.name, json.loads(function.arguments)) for function in functions]
    assert told == [("weather", {"city": "Bergen", "days": 2}), ("time", {})]
    assert len({one.id for one in message.tool_calls}) == 2

    chunks = stream(client, tools=TOOLS)
    deltas = [one for chunk in chunks for choice in chunk.choices for one in choice.delta.tool_calls or []]
    assert [(one.index, one.function.name) for one in deltas if one.function and one.function.name] == [
        (0, "weather"),
        (1, "time"),
    ]
    arguments = ["", ""]
    for one in deltas:
        assert one.function is not None
        arguments[one.index] += one.function.arguments or ""
    assert arguments == ['{"city": "Bergen", "days": 2}', "{}"]
    assert len([one for one in deltas if one.index == 0]) > 3  # as they come, not at once
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_prompt_is_the_conversation(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("</think>ok")]
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "In Norwegian."},
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "I ask.",
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"days":1}'}}],
        },
        {"role": "tool", "tool_call_id": "a", "content": "rain"},
    ]
    ask(client, messages=messages, tools=TOOLS)
    functions = [one["function"] for one in TOOLS]
    tools = tuple(Tool(one["name"], one.get("description", ""), one["parameters"]) for one in functions)
    conversation = Conversation(
        (
            SystemMessage("Be brief.\n\nIn Norwegian."),
            UserMessage("Weather?"),
            AssistantMessage("", "I ask.", (ToolCall("a", "weather", {"days": 1}),)),
            ToolMessage("a", "rain"),
        ),
        tools,
    )
    assert script.jobs[0].prompt == encode_conversation(EMBEDDED, conversation).token_ids


@pytest.mark.parametrize(
    ("options", "effort"),
    [
        ({}, "high"),
        *[({"reasoning_effort": given}, "none") for given in ("none", "minimal")],
        *[({"reasoning_effort": given}, "high") for given in ("low", "medium", "high")],
        *[({"reasoning_effort": given}, "max") for given in ("xhigh", "max")],
        ({"extra_body": {"thinking": {"type": "disabled"}}}, "none"),
        ({"extra_body": {"thinking": {"type": "enabled"}}, "reasoning_effort": "max"}, "max"),
    ],
)
def test_efforts(script: Scripted, client: openai.OpenAI, options: dict[str, Any], effort: Any) -> None:
    script.replies = [reply("ok" if effort == "none" else "</think>ok")]
    answer = ask(client, **options)
    wanted = encode_conversation(EMBEDDED, Conversation((UserMessage("Hello"),), effort=effort))
    assert script.jobs[0].prompt == wanted.token_ids
    assert answer.choices[0].message.content == "ok"


def test_a_budget_of_thought_goes_to_the_engine(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("</think>ok")]
    ask(client, extra_body={"thinking": {"type": "enabled", "budget_tokens": 9}})
    budget = script.jobs[0].thinking
    assert budget is not None
    assert (budget.tokens, budget.end) == (9, EMBEDDED.control(END_OF_THINKING))


def test_an_unfinished_reply_is_continued(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply(" blue.")]
    messages = [*HELLO, {"role": "assistant", "content": "The sky is", "reasoning_content": "sky", "prefix": True}]
    assert ask(client, messages=messages).choices[0].message.content == " blue."
    unfinished = AssistantMessage("The sky is", "sky", unfinished=True)
    wanted = encode_conversation(EMBEDDED, Conversation((UserMessage("Hello"), unfinished)))
    assert script.jobs[0].prompt == wanted.token_ids


def test_a_stop_string_ends_the_content_alone(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("a STOP b</think>one ST", "OP two " * 500)]
    answer = ask(client, stop=["STOP", "never"])
    assert answer.choices[0].message.reasoning_content == "a STOP b"  # type: ignore[attr-defined]
    assert answer.choices[0].message.content == "one "
    assert answer.choices[0].finish_reason == "stop"
    assert 0 in script.cancelled
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 30
    assert text_of(stream(client, stop="STOP")) == "one "


def test_a_stop_string_in_an_argument_is_an_argument(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("</think>a ", calls(call("weather", ("city", "true", "a.b"), ("days", "false", "1"))))]
    message = ask(client, stop=".", tools=TOOLS).choices[0].message
    assert message.tool_calls is not None
    assert '"a.b"' in message.tool_calls[0].function.arguments  # type: ignore[union-attr]


def test_the_limit_of_tokens_is_told(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("</think>one two three four five")]
    for options in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        answer = ask(client, **options)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3
    assert stream(client, max_tokens=3)[-1].choices[0].finish_reason == "length"


def test_sampling_goes_to_the_engine(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("</think>ok")]
    given: dict[str, Any] = {
        "temperature": 0.3,
        "top_p": 0.8,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "seed": -1,
        "n": 2,
        "logit_bias": {"5": 3, "7": -100},
        "max_tokens": 7,
        "extra_body": {"top_k": 9, "min_p": 0.1, "repetition_penalty": 1.2},
    }
    ask(client, **given)
    parameters = script.jobs[0].parameters
    del given["extra_body"]
    wanted = {**given, "top_k": 9, "min_p": 0.1, "repetition_penalty": 1.2}
    wanted |= {"seed": 2**64 - 1, "logit_bias": {5: 3.0, 7: -100.0}}
    assert {name: getattr(parameters, name) for name in wanted} == wanted
    assert script.jobs[0].priority == 0


def test_several_answers(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("a</think>one"), reply("b</think>two")]
    answer = ask(client, n=2)
    assert [choice.message.content for choice in answer.choices] == ["one", "two"]
    chunks = stream(client, n=2)
    assert [text_of(chunks, index=index) for index in (0, 1)] == ["one", "two"]
    assert sorted(choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason) == [0, 1]


def test_scores_stand_beside_what_they_score(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("So.</think>", "é 😀 ok. STOP more", CALL)]
    answer = ask(client, logprobs=True, top_logprobs=2, stop="STOP", tools=TOOLS)
    scores = answer.choices[0].logprobs
    assert scores is not None
    assert scores.content is not None
    told = b"".join(bytes(one.bytes or []) for one in scores.content)
    assert told.decode().removesuffix("S") == answer.choices[0].message.content  # the token " S" is two halves
    assert all(len(one.top_logprobs) == 2 and one.logprob == -0.5 for one in scores.content)
    reasons = scores.reasoning_content  # type: ignore[attr-defined]
    assert "".join(one["token"] for one in reasons) == "So."
    chunks = stream(client, logprobs=True, top_logprobs=2, stop="STOP", tools=TOOLS)
    streamed = [
        one
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs is not None
        for one in choice.logprobs.content or []
    ]
    assert streamed == scores.content
    assert ask(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []  # type: ignore[index, union-attr]
    assert ask(client).choices[0].logprobs is None


def test_a_priority_goes_to_engine_and_ledger(script: Scripted, client: openai.OpenAI, server: Live) -> None:
    script.replies = [reply("</think>ok")]
    assert ask(client, service_tier="priority").service_tier == "priority"
    assert ask(client, service_tier="auto").service_tier == "default"
    assert [job.priority > 0 for job in script.jobs] == [True, False]
    assert [row.wanted.tier for row in server.ledger.rows] == ["priority", "default"]


# -- what binds a reply -------------------------------------------------------------------------------------------


class City(BaseModel):
    name: str
    people: int


def test_json_modes_bind_the_reply(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply('free</think>{"name": "Bergen", "people": 290000}')]
    ask(client, response_format={"type": "json_object"})
    parsed = client.chat.completions.parse(model="scripted", messages=HELLO, response_format=City)
    assert parsed.choices[0].message.parsed == City(name="Bergen", people=290_000)
    for job in script.jobs:
        assert job.grammar is not None
        assert job.grammar_after == EMBEDDED.control(END_OF_THINKING)
    ask(client, response_format={"type": "text"})
    assert script.jobs[-1].grammar is None
    script.replies = [reply('free</think>["Bergen"]')]
    with pytest.raises(openai.InternalServerError):  # the script says what it must not
        ask(client, response_format={"type": "json_object"})


@pytest.mark.parametrize(
    ("options", "allowed", "refused"),
    [
        ({"tools": TOOLS}, [CALL, "free", "free" + TWO_CALLS], []),
        ({"tools": TOOLS, "parallel_tool_calls": False}, [CALL, "free"], [TWO_CALLS]),
        ({"tools": TOOLS, "tool_choice": "required"}, [CALL, TWO_CALLS], ["free", "free" + CALL]),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "time"}}},
            [calls(call("time"))],
            ["free", CALL],
        ),
        ({"tools": TOOLS, "tool_choice": ONLY_TIME}, [calls(call("time")), "free"], [CALL]),
        ({"tools": STRICT}, [CALL, "free"], [calls(call("weather", ("city", "true", "Bergen")))]),
        ({"tools": TOOLS}, [calls(call("weather", ("city", "true", "Bergen")))], []),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, [CALL, "{}"], ["free", "{}" + CALL]),
    ],
)
def test_choices_of_tools_bind_the_reply(
    script: Scripted, client: openai.OpenAI, options: dict[str, Any], allowed: list[str], refused: list[str]
) -> None:
    for thought in ("", "Hm, <"):
        thinking = {"type": "enabled" if thought else "disabled"}
        begun = f"{thought}</think>" if thought else ""
        for text in allowed:
            script.replies = [reply(begun, text)]
            answer = ask(client, **options, extra_body={"thinking": thinking})
            assert answer.choices[0].finish_reason == ("tool_calls" if DSML in text else "stop")
        for text in refused:
            script.replies = [reply(begun, text)]
            with pytest.raises(openai.InternalServerError):
                ask(client, **options, extra_body={"thinking": thinking})


def test_no_calls_where_none_are_wanted(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("</think>ok")]
    ask(client, tools=TOOLS, tool_choice="none", logit_bias={"5": 1})
    assert script.jobs[0].grammar is None
    assert script.jobs[0].parameters.logit_bias == {5: 1.0, EMBEDDED.control(DSML): -100.0}
    ask(client, tools=TOOLS)
    assert script.jobs[0].prompt == script.jobs[1].prompt  # which keeps known prefixes known


def test_the_sdks_own_stream_helper_understands_ours(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("Hm</think>", "Let me see.", TWO_CALLS)]
    with client.chat.completions.stream(model="scripted", messages=HELLO, tools=STRICT) as events:
        kinds = [event.type for event in events]
        final = events.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    assert final.choices[0].message.tool_calls is not None
    assert final.choices[0].message.tool_calls[0].function.parsed_arguments == {"city": "Bergen", "days": 2}


def test_what_clients_send_beside_it_is_ignored() -> None:
    asked = asked_by(
        ChatBody.model_validate(
            {"model": "x", "messages": HELLO, "user": "me", "store": False, "metadata": {"a": "b"}, "verbosity": "low"}
        )
    )
    assert isinstance(asked, Asked)
