"""What a client is told when its request cannot be answered, in the shape of its protocol."""

from __future__ import annotations

import math
from typing import Any, Literal

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

Protocol = Literal["openai", "anthropic"]

_OPENAI_TYPES = {
    401: "authentication_error",
    402: "insufficient_balance",
    403: "permission_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(HTTPException):
    """A refusal or a failure: an HTTP status, one sentence that names what is wrong and what to do, and, where there
    are any, OpenAI's `code`, the field of the request (`param`) and seconds after which another try makes sense."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        headers = dict(headers or {})
        if retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(retry_after)))
        if status == 409:  # the SDKs would try again, and be told the same
            headers["x-should-retry"] = "false"
        super().__init__(status, message, headers)
        self.message, self.code, self.param = message, code, param


class CutOffError(ApiError):
    """An answer that ends before its end, but was good as far as it came, and is charged so far."""


def overloaded(message: str) -> ApiError:
    """The server has too much to do, or is about to end."""
    return ApiError(503, message, code="overloaded", retry_after=1)


def failure(request_id: str) -> ApiError:
    """A fault of ours, of which the client is told where the log tells more."""
    return ApiError(500, f"the server failed; its log says more under {request_id}.")


def error_body(error: ApiError, protocol: Protocol, request_id: str) -> dict[str, Any]:
    """The JSON of an error, as an answer or as the last event of a stream."""
    if protocol == "anthropic":
        told = {"type": _kind(error, _ANTHROPIC_TYPES, "api_error"), "message": error.message}
        return {"type": "error", "error": told, "request_id": request_id}
    kind = _kind(error, _OPENAI_TYPES, "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def error_response(error: ApiError, protocol: Protocol, request_id: str) -> Response:
    """The answer to a request that failed before any of its reply was sent."""
    status = 529 if protocol == "anthropic" and error.status_code == 503 else error.status_code
    return JSONResponse(error_body(error, protocol, request_id), status, error.headers)


def _kind(error: ApiError, kinds: dict[int, str], fault: str) -> str:
    return kinds.get(error.status_code, fault if error.status_code >= 500 else "invalid_request_error")
