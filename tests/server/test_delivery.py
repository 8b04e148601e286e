"""Answers on their way: who leaves, what breaks, what is full, and that the ledger knows what each of them came to."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest

from narrows.engine.sequence import Finished
from narrows.errors import NarrowsError, UsageError
from narrows.server.accounting import Usage
from narrows.server.app import create_app
from narrows.server.errors import ApiError
from narrows.server.settings import Settings
from tests.server.scripted import ENDLESS, KEY, Live, MemoryLedger, Scripted, live, reply, wait_for
from tests.text.conversations import EMBEDDED

SECRET = "a text that no log may hold"
ASKED: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": SECRET}]}
QUICK = Settings(keep_alive_seconds=0.05, progress_seconds=0.05, request_seconds=60, most_requests=2, drain_seconds=1)


def post(server: Live, path: str = "/v1/chat/completions", **body: Any) -> http.client.HTTPResponse:
    """An answer whose head has come."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", path, json.dumps({**ASKED, **body}), {"x-api-key": KEY})
    return connection.getresponse()


def events_of(answer: http.client.HTTPResponse) -> Iterator[Any]:
    """Its events as they come."""
    while line := answer.readline():
        if line.startswith(b"data: "):
            yield json.loads(line[6:]) if line != b"data: [DONE]\n" else None


def content_of(chunk: Any) -> str:
    return str(chunk["choices"][0]["delta"].get("content") or "")


# -- who leaves ---------------------------------------------------------------------------------------------------


def test_who_leaves_a_stream_is_charged_for_what_was_sent(script: Scripted, server: Live) -> None:
    script.replies, script.pause, script.reused = [ENDLESS], 0.005, 3
    answer = post(server, stream=True, thinking={"type": "disabled"})
    events = events_of(answer)
    text = ""
    while "endless endless endless " not in text:
        text += content_of(next(events))
    answer.close()
    wait_for(lambda: script.ended.is_set() and server.ledger.rows[0].outcome)
    (row,) = server.ledger.rows
    assert row.outcome == "cut"
    assert row.usage is not None
    prompt = len(script.jobs[0].prompt)
    assert (row.usage.hit, row.usage.miss) == (3, prompt - 3)
    assert len(EMBEDDED.encode("endless endless endless")) <= row.usage.output < 1000


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_before_there_is_anything_pays_nothing(script: Scripted, server: Live, stream: bool) -> None:
    script.replies, script.pause, script.steps = [ENDLESS], 0.05, 10 if stream else 1
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps({**ASKED, "stream": stream}), {"x-api-key": KEY})
    assert script.started.wait(60)
    connection.close()
    wait_for(lambda: script.ended.is_set() and server.ledger.rows[0].outcome)
    (row,) = server.ledger.rows
    assert (row.outcome, row.usage) == ("cancelled", None)


