"""No connection breaks the server: whatever bytes come, in whatever pieces, it answers or closes, and goes on."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.server import door
from narrows.server.settings import Settings
from tests.draws import scaled
from tests.server.raw_http import Conversation, conversations, hold
from tests.server.watched import Watched, babbling

# Connections that are open at once.
TOGETHER = 8

SECONDS = 0.2
BODY = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "Hello"}], "stream": True}).encode()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A server that waits for nothing long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(door, "_DISCARD_SECONDS", SECONDS)
        with babbling(tmp_path_factory.mktemp("http"), Settings(body_seconds=SECONDS)) as house:
            house.server.server.config.timeout_keep_alive = SECONDS  # type: ignore[assignment]
            yield house


def test_whatever_comes_is_answered_or_closed(house: Watched) -> None:
    _, revoked = house.ledger.create_key("revoked")
    house.ledger.revoke(revoked[4:14])
    secrets = (house.secret, house.admin, revoked, "nrw_wrong", "")

    with ThreadPoolExecutor(TOGETHER) as pool:

        @settings(max_examples=scaled(35))
        @given(st.lists(conversations(secrets), min_size=TOGETHER, max_size=TOGETHER))
        def check(together: list[Conversation]) -> None:
            answers = pool.map(lambda one: hold(house.server.port, one), together)
            for conversation, statuses in zip(together, answers, strict=True):
                if conversation.intact and conversation.end == "wait":
                    assert statuses, conversation
                    assert statuses[0] in (200, 201, 403, 404), conversation
            house.check()

        check()


def send(house: Watched, *pieces: bytes, pause: float = 0.0) -> tuple[bytes, float]:
    """What is answered until the server closes, and the seconds that it took behind the last piece."""
    with socket.create_connection(("127.0.0.1", house.server.port), timeout=30) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        began, received = time.monotonic(), b""
        while piece := connection.recv(1 << 16):
            received += piece
    return received, time.monotonic() - began


def head(house: Watched, *headers: str, path: str = "/v1/chat/completions", secret: str | None = None) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"x-api-key: {secret or house.secret}", *headers, "", ""]
    return "\r\n".join(lines).encode()


def told(answer: bytes) -> tuple[int, Any]:
    """Status and JSON of the only answer."""
    first, _, body = answer.partition(b"\r\n\r\n")
    return int(first.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    ("sent", "status", "sentence"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "this is no request in HTTP/1.1; send one"),
        (b"GET /health\r\n\r\n", 400, "this is no request in HTTP/1.1; send one"),
        (b"GET /health HTTP/1.1\r\n\r\n", 400, "this is no request in HTTP/1.1; send one"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 70_000, 431, "head is too large; send fewer headers"),
    ],
    ids=["TLS", "no version", "no host", "large head"],
)
def test_what_is_no_request_is_told_so(house: Watched, sent: bytes, status: int, sentence: str) -> None:
    answer, _ = send(house, sent)
    assert told(answer)[0] == status
    assert sentence in told(answer)[1]["error"]["message"]
    house.check()


@pytest.mark.parametrize("begun", [b"", b"GET", b"GET /health HTTP/1.1\r\nHost: a\r\n"])
def test_a_head_that_does_not_come_is_not_waited_for(house: Watched, begun: bytes) -> None:
    answer, seconds = send(house, begun)
    assert answer == b""
    assert seconds < 10 * SECONDS + 2


def test_nor_is_the_head_of_the_next_request(house: Watched) -> None:
    whole = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    answer, seconds = send(house, whole, b"GET /hea", pause=SECONDS / 4)
    assert answer.count(b'{"status":"ok"}') == 1
    assert seconds < 10 * SECONDS + 2


def test_a_body_that_does_not_come_is_408_and_the_connection_ends(house: Watched) -> None:
    answer, seconds = send(house, head(house, f"Content-Length: {len(BODY)}"), BODY[:20])
    assert told(answer)[0] == 408
    assert b"\r\nconnection: close\r\n" in answer
    assert seconds < 10 * SECONDS + 2
    house.check()


def test_who_is_refused_and_sends_on_for_ever_is_cut_off(house: Watched) -> None:
    pieces = [head(house, "Transfer-Encoding: chunked", secret="nrw_wrong"), *[b"1\r\nx\r\n"] * 100]
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        send(house, *pieces, pause=SECONDS / 4)
    house.check()


@pytest.mark.parametrize("bad", [b"zz\r\n", b"-1\r\n", b"fffffffffffffffffffff\r\n"])
def test_chunks_that_are_none(house: Watched, bad: bytes) -> None:
    answer, _ = send(house, head(house, "Transfer-Encoding: chunked"), b"5\r\nhello\r\n" + bad, pause=0.02)
    assert told(answer)[0] == 400
    house.check()


def test_what_follows_a_last_request_is_not_read(house: Watched) -> None:
    last = head(house, f"Content-Length: {len(BODY)}", "Connection: close") + BODY
    answer, _ = send(house, last, b"junk\r\n\r\n", pause=0.001)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200"]
    house.check()


def test_requests_that_are_sent_ahead_are_answered_in_their_order(house: Watched) -> None:
    one = head(house, f"Content-Length: {len(BODY)}") + BODY
    bad = head(house, "Content-Length: 2", path="/v1/messages") + b"{}"
    answer, _ = send(house, one + bad + one + b"junk\r\n\r\n")
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"400"] * 2
    assert answer.count(b"data: [DONE]") == 2
    house.check()
    assert [row.outcome for row in house.ledger.requests(limit=2)] == ["done", "done"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_who_says_no_more_has_left(house: Watched, path: str) -> None:
    body = BODY[:-1] + b', "max_tokens": 10}'
    with socket.create_connection(("127.0.0.1", house.server.port), timeout=30) as connection:
        connection.sendall(head(house, f"Content-Length: {len(body)}", path=path) + body)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass
    house.check()
