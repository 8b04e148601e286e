"""Text completions of the embedded model, driven by OpenAI's own client, are what the library writes."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from narrows.engine.context import context_tokens
from narrows.engine.model import Model
from narrows.text.fim import fim_prompt
from narrows.text.tokenizer import EOS
from tests.server.scripted import KEY, Live, Scripted, reply

PROMPT = "def fibonacci(n):\n"
GREEDY: dict[str, Any] = {"model": "embedded", "temperature": 0, "max_tokens": 12}


def streamed(client: openai.OpenAI, **options: Any) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in client.completions.create(**GREEDY | options, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    return texts


def test_a_text_goes_on_as_in_the_library(embedded: Model, embedded_client: openai.OpenAI) -> None:
    wanted = embedded.generate(PROMPT, max_tokens=12)
    answer = embedded_client.completions.create(prompt=PROMPT, **GREEDY)
    assert answer.choices[0].text == wanted.text
    assert answer.choices[0].finish_reason == wanted.finish_reason
    assert answer.usage is not None
    prompt_tokens = 1 + len(embedded.tokenizer.encode(PROMPT))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt_tokens, len(wanted.token_ids))
    assert streamed(embedded_client, prompt=PROMPT) == {0: wanted.text}


def test_a_middle_is_filled_in_as_in_the_library(embedded: Model, embedded_client: openai.OpenAI) -> None:
    suffix = "\n    return a + b\n"
    wanted = embedded.generate(PROMPT, suffix=suffix, max_tokens=12)
    assert embedded_client.completions.create(prompt=PROMPT, suffix=suffix, **GREEDY).choices[0].text == wanted.text
    assert streamed(embedded_client, prompt=PROMPT, suffix=suffix) == {0: wanted.text}
    assert embedded_client.completions.create(prompt=PROMPT, suffix="", **GREEDY).choices[0].text != wanted.text


def test_a_middle_is_asked_for_in_the_models_own_layout(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("x")]
    client.completions.create(model="scripted", prompt="a", suffix="b")
    assert script.jobs[0].prompt == fim_prompt(script.info.tokenizer, "a", "b", layout="psm")


def test_files_are_read_before_the_prompt_as_the_command_line_has_them(
    embedded: Model, embedded_client: openai.OpenAI
) -> None:
    files = ["def add(a, b):\n    return a + b\n", "", "import math\n"]
    tokenizer = embedded.tokenizer
    read = context_tokens(tokenizer, reversed(files), 10_000)
    for suffix in (None, "\n    return c\n"):
        wanted = (
            fim_prompt(tokenizer, PROMPT, suffix, read, "spm")
            if suffix
            else [tokenizer.bos_id, *read, *tokenizer.encode(PROMPT)]
        )
        asked: Any = {**GREEDY, "prompt": PROMPT, "suffix": suffix, "extra_body": {"context": files}}
        answer = embedded_client.completions.create(**asked)
        assert answer.choices[0].text == embedded.generate(wanted, max_tokens=12).text
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(wanted)


# What Continue sends to complete at a cursor: its provider "deepseek" a suffix, to /beta, the others a prompt of
# a template, which for a name with "deepseek" in it is this one.
CONTINUE: dict[str, Any] = {"max_tokens": 12, "temperature": 0.01, "stream": True}
CONTINUE_STOPS = ["/src/", "#- coding: utf-8", "```"]
CONTINUE_TEMPLATE_STOPS = [
    *("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", "//", "<｜end▁of▁sentence｜>"),
    *CONTINUE_STOPS,
]


def test_continue_gets_the_middle_in_each_of_its_ways(script: Scripted, server: Live) -> None:
    script.replies = [reply("a // b")]
    wanted = fim_prompt(script.info.tokenizer, "def f():\n    ", "\n", layout="psm")
    with openai.OpenAI(base_url=f"{server.url}/beta/", api_key=KEY, max_retries=0) as beta:
        body = {"model": "scripted", "prompt": "def f():\n    ", "suffix": "\n", "stop": CONTINUE_STOPS, **CONTINUE}
        chunks = list(beta.completions.create(**body))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "a // b"
    with openai.OpenAI(base_url=f"{server.url}/v1/", api_key=KEY, max_retries=0) as v1:
        prompt = "<｜fim▁begin｜>def f():\n    <｜fim▁hole｜>\n<｜fim▁end｜>"
        chunks = list(v1.completions.create(model="scripted", prompt=prompt, stop=CONTINUE_TEMPLATE_STOPS, **CONTINUE))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "a "
    assert [job.prompt for job in script.jobs] == [wanted, wanted]


@pytest.mark.parametrize(
    "text",
    [
        "<｜fim▁begin｜>a<｜fim▁end｜>",
        "<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁hole｜>c<｜fim▁end｜>",
        "x<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>",
        "<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>x",
    ],
)
def test_control_tokens_that_are_spelled_otherwise_are_text(script: Scripted, client: openai.OpenAI, text: str) -> None:
    script.replies = [reply("x")]
    client.completions.create(model="scripted", prompt=text)
    tokenizer = script.info.tokenizer
    assert script.jobs[0].prompt == [tokenizer.bos_id, *tokenizer.encode(text)]


def test_prompts_of_every_form(embedded: Model, embedded_client: openai.OpenAI) -> None:
    ids = embedded.tokenizer.encode("import ")
    wanted = [embedded.generate(prompt, max_tokens=12).text for prompt in (PROMPT, "import ", ids, [0])]
    for prompt, texts in (
        ([PROMPT, "import "], wanted[:2]),
        (ids, [wanted[2]]),
        ([ids, [0, *ids]], [wanted[2], wanted[1]]),
        ("", [wanted[3]]),
    ):
        answer = embedded_client.completions.create(prompt=prompt, **GREEDY)
        assert [choice.text for choice in answer.choices] == texts
        assert streamed(embedded_client, prompt=prompt) == dict(enumerate(texts))


def test_several_answers_with_a_seed(embedded_client: openai.OpenAI) -> None:
    options = {**GREEDY, "temperature": 1, "seed": 3}
    prompts = [PROMPT, "import "]
    answer = embedded_client.completions.create(prompt=prompts, n=2, **options)
    texts = {choice.index: choice.text for choice in answer.choices}
    assert len(set(texts.values())) == 4
    assert streamed(embedded_client, prompt=prompts, n=2, temperature=1, seed=3) == texts
    assert embedded_client.completions.create(prompt=PROMPT, **options).choices[0].text == texts[0]


def test_a_known_prefix_is_told(embedded: Model, embedded_client: openai.OpenAI) -> None:
    prompt = "# a comment that is long enough\n" * 60
    usages = [embedded_client.completions.create(prompt=prompt, **GREEDY).usage for _ in range(2)]
    cached = [usage.prompt_tokens_details.cached_tokens for usage in usages if usage and usage.prompt_tokens_details]
    assert cached == [0, (usages[0].prompt_tokens - 1) // 128 * 128]  # type: ignore[union-attr]


def test_a_stop_string_and_a_limit_end_a_text(embedded: Model, embedded_client: openai.OpenAI) -> None:
    whole = embedded.generate(PROMPT, max_tokens=12).text
    stop = whole[5:8]
    choice = embedded_client.completions.create(prompt=PROMPT, stop=stop, **GREEDY).choices[0]
    assert (choice.text, choice.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert streamed(embedded_client, prompt=PROMPT, stop=[stop]) == {0: choice.text}
    assert embedded_client.completions.create(prompt=PROMPT, **GREEDY).choices[0].finish_reason == "length"


def test_scores_are_the_models(embedded: Model, embedded_client: openai.OpenAI) -> None:
    choice = embedded_client.completions.create(prompt=PROMPT, logprobs=3, **GREEDY).choices[0]
    scores = choice.logprobs
    assert scores is not None
    assert "".join(scores.tokens or []) == choice.text
    assert scores.text_offset == [len("".join(scores.tokens[:place])) for place in range(12)]  # type: ignore[index]
    for token, logprob, others in zip(scores.tokens, scores.token_logprobs, scores.top_logprobs, strict=True):  # type: ignore[arg-type]
        assert len(others) == 3
        assert max(others.values()) == logprob == others[token]
    chunks = list(embedded_client.completions.create(prompt=PROMPT, logprobs=3, stream=True, **GREEDY))
    told = [one.choices[0].logprobs for one in chunks if one.choices and one.choices[0].logprobs]
    assert [token for one in told for token in one.tokens or []] == scores.tokens
    assert [offset for one in told for offset in one.text_offset or []] == scores.text_offset


@pytest.mark.parametrize("stream", [False, True])
def test_every_token_that_was_drawn_has_a_score_and_so_has_the_last(
    embedded: Model, embedded_client: openai.OpenAI, stream: bool
) -> None:
    """lm-eval leaves out the one token that it has to ask for: there must be one."""
    tokenizer = embedded.tokenizer
    options: dict[str, Any] = {**GREEDY, "max_tokens": 1, "logprobs": 1, "echo": True}
    bias = {str(tokenizer.eos_id): 100}
    prompts = ["def add(a, b):\n    return a + b\n", "import os\n"]
    if stream:
        chunks = embedded_client.completions.create(prompt=prompts, logit_bias=bias, stream=True, **options)
        choices = [choice for chunk in chunks for choice in chunk.choices]
    else:
        choices = embedded_client.completions.create(prompt=prompts, logit_bias=bias, **options).choices
    for number, prompt in enumerate(prompts):
        own = [choice for choice in choices if choice.index == number]
        assert "".join(choice.text for choice in own) == prompt
        assert own[-1].finish_reason == "stop"
        tokens = [token for choice in own if choice.logprobs for token in choice.logprobs.tokens or []]
        scores = [score for choice in own if choice.logprobs for score in choice.logprobs.token_logprobs or []]
        assert tokens[-1] == EOS
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        wanted = embedded.logits(ids).double().log_softmax(-1)
        assert len(scores) == len(ids)
        assert scores == pytest.approx(
            [float(wanted[place, token]) for place, token in enumerate((*ids[1:], tokenizer.eos_id))], abs=1e-3
        )


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("logprobs", [None, 0, 2])
def test_an_echoed_prompt_is_scored(
    embedded_client: openai.OpenAI, embedded: Model, ids: bool, logprobs: int | None
) -> None:
    text = "import os\n\ndef größe(path: str) -> int:\n"
    tokens = [embedded.tokenizer.bos_id, *embedded.tokenizer.encode(text)]
    asked: Any = {"model": "embedded", "prompt": tokens if ids else text, "max_tokens": 4, "temperature": 0.0, "n": 2}
    plain = embedded_client.completions.create(**asked)
    for _ in range(2):  # the second time the prompt is known
        echoed = embedded_client.completions.create(**asked, echo=True, logprobs=logprobs)
        assert [one.text for one in echoed.choices] == [text + one.text for one in plain.choices]
    assert echoed.usage is not None
    assert echoed.usage.prompt_tokens == len(tokens)
    chunks = [*embedded_client.completions.create(**asked, echo=True, logprobs=logprobs, stream=True)]
    for number, choice in enumerate(echoed.choices):
        told = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == number]
        assert "".join(one.text for one in told) == choice.text
        scores = choice.logprobs
        if logprobs is None:
            assert scores is None
            continue
        assert scores is not None
        assert [one for part in told for one in part.logprobs.token_logprobs] == scores.token_logprobs
        wanted = embedded.logits(tokens).double().log_softmax(-1)
        expected = [float(row[token]) for row, token in zip(wanted, tokens[1:], strict=False)]
        own: Any = scores.token_logprobs
        first = [None] if ids else []
        assert own[: len(first)] == first
        assert own[len(first) : len(first) + len(expected)] == pytest.approx(expected, abs=2e-3)
        assert len(own) == len(first) + len(expected) + 4
        assert len(own) == len(scores.tokens) == len(scores.text_offset)
        for place, others in enumerate(scores.top_logprobs[1:], start=1):
            assert len(others) == logprobs
            assert not others or max(others.values()) >= own[place] - 1e-9


def test_usage_comes_last_in_a_stream_that_asks_for_it(embedded_client: openai.OpenAI) -> None:
    options = {"prompt": PROMPT, "stream": True, "stream_options": {"include_usage": True}, **GREEDY}
    chunks = list(embedded_client.completions.create(**options))
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": [[]]}, "the prompt is empty"),
        ({"prompt": [10**6]}, "token id 1000000 lies outside the vocabulary"),
        ({"prompt": [1, "a"]}, r"prompt\[0\] is wrong"),
        ({"prompt": [5], "suffix": "x"}, "a suffix goes with a prompt of text"),
        ({"prompt": "x", "suffix": "y", "echo": True}, "echo puts the prompt before the answer"),
        ({"prompt": [5], "context": ["x"]}, "context goes with a prompt of text"),
        ({"prompt": "x", "context": ["y"], "echo": True}, "echo repeats the prompt, and files stand before it"),
        ({"prompt": "x", "best_of": 3}, "best_of is 3 and n is 1"),
        ({"prompt": ["x"] * 20, "n": 10}, "20 prompts with n 10 are given; ask for 128 answers or fewer"),
    ],
)
def test_what_cannot_be_completed_is_refused(
    embedded_server: Live, embedded_client: openai.OpenAI, options: dict[str, Any], message: str
) -> None:
    before = len(embedded_server.ledger.rows)
    with pytest.raises(openai.BadRequestError, match=message):
        embedded_client.post("/completions", body={**GREEDY, **options}, cast_to=object)
    assert len(embedded_server.ledger.rows) == before


# -- chat on the real engine --------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def satisfies(value: Any) -> bool:
    return value.keys() == {"a", "b"} and value["a"] in ("x", "y") and type(value["b"]) is bool


def test_a_model_that_was_not_trained_to_chat_says_so(embedded_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="embedded continues text and was not trained to chat; use"):
        embedded_client.chat.completions.create(model="embedded", messages=[{"role": "user", "content": "x"}])


@pytest.mark.parametrize("stream", [False, True])
def test_budget_and_grammar_bind_the_engine(embedded_client: openai.OpenAI, stream: bool) -> None:
    options: dict[str, Any] = {
        "model": "chat",
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 300,
        "seed": 1,
        "extra_body": {"thinking": {"type": "enabled", "budget_tokens": 5}},
        "logit_bias": {"5": -100},
    }
    schema = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA, "strict": True}}
    function = {"name": "f", "parameters": SCHEMA, "strict": True}
    tools = [{"type": "function", "function": function}]
    if not stream:
        answer = embedded_client.chat.completions.create(**options, response_format=schema)
        assert answer.choices[0].message.content is not None
        assert satisfies(json.loads(answer.choices[0].message.content))
        assert answer.usage is not None
        assert answer.usage.completion_tokens_details is not None
        assert answer.usage.completion_tokens_details.reasoning_tokens == 6
        answer = embedded_client.chat.completions.create(
            **options, tools=tools, tool_choice="required", parallel_tool_calls=False
        )
        assert answer.choices[0].finish_reason == "tool_calls"
        (made,) = answer.choices[0].message.tool_calls or []
        assert satisfies(json.loads(made.function.arguments))  # type: ignore[union-attr]
        return
    with embedded_client.chat.completions.stream(
        **options, tools=tools, tool_choice="required", parallel_tool_calls=False
    ) as events:
        (made,) = events.get_final_completion().choices[0].message.tool_calls or []
    assert satisfies(made.function.parsed_arguments)
