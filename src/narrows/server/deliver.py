"""How an answer reaches its client: as a stream of events, or whole; and what happens when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import Any

from starlette.responses import JSONResponse, Response

from narrows.server.errors import ApiError, CutOffError, failure
from narrows.server.generation import Generation
from narrows.server.settings import Settings
from narrows.server.sse import comment
from narrows.server.threads import Threads
from narrows.server.visit import Visit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Delivery(Response):
    """The answer of a generation that has begun. `close` is called when all is over."""

    def __init__(
        self, generation: Generation, visit: Visit, settings: Settings, threads: Threads, close: Callable[[], None]
    ) -> None:
        super().__init__()
        self._generation, self._visit, self._settings, self._close = generation, visit, settings, close
        self._threads = threads

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Send it, for as long as somebody is there."""
        work = asyncio.create_task(self._work(scope, receive, send))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not work.done():
                self._generation.leave()
            gone.cancel()
            try:
                await work
            finally:
                self._close()

    async def _work(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        raise NotImplementedError

    async def _fault(self, fault: Exception) -> ApiError:
        """End a generation that failed -> what the client is told."""
        if isinstance(fault, ApiError):
            await self._generation.abandon(failed=not isinstance(fault, CutOffError))
            return fault
        self._visit.fault = fault
        await self._generation.abandon(failed=True)
        return failure(self._visit.id)


class Whole(Delivery):
    """One JSON object, when all of it is there."""

    async def _work(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        generation = self._generation
        try:
            async with aclosing(generation.run(self._settings.keep_alive_seconds)) as pieces:
                async for _ in pieces:
                    pass
            if generation.left:
                await generation.abandon(failed=False)
                return
            await generation.settle()
        except Exception as fault:
            raise await self._fault(fault) from None
        response = await self._threads.run("answers", lambda: JSONResponse(dict(generation.answer.whole())))
        await response(scope, receive, send)


class Stream(Delivery):
    """Server-sent events, as they come."""

    async def _work(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        generation, answer = self._generation, self._generation.answer
        self._scope, self._send = scope, send
        self._told_progress = asyncio.get_running_loop().time()
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        headers.append((b"x-accel-buffering", b"no"))  # a proxy that gathers would undo the stream
        await self._write({"type": "http.response.start", "status": 200, "headers": headers})
        await self._piece(answer.begin() or comment("accepted"))
        try:
            async with aclosing(generation.run(self._settings.keep_alive_seconds)) as pieces:
                async for piece in pieces:
                    if text := piece or self._sign_of_life():
                        await self._piece(text)
            if generation.left:
                await generation.abandon(failed=False)
                return
            await generation.settle()
            last = answer.end()
        except Exception as fault:
            last = answer.failed(await self._fault(fault))
        await self._write({"type": "http.response.body", "body": last.encode(), "more_body": False})

    def _sign_of_life(self) -> str:
        """What to say where there is nothing to say: how far the prompt is, from time to time."""
        now = asyncio.get_running_loop().time()
        if now - self._told_progress < self._settings.progress_seconds:
            return ""
        self._told_progress = now
        read, whole = self._generation.answer.progress()
        return comment(f"prefill {read} of {whole} tokens") if read < whole else comment("keep-alive")

    async def _piece(self, text: str) -> None:
        await self._write({"type": "http.response.body", "body": text.encode(), "more_body": True})
        self._generation.sent()

    async def _write(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._settings.send_seconds):
                await self._send(message)
        except TimeoutError:  # whoever does not read is not there
            self._generation.leave()
            _hang_up(self._scope)


def _hang_up(scope: MutableMapping[str, Any]) -> None:
    """End the connection at once: a close would wait until all that was written has been read."""
    connection = scope.get("state", {}).get("connection")
    if connection is not None:
        connection.abort()


async def _gone(receive: Receive) -> None:
    """Wait until the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
