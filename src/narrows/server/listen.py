"""The application on a socket, by uvicorn."""

from __future__ import annotations

import asyncio
import math
import socket
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from narrows.server.service import Service

# For what was cut off to reach its clients and the ledger.
_GRACE_SECONDS = 10


class Server(uvicorn.Server):
    """Serves until it is told to end; then what is under way goes on for a while, and nothing new is taken."""

    def __init__(
        self, app: FastAPI, host: str, port: int, *, certificate: Path | None = None, private_key: Path | None = None
    ) -> None:
        """`certificate` and its `private_key`, PEM files, make it HTTPS. Port 0 takes any that is free."""
        self._service: Service = app.state.service
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            ssl_certfile=certificate,
            ssl_keyfile=private_key,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=math.ceil(self._service.settings.drain_seconds) + _GRACE_SECONDS,
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to end."""
        self._service.lifecycle.drain()
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

    @property
    def listening_on(self) -> int:
        """The port, once `started`."""
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port
