"""HTTP as no client should speak it: requests whose lines, headers and lengths are wrong, and that come in pieces."""

from __future__ import annotations

import http.client
import io
import json
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from hypothesis import strategies as st

from narrows.server.errors import Protocol
from tests.server.mutated import BODIES
from tests.server.watched import BOUND, check_answer

End = Literal["wait", "half", "close"]

_METHODS = [*("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PRI", "get", "X-ODD")]
_TARGETS = [
    *("/", "*", "//", "/health", "/health/", "/health?x=%00", "/v1/models", "/v1/models/%ff%00%0a", "/v1/models/..%2f"),
    *("http://localhost/v1/models", "/v1/chat/completions/", "/V1/MESSAGES", "/openapi.json", "/metrics", "/api/key"),
    *("/api/usage?by=key&by=key&by=x", "/api/usage?from=0000-00-00", "/api/requests?limit=" + "9" * 5000, "/a%" * 100),
    *("/api/requests?key=%00%ff&from=10000-01-01", "/api/requests?limit=1&limit=2", "/api/keys/%00", "/\x7f", "/ é"),
    *("", "/" + "a" * 20_000),
]
_VERSIONS = ["HTTP/1.1"] * 5 + ["HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.1.1", "http/1.1", "", "HTTP/1.1 x"]
_HEADERS = [
    *("Host: evil.example", "Host:", "Host: localhost, localhost", "Host: [::1", "Host: \xff"),
    *("Content-Type: application/json; charset=utf-16", 'Content-Type: application/json; x="', "Content-Type: \xff;;="),
    *("Content-Type: text/plain", "Content-Type: multipart/form-data; boundary=x", "Content-Encoding: gzip"),
    *("Content-Type: application/x-www-form-urlencoded", "Transfer-Encoding: gzip"),
    *("Transfer-Encoding: chunked, chunked", "Expect: 100-continue", "Expect: miracles"),
    *("Connection: Upgrade\r\nUpgrade: websocket", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c"),
    *("Content-Length: -1", "Content-Length: 5\r\nContent-Length: 6", "Content-Length: " + "9" * 30),
    *("Content-Length: ٣", "Content-Length: 1_0", "Content-Length: +5", "Content-Length: 5, 5"),
    *("Idempotency-Key:", "Idempotency-Key: \xff\xfe", "Idempotency-Key: " + "k" * 300, "Idempotency-Key: same"),
    *(
        "Authorization: Bearer",
        "Authorization: Bearer \xff",
        "Authorization: Basic !!!",
        "x-api-key: a\r\nx-api-key: b",
    ),
    *("anthropic-version: 2023-06-01", "Range: bytes=0-1", "X-Long: " + "a" * 20_000, "Cookie: " + "a=b; " * 500),
    *("X: y\r\n" * 500 + "X: z", " folded: line", "no colon", ": empty"),
    *("X: \x00", "X: a\rb", "X\t: y", "Trailer: x", "X-HTTP-Method-Override: DELETE"),
]
_CHUNKED = ["good", "bad size", "huge size", "no end", "trailers"]


@dataclass
class Conversation:
    """What one connection sends, in pieces with a pause between them, and how it ends. `intact`: it is one request, and
    as it should be."""

    pieces: list[bytes]
    end: End
    intact: bool


@st.composite
def conversations(draw: st.DrawFn, secrets: tuple[str, ...]) -> Conversation:
    """One to three requests, sent whatever is answered. `secrets`: of keys, of which the first is good."""
    requests = [draw(_requests(secrets)) for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3])))]
    sent = b"".join(text for text, _ in requests)
    if draw(st.integers(0, 9)) == 0:
        sent = draw(st.binary(min_size=1, max_size=40)) if draw(st.booleans()) else sent[: draw(st.integers(0, 200))]
        intact = False
    else:
        (_, intact), *more = requests
        intact = intact and not more
    pieces = [sent]
    for _ in range(draw(st.integers(0, 3))):
        last = pieces.pop()
        cut = draw(st.integers(0, len(last)))
        pieces += [last[:cut], last[cut:]]
    end: End = draw(st.sampled_from(["wait", "wait", "wait", "wait", "half", "close"]))
    return Conversation(pieces, end, intact)


