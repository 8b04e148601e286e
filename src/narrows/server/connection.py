"""One connection, before there is a request: bytes that are no HTTP, and heads that do not come."""

from __future__ import annotations

import asyncio
import sys
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from narrows.server.errors import ApiError, error_response


class Connection(H11Protocol):
    """uvicorn's, whose own answer is in no protocol's shape, and which waits for ever."""

    def __init__(self, *given: Any, head_seconds: float, send_seconds: float, **named: Any) -> None:
        """`head_seconds`: until a connection has sent the head of its first request; `send_seconds`: that a client may
        take to read what was written when the connection closes."""
        super().__init__(*given, **named)
        self._head_seconds, self._send_seconds = head_seconds, send_seconds
        self.app_state = {**self.app_state, "connection": self}  # for who has to end it
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.loop.call_later(self.timeout_keep_alive + self._send_seconds, self._end_closing)

    def shutdown(self) -> None:
        super().shutdown()
        self.loop.call_later(self._send_seconds, self._end_closing)

    def _end_closing(self) -> None:
        """A close waits until all that was written has been read; not longer than this."""
        if self.transport.is_closing():
            self.transport.abort()

    def abort(self) -> None:
        """End it at once, whatever has not been read."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is h11.MUST_CLOSE:
            return  # it has said itself that nothing follows
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._late is None and not self.transport.is_closing():
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._late = self.loop.call_later(self._head_seconds, self._close_late)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close_late(self) -> None:
        self._late = None
        self.timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong, if nothing has been said yet, and close."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # nobody reads on
        if self.conn.our_state is not h11.IDLE and self.conn.our_state is not h11.SEND_RESPONSE:
            self.transport.close()
            return
        error = _refusal(sys.exception())
        answer = error_response(error, "openai", "")
        headers = [*answer.raw_headers, (b"connection", b"close")]
        reason = HTTPStatus(error.status_code).phrase.encode()
        for event in (
            h11.Response(status_code=error.status_code, headers=headers, reason=reason),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _refusal(error: BaseException | None) -> ApiError:
    """What is said of bytes that are no request."""
    if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
        return ApiError(431, "the request's head is too large; send fewer headers, or shorter ones.")
    return ApiError(400, "this is no request in HTTP/1.1; send one, and no TLS where the address begins with http:.")
