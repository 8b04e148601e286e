"""The application on a socket, by uvicorn."""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import ssl
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from narrows.errors import UsageError
from narrows.server.connection import Connection
from narrows.server.log import say
from narrows.server.service import Service

# Connections that the system may keep until the server gets to them.
_WAITING = 1024

# For what was cut off to reach its clients and the ledger.
_GRACE_SECONDS = 10


class Server(uvicorn.Server):
    """Serves until it is told to end; then what is under way goes on for a while, and nothing new is taken."""

    def __init__(
        self, app: FastAPI, host: str, port: int, *, certificate: Path | None = None, private_key: Path | None = None
    ) -> None:
        """It has its `port` from here on; 0 takes any that is free. `certificate` and its `private_key`, PEM files,
        make it HTTPS. UsageError for a place or files that it cannot have."""
        self._service: Service = app.state.service
        self._cut = False
        config = uvicorn.Config(
            app,
            ssl_certfile=certificate,
            ssl_keyfile=private_key,
            http=partial(  # type: ignore[arg-type]
                Connection,
                head_seconds=self._service.settings.body_seconds,
                send_seconds=self._service.settings.send_seconds,
            ),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=math.ceil(self._service.settings.drain_seconds) + _GRACE_SECONDS,
        )
        super().__init__(config)
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            why = getattr(error, "strerror", None) or error
            raise UsageError(
                f"{certificate} and {private_key} are no certificate and its key ({why}); give PEM files that belong "
                "together."
            ) from None
        self._socket = _bound(host, port)
        self.port: int = self._socket.getsockname()[1]

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until `end` or a signal."""
        super().run([self._socket])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to end; a second one cuts off what is under way, a third waits for nothing."""
        lifecycle = self._service.lifecycle
        under_way = len(lifecycle.under_way)
        if lifecycle.draining:
            say("ending now: what is under way is cut off", under_way=under_way)
            self.force_exit, self._cut = self._cut, True
            lifecycle.cut()
            return
        seconds = self._service.settings.drain_seconds
        say(f"ending: what is under way has {seconds:g} s; asked again, it is cut off", under_way=under_way)
        lifecycle.drain()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: what is under way has its time, and is then cut off."""
        late = asyncio.get_running_loop().call_later(self._service.settings.drain_seconds, self._service.lifecycle.cut)
        await super().shutdown(sockets)
        late.cancel()

    def end(self) -> None:
        """The same from another thread."""
        self._service.lifecycle.drain()
        self.should_exit = True


def _bound(host: str, port: int) -> socket.socket:
    """A socket at that place. UsageError where there can be none."""
    try:
        places = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, place = places[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{host} is no address ({error}); give one of this machine's.") from None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(place)
        bound.listen(_WAITING)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"port {port} of {host} is taken; choose another with --port.") from None
        raise UsageError(f"nobody can listen on port {port} of {host} ({error.strerror}); choose another.") from None
    return bound
