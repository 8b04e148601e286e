"""The door: hosts, keys, sizes and times, before anything else has looked at a request."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from narrows.errors import UsageError
from narrows.server.settings import Settings
from tests.server.scripted import KEY, Live, Scripted, live, reply

BODY = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "Hello"}]})
WITH_KEY = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
HEAD = (
    f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nx-api-key: {KEY}\r\nContent-Length: 90\r\n\r\n"
).encode()


@pytest.fixture(scope="module")
def small() -> Iterator[Live]:
    """A server that takes little and does not wait long."""
    script = Scripted(replies=[reply("</think>ok")])
    with live(script, settings=Settings(most_body=1000, body_seconds=0.5)) as server:
        yield server


def ask(
    server: Live, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, JSON and headers of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(method, path, body, headers or {}, encode_chunked=not isinstance(body, str | bytes | None))
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    told = {name.lower(): value for name, value in answer.getheaders()}
    return answer.status, json.loads(text) if text[:1] == b"{" else {"text": text.decode()}, told


def test_without_a_key_nothing_answers_but_health_and_the_page(server: Live) -> None:
    assert ask(server, "GET", "/health")[0] == 200
    schema = ask(server, "GET", "/openapi.json", headers=WITH_KEY)[1]
    paths = [(method.upper(), path) for path, methods in schema["paths"].items() for method in methods]
    assert len(paths) >= 7
    for method, path in (
        *paths,
        ("GET", "/openapi.json"),
        ("GET", "/page/"),
        ("GET", "/nowhere"),
        ("PUT", "/v1/models"),
    ):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"x-api-key": "wrong"}):
            if path != "/health":
                status, body, told = ask(server, method, path, BODY, headers)
                assert status == 401, path
                assert body["error"]["type"] == "authentication_error"
                assert body["error"]["message"].endswith(("KEY.", "make one."))
                assert told["x-request-id"].startswith("req_")


def test_a_key_is_taken_in_either_way(server: Live) -> None:
    for headers in (WITH_KEY, {"x-api-key": KEY}, {"authorization": f"bearer  {KEY} "}):
        assert ask(server, "GET", "/v1/models", headers=headers)[0] == 200


def test_a_key_is_good_for_its_scopes(server: Live) -> None:
    other = {"x-api-key": "nrw_other"}
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/metrics")):
        status, body, _ = ask(server, method, path, BODY if method == "POST" else None, other)
        assert (status, body["error"]["type"]) == (403, "permission_error")
    assert ask(server, "GET", "/v1/models", headers=other)[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:9999", 200),
        ("[::1]", 200),
        ("[::1]:8000", 200),
        ("evil.example", 421),
        ("localhost.evil.example:8000", 421),
        ("", 421),
    ],
)
def test_the_host_has_to_be_ours(server: Live, host: str, status: int) -> None:
    assert ask(server, "GET", "/v1/models", headers={**WITH_KEY, "Host": host})[0] == status


def test_addresses_and_methods_that_there_are_not(server: Live) -> None:
    status, body, _ = ask(server, "GET", "/v1/nothing", headers=WITH_KEY)
    assert (status, body["error"]["type"]) == (404, "invalid_request_error")
    assert body["error"]["message"] == "there is no such address here; /openapi.json lists all that there are."
    status, body, _ = ask(server, "GET", "/v1/chat/completions", headers=WITH_KEY)
    assert (status, body["error"]["type"]) == (405, "invalid_request_error")


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [1001, 300_000, 3_000_000])
def test_large_bodies_are_refused(small: Live, chunked: bool, size: int) -> None:
    body: Any = "x" * size
    for headers in (WITH_KEY, {**WITH_KEY, "anthropic-version": "2023-06-01"}):
        given = iter([body.encode()]) if chunked else body
        status, told, _ = ask(small, "POST", "/v1/chat/completions", given, headers)
        assert status == 413
        assert told["error"]["message"] == "the body has more than 1,000 bytes; send a smaller one."
    assert told["error"]["type"] == "request_too_large"
    assert told["request_id"].startswith("req_")
    assert ask(small, "POST", "/v1/chat/completions", BODY, WITH_KEY)[0] == 200


def test_slow_bodies_are_refused(small: Live) -> None:
    with socket.create_connection(("127.0.0.1", small.port), timeout=30) as connection:
        connection.sendall(HEAD + b'{"model"')
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 408
        assert json.loads(answer.read())["error"]["message"].startswith("the request's body came too slowly")


def test_half_closed_and_broken_requests_leave_the_server_well(small: Live) -> None:
    for sent in (b"", b"GET", b"\x16\x03\x01\x02", HEAD, HEAD + b'{"model"', b"GET / HTTP/9.9\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", small.port), timeout=30) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1000)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert ask(small, "POST", "/v1/chat/completions", BODY, WITH_KEY)[0] == 200


def test_figures_are_told_in_the_words_of_prometheus(server: Live, script: Scripted) -> None:
    script.replies = [reply("So</think>ok")]
    assert ask(server, "POST", "/v1/chat/completions", BODY, WITH_KEY)[0] == 200
    text = ask(server, "GET", "/metrics", headers=WITH_KEY)[1]["text"]
    for line in (
        'narrows_requests_total{endpoint="/chat/completions",status="200"}',
        'narrows_tokens_total{kind="reasoning",model="scripted"}',
        'narrows_outcomes_total{model="scripted",outcome="done"}',
        'narrows_first_token_seconds_count{model="scripted"}',
        'narrows_engine_steps{model="scripted"} 1.0',
        "narrows_requests_open 0.0",
    ):
        assert line in text


def test_settings_that_make_no_sense_are_refused_by_name() -> None:
    for name in ("most_body", "request_seconds", "keep_alive_seconds"):
        for value in (0, -1, float("inf"), float("nan"), "1"):
            with pytest.raises(UsageError, match=f"{name} is .*; give the server a number above 0"):
                Settings(**{name: value})