@st.composite
def _requests(draw: st.DrawFn, secrets: tuple[str, ...]) -> tuple[bytes, bool]:
    """A request, and whether nothing is wrong with it."""
    path = draw(st.sampled_from(sorted(BODIES)[2:]))
    body = json.dumps(draw(st.sampled_from(BODIES[path]))).encode()
    method, version, wrong = "POST", "HTTP/1.1", draw(st.integers(0, 3))
    headers = ["Host: localhost", f"x-api-key: {draw(st.sampled_from(secrets)) if wrong else secrets[0]}"]
    if draw(st.integers(0, 2)):
        headers.append("Connection: close")
    for _ in range(wrong):
        match draw(st.sampled_from(["method", "target", "version", "header", "header", "no header"])):
            case "method":
                method = draw(st.sampled_from(_METHODS))
            case "target":
                path = draw(st.sampled_from(_TARGETS))
            case "version":
                version = draw(st.sampled_from(_VERSIONS))
            case "header":
                headers.insert(draw(st.integers(0, len(headers))), draw(st.sampled_from(_HEADERS)))
            case "no header" if headers:
                del headers[draw(st.integers(0, len(headers) - 1))]
    framing = draw(st.sampled_from(["length", "length", "length", "chunked", "too short", "too long", "none"]))
    match framing:
        case "length":
            headers.append(f"Content-Length: {len(body)}")
        case "too short":
            headers.append(f"Content-Length: {max(0, len(body) - draw(st.integers(1, 50)))}")
        case "too long":
            headers.append(f"Content-Length: {len(body) + draw(st.integers(1, 50))}")
        case "chunked":
            headers.append("Transfer-Encoding: chunked")
            body = _chunked(body, draw(st.sampled_from(_CHUNKED)))
    head = "\r\n".join([f"{method} {path} {version}", *headers, "", ""])
    return head.encode("utf-8", "surrogatepass") + body, not wrong and framing == "length"


def _chunked(body: bytes, how: str) -> bytes:
    cut = len(body) // 2
    first, last = (b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:cut], body[cut:]))
    match how:
        case "bad size":
            return first + b"zz\r\n" + body
        case "huge size":
            return first + b"f" * 15 + b"\r\n" + body
        case "no end":
            return first
        case "trailers":
            return first + last + b"0\r\nX-Trailer: 1\r\n\r\n"
    return first + last + b"0\r\n\r\n"


def hold(port: int, conversation: Conversation) -> list[int]:
    """Have it, and read until the server closes -> the statuses of its answers, which are as they should be."""
    received, began = b"", time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=BOUND) as connection:
        try:
            for piece in conversation.pieces:
                connection.sendall(piece)
                time.sleep(0.003)
            if conversation.end == "close":
                return []
            if conversation.end == "half":
                with suppress(OSError):  # the server may have closed before
                    connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(1 << 16):
                received += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert time.monotonic() - began < BOUND
    return [*_answers(received, conversation)]


def _answers(received: bytes, conversation: Conversation) -> list[int]:
    stream, statuses = _Stream(received), []
    while stream.tell() < len(received):
        answer = http.client.HTTPResponse(stream)  # type: ignore[arg-type]
        try:
            answer.begin()
            body = answer.read()
        except (http.client.HTTPException, OSError):
            assert conversation.end == "half", received  # who has gone is answered no more
            break
        statuses.append(answer.status)
        protocol: Protocol = "anthropic" if body.startswith(b'{"type":"error"') else "openai"
        check_answer(protocol, answer.status, answer.headers["content-type"], body)
    return statuses


class _Stream(io.BytesIO):
    """Bytes that were received, of which one answer after the other is read."""

    def makefile(self, *_: Any) -> _Stream:
        return self

    def close(self) -> None:
        """The next answer begins here."""