def test_what_was_settled_is_settled_before_the_client_reads_the_usage() -> None:
    """Between the last piece of text and the usage, on the application itself."""
    script, ledger = Scripted(replies=[reply("</think>one two")]), MemoryLedger()
    app = create_app([script], ledger)
    settled: dict[str, bool] = {}

    async def ask(stream: bool) -> None:
        body = json.dumps({**ASKED, "stream": stream, "stream_options": {"include_usage": True}}).encode()

        async def receive() -> dict[str, Any]:
            nonlocal body
            if not body:
                await asyncio.sleep(60)
            sent, body = body, b""
            return {"type": "http.request", "body": sent, "more_body": False}

        async def send(message: Any) -> None:
            if b'usage":{' in message.get("body", b""):
                settled[f"{stream}"] = ledger.rows[-1].outcome == "done"

        headers = [(b"host", b"localhost"), (b"x-api-key", KEY.encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        await app({**scope, "query_string": b"", "http_version": "1.1", "scheme": "http"}, receive, send)

    asyncio.run(ask(True))
    asyncio.run(ask(False))
    assert settled == {"True": True, "False": True}


def test_who_does_not_read_is_not_there() -> None:
    script, ledger = Scripted(replies=[ENDLESS]), MemoryLedger()
    app = create_app([script], ledger, Settings(send_seconds=0.1))
    pieces = 0

    async def ask() -> None:
        body = json.dumps({**ASKED, "stream": True, "thinking": {"type": "disabled"}}).encode()

        async def receive() -> dict[str, Any]:
            nonlocal body
            if not body:
                await asyncio.sleep(60)
            sent, body = body, b""
            return {"type": "http.request", "body": sent, "more_body": False}

        async def send(message: Any) -> None:
            nonlocal pieces
            pieces += 1
            if pieces > 10:
                await asyncio.sleep(60)

        headers = [(b"host", b"localhost"), (b"x-api-key", KEY.encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        await app({**scope, "query_string": b"", "http_version": "1.1", "scheme": "http"}, receive, send)

    began = time.monotonic()
    asyncio.run(ask())
    assert time.monotonic() - began < 30
    (row,) = ledger.rows
    assert row.outcome == "cut"
    assert row.usage is not None
    assert 0 < row.usage.output < 10


# -- what breaks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        (ZeroDivisionError(SECRET), 500, "the server failed; its log says more under req_"),
        (NarrowsError("the logits are not finite; restore the weights."), 500, "the logits are not finite"),
        (UsageError("the constraint cannot be followed; simplify it."), 400, "the constraint cannot be followed"),
    ],
)
def test_faults_are_told_and_cost_nothing(
    script: Scripted,
    client: openai.OpenAI,
    server: Live,
    caplog: pytest.LogCaptureFixture,
    fault: Exception,
    status: int,
    message: str,
) -> None:
    script.replies, script.fault = [reply("</think>one ", "two")], fault
    caplog.set_level(logging.INFO)
    with pytest.raises(openai.APIStatusError, match=message) as refused:
        client.chat.completions.create(**ASKED)
    assert refused.value.status_code == status
    *chunks, error = events_of(post(server, stream=True))
    assert "".join(map(content_of, chunks)) == "one two"
    assert message in error["error"]["message"]
    assert [(row.outcome, row.usage) for row in server.ledger.rows] == [("error", None)] * 2
    wait_for(lambda: sum(hasattr(record, "fields") for record in caplog.records) == 2)
    records = [record.__dict__ for record in caplog.records]
    assert SECRET not in repr([(record["msg"], record.get("fields")) for record in records])
    if isinstance(fault, ZeroDivisionError):
        assert [record["fields"]["fault"] for record in records if "fields" in record] == ["ZeroDivisionError"] * 2


def test_a_request_that_lasts_too_long_ends(script: Scripted) -> None:
    # The engine's own deadline; here the script tells it.
    script.replies = [reply("</think>one")]
    with live(Late(replies=[reply("</think>one")])) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            with pytest.raises(openai.InternalServerError, match="took longer than this server allows") as error:
                client.chat.completions.create(**ASKED)
            assert error.value.status_code == 504
            with pytest.raises(openai.APIError, match="took longer than this server allows"):
                list(client.chat.completions.create(**ASKED, stream=True))
        assert [row.outcome for row in server.ledger.rows] == ["cancelled", "cut"]


class Late(Scripted):
    """A backend whose deadline comes at the end of a reply."""

    def start(self, job: Any) -> Any:
        stream = super().start(job)
        batches = stream.batches

        async def late() -> Any:
            async for batch in batches():
                yield [replace(one, reason="deadline") if isinstance(one, Finished) else one for one in batch]

        stream.batches = late  # type: ignore[method-assign]
        return stream


@pytest.mark.parametrize(
    ("refusal", "kind", "retry"),
    [
        (ApiError(402, "the budget is spent; raise it."), openai.APIStatusError, None),
        (ApiError(429, "too many requests; wait.", retry_after=7.2), openai.RateLimitError, "8"),
        (ApiError(409, "this was done already; use another key."), openai.ConflictError, None),
    ],
)
def test_what_the_ledger_refuses_does_not_run(
    script: Scripted, client: openai.OpenAI, server: Live, refusal: ApiError, kind: Any, retry: str | None
) -> None:
    server.ledger.refusal = refusal
    for stream in (False, True):
        with pytest.raises(kind, match=refusal.message) as error:
            client.chat.completions.create(**ASKED, stream=stream, extra_headers={"Idempotency-Key": "k"})
        assert error.value.status_code == refusal.status_code
        assert error.value.response.headers.get("retry-after") == retry
    assert script.jobs == []


def test_the_ledger_hears_the_worst_case_and_then_the_truth(
    script: Scripted, client: openai.OpenAI, server: Live
) -> None:
    script.replies, script.reused = [reply("a b</think>one two")], 4
    client.chat.completions.create(**ASKED, max_tokens=50, n=2, extra_headers={"Idempotency-Key": "k1"})
    (row,) = server.ledger.rows
    prompt = len(script.jobs[0].prompt)
    assert (row.wanted.prompt, row.wanted.output, row.wanted.idempotency) == (prompt, 100, "k1")
    assert (row.wanted.model, row.wanted.endpoint) == ("scripted", "/v1/chat/completions")
    assert row.outcome == "done"
    assert row.usage is not None
    assert row.usage == Usage(4, prompt - 4, row.usage.output, row.usage.reasoning)
    assert row.usage.output > row.usage.reasoning > 4


# -- what takes long, and what is full ----------------------------------------------------------------------------


def test_a_stream_says_how_far_its_prompt_is() -> None:
    script = Scripted(replies=[reply("</think>ok")], pause=0.06, steps=4)
    with live(script, settings=QUICK) as server:
        lines = post(server, stream=True).read().decode().split("\n\n")
    prompt = len(script.jobs[0].prompt)
    comments = [line for line in lines if line.startswith(": ")]
    assert f": prefill {prompt // 4} of {prompt} tokens" in comments
    assert lines.index(comments[0]) < lines.index("data: [DONE]")


def test_a_silent_stream_says_that_it_lives() -> None:
    script = Scripted(replies=[reply("</think>ok")], pause=0.3)
    with live(script, settings=QUICK) as server:
        text = post(server, stream=True).read().decode()
    assert text.count(": keep-alive\n\n") >= 2
    assert text.endswith("data: [DONE]\n\n")


def test_more_requests_than_there_are_places_are_refused() -> None:
    script = Scripted(replies=[ENDLESS], pause=0.01)
    with live(script, settings=QUICK) as server:
        streams = [post(server, stream=True) for _ in range(2)]
        for one in streams:
            next(events_of(one))
        answer = post(server)
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        assert "2 requests are under way or waiting here" in json.loads(answer.read())["error"]["message"]
        for one in streams:
            one.close()
        wait_for(lambda: all(row.outcome for row in server.ledger.rows))
        wait_for(lambda: post(server, max_tokens=1).status == 200)


def test_a_server_that_ends_lets_answers_finish_and_takes_no_new_ones() -> None:
    script = Scripted(replies=[reply("</think>", "word " * 20)], pause=0.02)
    with live(script, settings=Settings(drain_seconds=30)) as server:
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        kept.request("GET", "/ready", headers={"x-api-key": KEY})
        assert kept.getresponse().read() == b'{"status":"ready"}'
        answer = post(server, stream=True)
        events = events_of(answer)
        next(events)
        server.app.state.service.lifecycle.drain()
        kept.request("GET", "/ready", headers={"x-api-key": KEY})
        refused = kept.getresponse()
        assert refused.status == 503
        assert b"the server is about to end" in refused.read()
        kept.request("POST", "/v1/chat/completions", json.dumps(ASKED), {"x-api-key": KEY})
        assert kept.getresponse().status == 503
        server.server.end()
        assert [*events][-1] is None
        assert server.ledger.rows[-1].outcome == "done"


def test_a_server_that_ends_waits_only_so_long() -> None:
    script = Scripted(replies=[ENDLESS], pause=0.02)
    with live(script, settings=QUICK) as server:
        answer = post(server, stream=True, thinking={"type": "disabled"})
        events = events_of(answer)
        while not content_of(next(events)):
            pass
        server.server.end()
        threading.Thread(target=lambda: list(events), daemon=True).start()
    (row,) = server.ledger.rows
    assert row.outcome == "cut"
