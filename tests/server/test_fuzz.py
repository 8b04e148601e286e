"""No body breaks the server: whatever it says, it is answered or refused in its protocol, and leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings

from narrows.engine.model import Model
from narrows.server.engine_backend import EngineBackend
from narrows.server.errors import Protocol
from narrows.server.settings import Settings
from tests.draws import scaled
from tests.server.mutated import BODIES, METHODS, bodies
from tests.server.watched import BOUND, Watched, babbling, check_answer, watched


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with babbling(tmp_path_factory.mktemp("fuzz")) as house:
        yield house


def post(house: Watched, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
    """Status and JSON, or the text of a stream, of an answer that is one, or an error as it should be."""
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", house.server.port, timeout=BOUND)
    given = {"x-api-key": house.admin, "content-type": "application/json"} | headers
    connection.request(METHODS.get(path, "POST"), path, body, given)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert time.monotonic() - began < BOUND
    protocol: Protocol = "anthropic" if path.startswith("/v1/messages") else "openai"
    return answer.status, check_answer(protocol, answer.status, answer.headers["content-type"], text)


@pytest.mark.parametrize("path", BODIES)
def test_valid_bodies_are_answered(house: Watched, path: str) -> None:
    for body in BODIES[path]:
        status, answer = post(house, path, json.dumps(body).encode())
        assert status == (404 if path == "/api/keys/nobody" else 201 if path == "/api/keys" else 200), answer
    house.check()


@pytest.mark.parametrize("path", BODIES)
def test_mutated_bodies_are_answered_or_refused(house: Watched, path: str) -> None:
    @settings(max_examples=scaled(100))
    @given(bodies(path))
    def check(body: bytes) -> None:
        status, answer = post(house, path, body)
        assert status in (200, 201, 400, 404), answer
        house.check()

    check()


@pytest.fixture(scope="module")
def engine_house(embedded: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The embedded model under the name that the bodies ask for, as if it had been trained to chat."""
    slots = embedded.engine.stats()["free_slots"]
    with watched(
        tmp_path_factory.mktemp("engine"),
        EngineBackend(embedded, "scripted", chat=True),
        lambda: embedded.engine.stats()["free_slots"] == slots,
        Settings(default_tokens=30, request_seconds=2),
    ) as house:
        yield house


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
def test_the_engine_takes_them_too(engine_house: Watched, path: str) -> None:
    @settings(max_examples=scaled(15))
    @given(bodies(path))
    def check(body: bytes) -> None:
        status, answer = post(engine_house, path, body)
        assert status in (200, 400, 404, 504), answer
        engine_house.check()

    check()
