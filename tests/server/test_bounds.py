"""What a request may make the server do: bounded before it is done, and nobody waits behind it."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from threading import Thread
from typing import Any

import openai
import pytest

from narrows.engine.model import Model
from narrows.server.engine_backend import EngineBackend
from narrows.server.settings import Settings
from tests.server.scripted import KEY, Live, Scripted, live, reply, wait_for
from tests.server.test_accounts import House, locked
from tests.server.test_door import ask

JSON = {"x-api-key": KEY, "content-type": "application/json"}


def completions(server: Live, **body: Any) -> tuple[int, dict[str, Any]]:
    status, told, _ = ask(server, "POST", "/v1/completions", json.dumps({"model": "embedded", **body}), JSON)
    return status, told


def test_prompts_are_counted_before_they_are_encoded(embedded_server: Live) -> None:
    began = time.monotonic()
    status, told = completions(embedded_server, prompt=[""] * 4000, context=["def f(): pass\n" * 4000])
    assert status == 400
    assert told["error"]["message"].startswith("4000 prompts with n 1 are given")
    assert time.monotonic() - began < 5


def test_prompts_together_are_no_longer_than_one_may_be(script: Scripted, server: Live) -> None:
    body = {"model": "scripted", "prompt": [[5] * 3000, [6] * 3000], "max_tokens": 1}
    status, told, _ = ask(server, "POST", "/v1/completions", json.dumps(body), JSON)
    assert status == 400
    assert "the prompts have 6,000 tokens and more together; send 4,096 or fewer" in told["error"]["message"]
    assert script.jobs == []


def test_a_list_ends_at_its_first_fault(embedded_server: Live) -> None:
    began = time.monotonic()
    status, told = completions(embedded_server, prompt=[None] * 200_000)
    assert status == 400
    assert "prompt" in told["error"]["message"]
    assert time.monotonic() - began < 2


def test_a_repeated_prompt_is_bounded(embedded_server: Live) -> None:
    status, told = completions(embedded_server, prompt="x = 1\n" * 500, n=128, logprobs=20, echo=True, max_tokens=1)
    assert status == 400
    assert "scores of the prompts; ask for 1,000,000 or fewer" in told["error"]["message"]


def test_scores_stand_beside_text_that_was_held_back(script: Scripted, client: openai.OpenAI) -> None:
    script.replies = [reply("</think>Hello there")]
    asked: Any = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}], "logprobs": True}
    for stop in (None, ["there, and more"]):  # which never comes whole
        choice = client.chat.completions.create(**asked, stop=stop).choices[0]
        assert choice.message.content == "Hello there"
        assert choice.logprobs is not None
        assert "".join(one.token for one in choice.logprobs.content or []) == "Hello there"


def test_an_empty_bearer_leaves_the_other_key_to_be_read(server: Live) -> None:
    assert ask(server, "GET", "/v1/models", headers={"Authorization": "Bearer ", "x-api-key": KEY})[0] == 200


def test_a_server_whose_model_has_ended_is_not_ready(embedded: Model) -> None:
    model = Model(embedded.network, embedded.tokenizer)
    with live(EngineBackend(model, "embedded", chat=False)) as server:
        assert ask(server, "GET", "/ready", headers=JSON)[0] == 200
        model.engine.close()
        status, told, _ = ask(server, "GET", "/ready", headers=JSON)
        assert (status, told["error"]["message"]) == (503, "the model 'embedded' has ended; start the server anew.")
        status, told, _ = ask(server, "GET", "/metrics", headers=JSON)
        assert status == 200
        assert "narrows_requests_total" in told["text"]


def test_a_locked_ledger_keeps_nobody_from_reading(tmp_path: Path) -> None:
    with House(tmp_path).open() as house:
        secret = house.key()
        body = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]})
        headers = {"x-api-key": secret, "content-type": "application/json"}
        with locked(house.file):
            waiting = [
                Thread(target=ask, args=(house.server, "POST", "/v1/chat/completions", body, headers))
                for _ in range(60)
            ]
            for one in waiting:
                one.start()
            time.sleep(0.1)
            began = time.monotonic()
            assert house.get("/v1/models", secret)[0] == 200
            seconds = time.monotonic() - began
            for one in waiting:
                one.join()
        assert seconds < 0.3 * 60 / 16  # what a queue of all threads would take
        assert house.ledger.requests() == []


@pytest.mark.parametrize("stream", [False, True])
def test_who_does_not_read_is_hung_up_on(stream: bool) -> None:
    """Over a real socket: megabytes, of which nobody reads one."""
    script = Scripted(replies=[reply("x")])
    with live(script, settings=Settings(send_seconds=0.5)) as server:
        asked = {"model": "scripted", "prompt": "#" * 100_000, "n": 128, "echo": True, "stream": stream}
        body = json.dumps({**asked, "max_tokens": 1}).encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nx-api-key: {KEY}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            wait_for(lambda: server.ledger.rows and server.ledger.rows[0].outcome, 8)
            wait_for(lambda: not server.server.server_state.connections, 30)
