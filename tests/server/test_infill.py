"""llama.cpp's infill: the requests that editors' plugins send, field by field, and what they read of the answers."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any

import pytest

from narrows.engine.model import Model
from narrows.server.infill_answer import Middle
from narrows.text.fim import fim_prompt
from tests.server.scripted import ENDLESS, KEY, Live, Scripted, reply, wait_for
from tests.text.conversations import EMBEDDED

PREFIX = "import math\n\n\ndef area(radius):\n"
LINE = "    return "
SUFFIX = "\n\n\nprint(area(2))\n"
CHUNKS = [{"text": "PI = 3.14\n", "time": [12, 34], "filename": "old.py"}, {"text": "E = 2.72\n", "filename": "new.py"}]

# What llama.vim sends at a cursor, and the fields that it reads.
VIM: dict[str, Any] = {
    "id_slot": 0,
    "input_prefix": PREFIX,
    "input_suffix": SUFFIX,
    "input_extra": CHUNKS,
    "prompt": LINE,
    "n_predict": 12,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.90,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 250,
    "response_fields": [
        "content",
        "timings/prompt_n",
        "timings/prompt_ms",
        "timings/prompt_per_token_ms",
        "timings/prompt_per_second",
        "timings/predicted_n",
        "timings/predicted_ms",
        "timings/predicted_per_token_ms",
        "timings/predicted_per_second",
        "truncated",
        "tokens_cached",
    ],
}

# And to have pieces of other files read ahead.
VIM_WARMING: dict[str, Any] = {
    "input_prefix": "",
    "input_suffix": "",
    "input_extra": CHUNKS,
    "prompt": "",
    "n_predict": 0,
    "temperature": 0.0,
    "stream": False,
    "samplers": [],
    "cache_prompt": True,
    "t_max_prompt_ms": 1,
    "t_max_predict_ms": 1,
    "response_fields": [""],
}

# The same of llama.vscode, which names no fields.
VSCODE: dict[str, Any] = {
    "input_prefix": PREFIX,
    "input_suffix": SUFFIX,
    "input_extra": CHUNKS,
    "prompt": LINE,
    "n_predict": 12,
    "top_k": 40,
    "top_p": 0.99,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "n_indent": 4,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 2500,
}
VSCODE_WARMING: dict[str, Any] = {
    "input_prefix": "",
    "input_suffix": "",
    "input_extra": CHUNKS,
    "prompt": "",
    "n_predict": 0,
    "samplers": [],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1,
}


def connect(server: Live, body: Any) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.request("POST", "/infill", json.dumps(body), headers)
    return connection.getresponse()


def post(server: Live, body: Any) -> Any:
    answer = connect(server, body)
    told = json.loads(answer.read())
    assert answer.status == 200, told
    return told


def streamed(server: Live, body: Any) -> list[Any]:
    lines = connect(server, {**body, "stream": True}).read().decode().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def test_a_plugin_gets_the_fields_that_it_reads(script: Scripted, server: Live) -> None:
    script.replies, script.reused = [reply("math.pi * radius**2")], 3
    told = post(server, VIM)
    assert told.keys() == set(VIM["response_fields"])
    prompt, middle = len(script.jobs[0].prompt), len(EMBEDDED.encode("math.pi * radius**2"))
    assert (told["content"], told["truncated"], told["tokens_cached"]) == ("math.pi * radius**2", False, 3)
    assert (told["timings/prompt_n"], told["timings/predicted_n"]) == (prompt - 3, middle)
    parameters = script.jobs[0].parameters
    assert (parameters.max_tokens, parameters.top_k, parameters.top_p, parameters.temperature) == (12, 40, 0.9, 0.0)

    told = post(server, VSCODE)
    assert (told["content"], told["stop"], told["stop_type"], told["model"]) == (
        *("math.pi * radius**2", True),
        *("eos", "scripted"),
    )
    assert (told["tokens_evaluated"], told["tokens_predicted"], told["tokens_cached"]) == (prompt, middle, 3)
    assert told["timings"].keys() == {
        "cache_n",
        *(f"{what}_{unit}" for what in ("prompt", "predicted") for unit in ("n", "ms", "per_token_ms", "per_second")),
    }
    assert told["generation_settings"]["n_ctx"] == 4096
    assert [(row.wanted.endpoint, row.outcome) for row in server.ledger.rows] == [("/infill", "done")] * 2


@pytest.mark.parametrize("layout", ["psm", "spm"])
def test_the_prompt_has_the_models_own_layout(script: Scripted, server: Live, layout: Any) -> None:
    script.replies = [reply("x")]
    info = script.info
    script.info = type(info)(**{**vars(info), "fim_layout": layout})
    try:
        post(server, VSCODE)
    finally:
        script.info = info
    context = [token for chunk in CHUNKS for token in (*EMBEDDED.encode(str(chunk["text"])), EMBEDDED.eos_id)]
    wanted = (
        fim_prompt(EMBEDDED, PREFIX + LINE, SUFFIX, context, layout)
        if layout == "spm"
        else [*fim_prompt(EMBEDDED, PREFIX, SUFFIX, context, layout), *EMBEDDED.encode(LINE)]
    )
    assert list(script.jobs[0].prompt) == wanted


def test_reading_ahead_costs_no_token_of_output(script: Scripted, server: Live) -> None:
    script.replies = [reply("x y")]
    assert post(server, VIM_WARMING) == {}
    told = post(server, VSCODE_WARMING)
    assert (told["content"], told["tokens_predicted"], told["stop_type"]) == ("", 0, "limit")
    assert streamed(server, VSCODE_WARMING)[-1]["tokens_predicted"] == 0
    context = [token for chunk in CHUNKS for token in (*EMBEDDED.encode(str(chunk["text"])), EMBEDDED.eos_id)]
    assert list(script.jobs[0].prompt) == [EMBEDDED.bos_id, *context]
    assert [row.usage.output for row in server.ledger.rows] == [0, 0, 0]
    post(server, VSCODE)
    assert script.jobs[-1].prompt[: 1 + len(context)] == script.jobs[0].prompt


def test_a_stream_says_the_same(script: Scripted, server: Live) -> None:
    script.replies = [reply("math.pi * radius**2")]
    *pieces, last = streamed(server, VSCODE)
    assert "".join(piece["content"] for piece in pieces) == "math.pi * radius**2"
    assert {piece["stop"] for piece in pieces} == {False}
    assert (last["content"], last["stop"], last["stop_type"]) == ("", True, "eos")
    assert last["tokens_predicted"] == post(server, VSCODE)["tokens_predicted"]


def test_what_does_not_fit_is_left_out_and_said(script: Scripted, server: Live) -> None:
    script.replies = [reply("x")]
    files = [{"text": f"{name} = 1\n" * 500} for name in ("far", "near")]
    body = {"input_prefix": "before = 1\n" * 2000, "input_suffix": "after = 1\n" * 2000, "input_extra": files}
    told = post(server, {**body, "prompt": "now = ", "n_predict": 100})
    assert told["truncated"]
    prompt = script.jobs[0].prompt
    assert len(prompt) + 100 == 4096
    text = EMBEDDED.decode(prompt)
    assert "near = 1\n" in text
    assert "far" not in text
    assert text.endswith("now = ")
    assert text.count("before") > text.count("after") > 0
    # What the other files hold does not depend on the cursor, nor on how much is asked for.
    post(server, {"input_prefix": "x = 1\n", "input_suffix": "y", "input_extra": files, "n_predict": 7})
    post(server, {"input_extra": files, "n_predict": 0})
    held = script.jobs[2].prompt
    assert all(job.prompt[: len(held)] == held for job in script.jobs)


def test_a_file_that_ends_at_the_cursor_is_continued(script: Scripted, server: Live) -> None:
    script.replies = [reply("x")]
    post(server, {"input_prefix": PREFIX, "input_suffix": "", "prompt": LINE})
    assert list(script.jobs[0].prompt) == [EMBEDDED.bos_id, *EMBEDDED.encode(PREFIX + LINE)]
    assert script.jobs[0].parameters.max_tokens == 128


def test_stops_and_limits_are_told(script: Scripted, server: Live) -> None:
    script.replies = [reply("one two three")]
    told = post(server, {**VSCODE, "stop": [" thr", "zwei"]})
    assert (told["content"], told["stop_type"], told["stopping_word"]) == ("one two", "word", " thr")
    told = post(server, {**VSCODE, "n_predict": 2})
    assert (told["stop_type"], told["tokens_predicted"]) == ("limit", 2)
    script.replies = [ENDLESS]
    told = post(server, {**VSCODE, "n_predict": 60, "stop": ["endless endless endless"]})
    assert (told["content"], told["tokens_predicted"] < 60) == ("", True)
    assert 0 in script.cancelled


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_middle_ends_at_a_line_that_is_indented_less(size: int) -> None:
    text = "a\n\n    b\n\tc\n     d\n  e\n    f"
    for indent, wanted in ((0, text), (1, text), (2, "a\n\n    b\n"), (4, "a\n\n    b\n"), (5, "a\n\n")):
        middle = Middle((), indent, None)
        told = "".join(middle.push(text[place : place + size]) for place in range(0, len(text), size))
        assert told + middle.finish("") == wanted == middle.text
        assert middle.stopped == (wanted != text)
    middle = Middle((), 4, None)
    assert middle.push("a\n   ") + middle.finish("") == "a\n   "


def test_a_middle_ends_with_its_line_when_its_time_is_over() -> None:
    middle = Middle((), 0, 0.01)
    assert middle.push("a") == "a"
    time.sleep(0.02)
    assert middle.push("b") == "b"
    assert not middle.stopped
    assert middle.push("c\n") == "c\n"
    assert middle.stopped
    assert (middle.push("d"), middle.tokens) == ("", 3)


def test_who_leaves_is_charged_for_what_was_sent(script: Scripted, server: Live) -> None:
    script.replies, script.pause = [ENDLESS], 0.005
    answer = connect(server, {**VSCODE, "n_predict": 2000, "stream": True, "n_indent": 0})
    for line in answer:
        if line.startswith(b"data: "):
            break
    answer.close()
    wait_for(lambda: script.ended.is_set() and server.ledger.rows[0].outcome)
    assert server.ledger.rows[0].outcome == "cut"
    assert 0 < server.ledger.rows[0].usage.output < 2000


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"n_predict": -2}, "n_predict is wrong (input should be greater than or equal to -1)"),
        ({"input_prefix": 5}, "input_prefix is wrong (input should be a valid string)"),
        ({"input_extra": [{"filename": "x"}]}, "input_extra[0].text is wrong (field required)"),
        ({"stop": [""]}, "a stop string is empty"),
        ({"temperature": 3}, "temperature is wrong"),
    ],
)
def test_what_cannot_be_is_refused(script: Scripted, server: Live, body: Any, message: str) -> None:
    answer = connect(server, {**VSCODE, **body})
    assert answer.status == 400
    assert message in json.loads(answer.read())["error"]["message"]
    assert (server.ledger.rows, script.jobs) == ([], [])


def test_the_model_is_the_first_unless_one_is_named(embedded_server: Live) -> None:
    assert post(embedded_server, {**VSCODE, "n_predict": 1})["model"] == "embedded"
    assert post(embedded_server, {**VSCODE, "n_predict": 1, "model": ""})["model"] == "embedded"
    assert post(embedded_server, {**VSCODE, "n_predict": 1, "model": "chat"})["model"] == "chat"
    answer = connect(embedded_server, {**VSCODE, "model": "none"})
    assert answer.status == 404


def test_the_embedded_model_fills_in_what_the_library_does(embedded: Model, embedded_server: Live) -> None:
    body = {"input_prefix": PREFIX, "prompt": LINE, "input_suffix": SUFFIX, "n_predict": 12}
    told = post(embedded_server, body)
    assert told["content"] == embedded.generate(PREFIX + LINE, suffix=SUFFIX, max_tokens=12).text
    whole = "".join(piece["content"] for piece in streamed(embedded_server, body))
    assert whole == told["content"]


def test_what_was_read_ahead_is_known_at_the_cursor(embedded_server: Live) -> None:
    files = [{"text": "def helper(argument):\n    return argument * 2\n\n\n" * 10}]
    post(embedded_server, {"input_extra": files, "n_predict": 0})
    told = post(embedded_server, {**VSCODE, "input_extra": files, "n_predict": 1})
    assert told["tokens_cached"] >= 128
