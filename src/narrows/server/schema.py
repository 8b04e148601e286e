"""What /openapi.json says of answers: errors, what may be a stream, and the keys that are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from narrows.server.errors import Protocol

Responses = dict[int | str, dict[str, Any]]

_MEANINGS = {
    400: "The request is wrong; the message says where.",
    401: "There is no key, or one that is not good, or not any more.",
    402: "It may cost more than is left of the key's budget.",
    403: "The key is not good for this.",
    404: "There is no such thing here.",
    408: "The body came too slowly.",
    409: "The idempotency key is done or under way.",
    413: "The body is too large.",
    421: "The Host header names another server.",
    429: "The key does more than it may in a minute, or at once.",
    500: "The server failed; its log says more.",
    503: "The server, or its ledger, takes no requests now.",
    504: "The reply took longer than the server allows.",
    529: "The server, or its ledger, takes no requests now.",
}

_DOOR = (401, 413, 421, 500, 503)
_BODY = (400, 408)
_INFERENCE = (*_BODY, 402, 403, 404, 409, 429, 504)

_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}


class OpenAIErrorDetail(BaseModel):
    """What is wrong: a sentence, and where there is one the field."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """An error in OpenAI's shape."""

    error: OpenAIErrorDetail


class AnthropicErrorDetail(BaseModel):
    """What is wrong, as a sentence."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """An error in Anthropic's shape."""

    type: Literal["error"]
    error: AnthropicErrorDetail
    request_id: str


def errors(*statuses: int, protocol: Protocol = "openai") -> Responses:
    """These answers of a route, and those of the door."""
    shape = AnthropicError if protocol == "anthropic" else OpenAIError
    told = {529 if protocol == "anthropic" and one == 503 else one for one in (*statuses, *_DOOR)}
    return {one: {"model": shape, "description": _MEANINGS[one]} for one in sorted(told)}


def body_errors(*statuses: int, protocol: Protocol = "openai") -> Responses:
    """The same of a route that reads a body."""
    return errors(*_BODY, *statuses, protocol=protocol)


def generation(*fields: str, protocol: Protocol = "openai") -> Responses:
    """The answers of a route that lets a model write: an object with these fields, or a stream."""
    written = {
        "description": "The reply, whole or, where stream is true, as it is written.",
        "content": {
            "application/json": {"schema": {"type": "object", "required": [*fields]}},
            "text/event-stream": {"itemSchema": _EVENT},
        },
    }
    return {200: written} | errors(*_INFERENCE, protocol=protocol)


def text(*statuses: int) -> Responses:
    """The answers of a route that tells plain text."""
    told: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}
    return {200: told} | errors(*statuses)


def mended(document: Mapping[str, Any]) -> dict[str, Any]:
    """FastAPI's document with the keys that the door asks for, and without its 422, for which we answer 400."""
    for methods in document["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
    components = dict(document["components"])
    unused = {"HTTPValidationError", "ValidationError"}
    components["schemas"] = {name: one for name, one in components["schemas"].items() if name not in unused}
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {**document, "components": components, "security": [{"bearer": []}, {"x-api-key": []}]}
