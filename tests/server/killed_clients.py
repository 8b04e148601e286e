"""Clients of a server that may be killed at any moment, and what they know of their requests then."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from narrows.economics.money import picodollars
from narrows.ledger.ledger import Ledger
from narrows.ledger.requests import Row

CLIENTS = 4


@dataclass
class Request:
    """A request under a name of its own, which is sent until something is known of it: `cost`, in picodollars."""

    name: str
    kind: str
    id: str | None = None
    usage: tuple[int, int] | None = None
    cost: int | None = None
    attempts: int = 0


@dataclass
class Clients:
    """They ask one thing behind the other, on as many threads, until the server is gone. `unknown`: what was sent and
    got no answer; it is sent again to the next server, under the same name."""

    key: str
    model: str
    kinds: Sequence[str]
    random: Random
    known: list[Request] = field(default_factory=list)
    unknown: list[Request] = field(default_factory=list)
    _count: int = 0

    def run(self, port: int, kill: Callable[[], None], after: int, more: float) -> None:
        """Ask at that port; `kill` the server when so many answers have come, and so many seconds more."""
        self._port, self._stop, self._answers = port, False, threading.Semaphore(0)
        threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for _ in range(after):
            assert self._answers.acquire(timeout=60)
        time.sleep(more)
        kill()
        for thread in threads:
            thread.join()

    def _next(self) -> Request:
        if self.unknown:
            return self.unknown.pop()
        self._count += 1
        return Request(f"request-{self._count}", self.random.choice(list(self.kinds)))

    def _ask(self) -> None:
        """Until nothing answers any more. What is known to have been refused for good is a fault of the test."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while True:
            request = self._next()
            request.attempts += 1
            try:
                self._send(connection, request)
            except (OSError, http.client.HTTPException):
                self.unknown.append(request)
                connection.close()
                return
            self.known.append(request)
            self._answers.release()

    def _send(self, connection: http.client.HTTPConnection, request: Request) -> None:
        path, body = body_of(request.kind, self.model)
        headers = {"x-api-key": self.key, "content-type": "application/json", "idempotency-key": request.name}
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode()  # IncompleteRead where it broke off
        if answer.status == 409:
            assert "was done already" in text, text
            request.id = re.findall(r"request (req_\w+) ", text)[0]
            connection.request("GET", "/api/requests?limit=1000", headers={"x-api-key": self.key})
            rows = json.loads(connection.getresponse().read())["rows"]
            (row,) = [row for row in rows if row["id"] == request.id]
            assert (row["state"], row["idempotency"]) == ("settled", request.name)
            request.cost = picodollars(row["cost"])
            return
        assert answer.status == 200, text
        told = json.loads(text) if text.startswith("{") else _last_usage(text)
        if told is None:
            raise http.client.IncompleteRead(text.encode())
        usage = told["usage"]
        hit = usage.get("cache_read_input_tokens", 0)
        prompt = usage["prompt_tokens"] if "prompt_tokens" in usage else usage["input_tokens"] + hit
        request.usage = (prompt, usage.get("completion_tokens", usage.get("output_tokens")))
        request.id = answer.headers["x-request-id"]
        request.cost = picodollars(usage["cost"])


def _last_usage(stream: str) -> dict[str, Any] | None:
    """The event that tells a stream's usage; None where it did not come to that."""
    for line in reversed(stream.splitlines()):
        if line.startswith("data: {") and '"cost"' in line:
            told: dict[str, Any] = json.loads(line.removeprefix("data: "))
            return told
    assert "error" not in stream, stream
    return None


def body_of(kind: str, model: str) -> tuple[str, dict[str, Any]]:
    """Where a request goes, and what it says."""
    protocol, _, streamed = kind.partition(" ")
    asked: dict[str, Any] = {"model": model, "max_tokens": 24, "stream": bool(streamed)}
    if protocol == "text":
        asked["prompt"] = "import os\n\n\ndef main("
    else:
        asked["messages"] = [{"role": "user", "content": "Hello"}]
    if protocol == "messages":
        return "/v1/messages", asked
    asked["stream_options"] = {"include_usage": True} if streamed else None
    return ("/v1/completions" if protocol == "text" else "/v1/chat/completions"), asked


def check(ledger: Ledger, clients: Clients, seen: dict[str, Row]) -> dict[str, Row]:
    """What clients know is what the ledger holds, to the picodollar -> all rows, `seen` being those of before."""
    rows = {row.id: row for row in ledger.requests(limit=1000)} | seen
    for request in clients.known:
        assert request.id is not None
        row = rows[request.id]
        assert (row.state, row.cost, row.idempotency) == ("settled", request.cost, request.name)
        if request.usage is not None:
            assert (row.hit + row.miss, row.output, row.outcome) == (*request.usage, "done")
    paid = [row for row in rows.values() if row.state == "settled"]
    names = [row.idempotency for row in paid]
    assert len(set(names)) == len(names)
    assert all((row.state, row.cost) == ("released", 0) for row in rows.values() if row.state != "settled")
    # What was charged and not acknowledged are answers that were on their way when the server was killed.
    known = {request.name for request in clients.known}
    waiting = {request.name for request in clients.unknown}
    assert set(names) - known <= waiting
    total = sum(row.cost for row in paid)
    assert sum(one.cost for one in ledger.usage()) == total
    assert sum(one.settled for one in ledger.spending().values()) == total
    assert all(one.reserved == 0 for one in ledger.spending().values())
    return rows
