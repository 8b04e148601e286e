"""The server's own document, and schemathesis, which asks whatever that allows, and what it does not allow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from narrows.server.errors import Protocol
from tests.draws import scaled
from tests.server.test_door import ask
from tests.server.watched import BOUND, Watched, babbling, check_answer

OPERATIONS = [
    *("GET /health", "GET /ready", "GET /metrics", "GET /v1/models", "GET /v1/models/{name}"),
    *("POST /v1/chat/completions", "POST /v1/completions", "POST /v1/responses", "POST /infill"),
    *("POST /v1/messages", "POST /v1/messages/count_tokens"),
    *("GET /api/prices", "GET /api/plan", "GET /api/key", "GET /api/usage", "GET /api/requests", "GET /api/keys"),
    *("POST /api/keys", "PATCH /api/keys/{key_id}", "DELETE /api/keys/{key_id}"),
]
# A conversation has rules that no schema tells, so what fits the schema may be refused all the same.
SENSE: Any = {"model": "scripted", "messages": [{"role": "user", "content": "Hello"}], "input": "Hello", "tools": []}
UNCHECKED = [positive_data_acceptance]
# And a query says the same of a text, a number and a list of one.
UNCHECKED_IN_QUERIES = [positive_data_acceptance, negative_data_rejection]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with babbling(tmp_path_factory.mktemp("schema")) as house:
        yield house


@pytest.fixture(scope="module")
def document(house: Watched) -> dict[str, Any]:
    return ask(house.server, "GET", "/openapi.json", headers={"x-api-key": house.admin})[1]


def test_it_lists_every_operation_with_the_shapes_of_its_errors(document: dict[str, Any]) -> None:
    told = {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert sorted(told) == sorted(OPERATIONS)
    for name, operation in told.items():
        shape = "AnthropicError" if "/v1/messages" in name else "OpenAIError"
        for status, answer in operation["responses"].items():
            assert answer["description"]
            if int(status) >= 400:
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": f"#/components/schemas/{shape}"}, name
        assert {"401", "413", "421", "500"} <= operation["responses"].keys()
        assert "422" not in operation["responses"]


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_fits_the_document_is_answered_as_it_says(house: Watched, document: dict[str, Any], name: str) -> None:
    _ask(house, document, name, GenerationMode.POSITIVE)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "GET /health"])  # to which all fits
def test_what_does_not_fit_the_document_is_refused(house: Watched, document: dict[str, Any], name: str) -> None:
    _ask(house, document, name, GenerationMode.NEGATIVE)


def _ask(house: Watched, document: dict[str, Any], name: str, mode: GenerationMode) -> None:
    method, path = name.split()
    operation = schemathesis.openapi.from_dict(document)[path][method]
    protocol: Protocol = "anthropic" if "/v1/messages" in path else "openai"

    @settings(max_examples=scaled(30))
    @given(operation.as_strategy(generation_mode=mode))
    def check(case: Case) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body |= {name: value for name, value in SENSE.items() if name in case.body}
        response = case.call_and_validate(
            base_url=house.server.url,
            headers={"Authorization": f"Bearer {house.admin}"},
            timeout=BOUND,
            excluded_checks=UNCHECKED_IN_QUERIES if method == "GET" else UNCHECKED,
        )
        (kind,) = response.headers["content-type"]
        check_answer(protocol, response.status_code, kind, response.content)

    check()
    house.check()
