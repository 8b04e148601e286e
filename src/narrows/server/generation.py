"""A request's way through the engine, from its reservation in the ledger to its last row there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from narrows.engine.sequence import Drawn, Event, Finished
from narrows.errors import NarrowsError, UsageError
from narrows.server.accounting import Ledger, Outcome, Usage, Wanted
from narrows.server.answer import Answer
from narrows.server.backend import Backend, Job, Stream
from narrows.server.errors import ApiError, CutOffError
from narrows.server.threads import Threads
from narrows.server.visit import Visit

_NOTHING: Any = object()


class Generation:
    """Jobs that answer one request. It ends in exactly one call of the ledger, whatever happens to it: `settle`, when
    all is well, or `abandon`. Nobody may cancel a task that is inside one of its methods: `leave` ends it."""

    def __init__(
        self,
        backend: Backend,
        ledger: Ledger,
        visit: Visit,
        answer: Answer,
        threads: Threads,
        pause: Callable[[], float],
    ) -> None:
        """`pause`: seconds between two pieces of what is sent."""
        self._backend, self._ledger, self._visit, self._threads, self._pause = backend, ledger, visit, threads, pause
        self.answer = answer
        self._streams: Sequence[Stream] = ()
        self._reservation: Any = None
        self._sent = Usage()
        self._left = self._closed = False
        self._why: ApiError | None = None

    async def begin(self, wanted: Wanted, jobs: Sequence[Job]) -> None:
        """Reserve and start. `ApiError` where the ledger or the engine refuses; then nothing is left behind."""
        owner = self._visit.owner
        self._reservation = await self._threads.run("ledger", self._ledger.reserve, owner, wanted)
        try:
            self._streams = await self._threads.run("engine", self._start, jobs)
        except BaseException:
            await self.abandon(failed=True)
            raise

    def _start(self, jobs: Sequence[Job]) -> list[Stream]:
        streams: list[Stream] = []
        try:
            streams += map(self._backend.start, jobs)
        except NarrowsError as error:
            for stream in streams:
                stream.cancel()
            raise _told(error) from None
        return streams

    async def run(self, silence: float) -> AsyncGenerator[str]:
        """What to send, as it comes; "" after every `silence` seconds without any. `ApiError` for what goes wrong.

        It ends early where somebody has left.
        """
        batches: asyncio.Queue[tuple[int, list[Event]] | None] = asyncio.Queue()
        readers = [
            asyncio.create_task(_read(stream, part, batches, self._pause)) for part, stream in enumerate(self._streams)
        ]
        under_way = len(readers)
        try:
            while under_way and not self._left:
                try:
                    async with asyncio.timeout(silence):
                        batch = await batches.get()
                except TimeoutError:
                    yield ""
                    continue
                told = []
                while batch is not _NOTHING:  # all that has come meanwhile, so that a slow reader gets longer pieces
                    if batch is None:
                        under_way -= 1
                    elif not self.left:  # an end that came of leaving is none of the answer's
                        told.append(self._push(*batch))
                    batch = _NOTHING if batches.empty() else batches.get_nowait()
                yield "".join(told)
            if self._why is not None:
                raise self._why
            for reader in readers:
                if reader.done():
                    reader.result()  # raises what it failed with
        finally:
            for stream, reader in zip(self._streams, readers, strict=True):
                if not reader.done():
                    stream.cancel()
                    reader.cancel()

    def _push(self, part: int, events: Sequence[Event]) -> str:
        """Events of the prompt number `part` -> what is to be sent of them."""
        self._watch(events)
        text = self.answer.push(part, events)
        for index in self.answer.stopped(part):
            self._streams[part].cancel(index)
        return text

    def _watch(self, events: Sequence[Event]) -> None:
        """Note times, and raise what ended an answer before it was one."""
        now = time.monotonic()
        for event in events:
            if isinstance(event, Drawn):
                self._visit.first_token = self._visit.first_token or now
                self._visit.last_token = now
            elif isinstance(event, Finished) and event.reason in ("error", "deadline"):
                if isinstance(event.error, NarrowsError):
                    raise _told(event.error) from None
                if event.error is not None:
                    raise event.error
                raise CutOffError(504, "the reply took longer than this server allows; ask for less.", code="timeout")

    def sent(self) -> None:
        """Everything that has been told so far is with the client, if it is still there."""
        if not self._left:
            self._sent = self.answer.usage()

    def leave(self, why: ApiError | None = None) -> None:
        """Stop at the next step: the client is gone or, if it is told `why`, we are."""
        self._left, self._why = True, why
        for stream in self._streams:
            stream.cancel()

    @property
    def left(self) -> bool:
        """Whether it ends early."""
        return self._left

    async def settle(self) -> None:
        """All has gone well: the ledger has its row when this returns."""
        await self._close(self.answer.usage(), cut=False)

    async def abandon(self, *, failed: bool) -> None:
        """Nothing more will be sent. What was sent of a stream is charged, unless it `failed`; does nothing behind the
        end."""
        if self._closed:
            return
        if self._sent.output and not failed:
            await self._close(self._sent, cut=True)
            return
        self._closed = True
        outcome: Outcome = "error" if failed else "cancelled"
        self._visit.outcome = outcome
        await self._threads.run("ledger", self._ledger.release, self._reservation, outcome)

    async def _close(self, usage: Usage, *, cut: bool) -> None:
        visit = self._visit
        first = None if visit.first_token is None else visit.first_token - visit.began
        outcome: Outcome = "cut" if cut else "done"
        self.answer.cost = await self._threads.run(
            "ledger", self._ledger.settle, self._reservation, usage, outcome, first
        )
        self._closed = True
        visit.usage, visit.outcome = usage, outcome


async def _read(
    stream: Stream, part: int, batches: asyncio.Queue[tuple[int, list[Event]] | None], pause: Callable[[], float]
) -> None:
    """Put a stream's batches among all the others', and None behind the last.

    What comes fast is gathered for a while: telling a token alone takes as long as a small model's step.
    """
    try:
        async with aclosing(stream.batches()) as events:
            async for batch in events:
                batches.put_nowait((part, batch))
                if any(isinstance(event, Drawn) for event in batch):
                    await asyncio.sleep(pause())
    finally:
        batches.put_nowait(None)


def _told(error: NarrowsError) -> ApiError:
    """As the client is told: the request's fault or the server's."""
    return ApiError(400 if isinstance(error, UsageError) else 500, str(error))
