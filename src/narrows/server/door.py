"""The server's door: which host was meant, whose key it is, how large a body is and how long it takes to come.

Pure ASGI, around everything else: what is refused here has been read by nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from narrows.server.accounting import Account, Ledger
from narrows.server.errors import ApiError, Protocol, error_response, failure
from narrows.server.log import log_visit
from narrows.server.metrics import Metrics
from narrows.server.page import PATHS
from narrows.server.settings import Settings
from narrows.server.threads import Threads
from narrows.server.visit import Visit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# What answers without a key: that the process lives, under any name, and the page.
_HEALTH = "/health"
_PUBLIC = PATHS | {_HEALTH}

# For a client that sends on after it was refused: seconds in which its body is read and thrown away, so that it comes
# to read the answer before the connection closes.
_DISCARD_SECONDS = 2.0


class Door:
    """An ASGI application around another one."""

    def __init__(self, app: App, settings: Settings, ledger: Ledger, metrics: Metrics, threads: Threads) -> None:
        self._app, self._settings, self._ledger, self._metrics = app, settings, ledger, metrics
        self._threads = threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        visit = Visit(_protocol(scope["path"], headers), scope["method"], scope["path"])
        visit.enter(scope)
        body = _Body(receive, self._settings)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                given = (visit.id.encode("latin-1"),)
                message["headers"] = [*message.get("headers", []), (b"x-request-id", *given), (b"request-id", *given)]
                if not await body.discarded():  # what comes of it yet would be taken for the next request
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            try:
                body.check_length(headers)
                if scope["path"] != _HEALTH:
                    self._check_host(headers)
                if scope["path"] not in _PUBLIC:
                    visit.account = await self._authenticated(headers)
                await self._app(scope, body.receive, sending)
            except Exception as fault:
                if not isinstance(fault, ApiError):
                    visit.fault = fault
                if visit.status is not None:
                    raise  # the answer breaks off, and its reader must see that
                error = fault if isinstance(fault, ApiError) else failure(visit.id)
                await error_response(error, visit.protocol, visit.id)(scope, receive, sending)
        finally:
            route = scope.get("route")
            self._metrics.count(visit, getattr(route, "path", "other"))
            log_visit(visit)

    async def _authenticated(self, headers: dict[bytes, str]) -> Account:
        return await self._threads.run("keys", self._ledger.authenticate, _secret(headers))

    def _check_host(self, headers: dict[bytes, str]) -> None:
        """Refuse a name that is not ours: a page elsewhere could otherwise reach a server on its reader's machine."""
        host = headers.get(b"host", "")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if name.strip("[]").lower() not in self._settings.hosts:
            raise ApiError(421, "the Host header names another server; start this one with --allow-host and that name.")


class _Body:
    """A request's body, bounded in size and time."""

    def __init__(self, receive: Receive, settings: Settings) -> None:
        self._receive, self._most, self._seconds = receive, settings.most_body, settings.body_seconds
        self._deadline: float | None = None
        self._read = 0
        self._whole = self._late = False

    def check_length(self, headers: dict[bytes, str]) -> None:
        """413 for a body that says itself that it is too large."""
        self._whole = not {b"content-length", b"transfer-encoding"} & headers.keys()
        length = headers.get(b"content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._most:
            raise self._too_large()

    async def receive(self) -> Message:
        """The next piece, and behind the last one whatever the server says then. 413, or 408 for one that is late."""
        if self._whole or self._late:
            return await self._receive()
        if self._deadline is None:  # the door itself may have taken its time
            self._deadline = time.monotonic() + self._seconds
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            self._late = True
            raise ApiError(408, "the request's body came too slowly; send it again, faster.") from None
        self._read += len(message.get("body", b""))
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        if self._read > self._most:
            raise self._too_large()
        return message

    async def discarded(self) -> bool:
        """Read on without keeping anything, for a while -> whether that was all."""
        try:
            async with asyncio.timeout(_DISCARD_SECONDS):
                while not (self._whole or self._late):
                    message = await self._receive()
                    self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        except TimeoutError:
            return False
        return self._whole

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body has more than {self._most:,} bytes; send a smaller one.")


def _protocol(path: str, headers: dict[bytes, str]) -> Protocol:
    anthropic = path.startswith(("/anthropic/", "/v1/messages")) or b"anthropic-version" in headers
    return "anthropic" if anthropic else "openai"


def _secret(headers: dict[bytes, str]) -> str:
    """The key that a request shows, in either way. 401 without one."""
    scheme, _, secret = headers.get(b"authorization", "").partition(" ")
    secret = secret.strip() if scheme.lower() == "bearer" else ""
    secret = secret or headers.get(b"x-api-key", "").strip()
    if not secret:
        raise ApiError(
            401,
            "no key is given; send one as Authorization: Bearer KEY, or as x-api-key: KEY.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
    return secret
