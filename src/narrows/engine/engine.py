"""`narrows.Engine`: a core in a thread of its own, used from any other thread or from asyncio."""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from narrows.engine.core import Core
from narrows.engine.limits import Limits
from narrows.engine.request import SamplingParameters, ThinkingBudget, check_prompt, check_submission, check_thinking
from narrows.engine.sequence import Event, Finished, Request, SequenceState
from narrows.engine.store import Prefixes
from narrows.errors import NarrowsError, UsageError
from narrows.model.forward import Forward
from narrows.model.precision import Precision
from narrows.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from narrows.engine.grammar import Grammar, GrammarState, Vocabulary


class Handle:
    """A request under way. Iterate over it, or `async for`, for its events until all its sequences have ended.

    Or over `batches`. For one reader, and NarrowsError for another: who leaves before the end cancels the request.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._sink: Callable[[Event], None] = self._events.put
        self._has_reader = False
        self.sequences: list[SequenceState] = []
        self._left = 0

    def cancel(self, index: int | None = None) -> None:
        """End the request, or its sequence number `index` alone, at the next step: it finishes as "cancelled"."""
        self._engine._cancel(self, index)

    def __iter__(self) -> Iterator[Event]:
        self._begin_reading()
        try:
            while self._left:
                event = self._events.get()
                self._left -= isinstance(event, Finished)
                yield event
        finally:
            self._leave()

    async def __aiter__(self) -> AsyncIterator[Event]:
        async with aclosing(self.batches()) as batches:
            async for batch in batches:
                for event in batch:
                    yield event

    async def batches(self) -> AsyncGenerator[list[Event]]:
        """The events in lists of all that have come since the last: who falls behind gets longer ones, not later."""
        self._begin_reading()
        loop, come = asyncio.get_running_loop(), asyncio.Event()
        batch: list[Event] = []

        def keep(event: Event) -> None:
            batch.append(event)
            if len(batch) == 1 and not loop.is_closed():  # whoever waited has gone with it
                loop.call_soon_threadsafe(come.set)

        with self._lock:
            while not self._events.empty():
                keep(self._events.get())
            self._sink = keep
        try:
            while self._left:
                await come.wait()
                come.clear()
                with self._lock:
                    taken, batch = batch, []
                if taken:
                    self._left -= sum(isinstance(event, Finished) for event in taken)
                    yield taken
        finally:
            self._leave()

    def _begin_reading(self) -> None:
        with self._lock:
            if self._has_reader:
                raise NarrowsError("this request has a reader already, who gets its events; submit another.")
            self._has_reader = True

    def _leave(self) -> None:
        if self._left:
            self.cancel()

    def _put(self, event: Event) -> None:
        with self._lock:
            self._sink(event)


class Engine:
    """Runs many requests at once on one network, in steps that they share. Thread-safe; close it, or use `with`."""

    def __init__(
        self,
        network: Forward,
        tokenizer: Tokenizer | None = None,
        limits: Limits | None = None,
        prefixes: Prefixes | None = None,
        cache: Precision | str | None = None,
    ) -> None:
        """`prefixes`: where known ones outlive the process; `cache`: the history's precision ("float32", "bf16",
        "official"), None for the network's. UsageError when the limits' memory is too small for one request or there
        is no such precision, NarrowsError when there can be no such directory."""
        self._core = Core(network, tokenizer, limits or Limits(), prefixes=prefixes, cache=_precision(cache))
        self._wake = threading.Condition()
        self._making_vocabulary = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._inbox: list[tuple[Callable[[], Any], queue.SimpleQueue[tuple[Any, Exception | None]] | None]] = []
        self._handles: dict[SequenceState, Handle] = {}
        self._closed = False
        self.process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="narrows-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread in the midst of a step would outlive the interpreter

    def submit(
        self,
        prompt: Sequence[int],
        parameters: SamplingParameters,
        *,
        priority: int = 0,
        timeout: float | None = None,
        grammar: Grammar | None = None,
        grammar_after: int | None = None,
        thinking: ThinkingBudget | None = None,
    ) -> Handle:
        """Queue a request: token ids to continue, how, how urgently (higher first), and for how many seconds at most.

        `grammar`, made with this engine's `vocabulary`, is what the reply must be; with `grammar_after`, from behind
        that token on, which ends the reasoning. `thinking`: how long that may be. Raises UsageError for a request that
        can never run, NarrowsError on a closed engine.
        """
        check_submission(parameters, priority, timeout)
        config = self._core.network.config
        prompt = check_prompt(prompt, config.vocab_size, config.max_position_embeddings)
        deadline = None if timeout is None else time.monotonic() + timeout
        check_thinking(thinking, config.vocab_size)
        followed = self._followed(grammar, grammar_after)
        request = Request(prompt, parameters, priority, deadline, followed, thinking)
        handle = Handle(self)

        def begin() -> None:
            handle.sequences = self._core.submit(request)
            handle._left = len(handle.sequences)
            self._handles.update((sequence, handle) for sequence in handle.sequences)

        self._call(begin)
        return handle

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer as grammars need it, made when it is first asked for. UsageError without a tokenizer."""
        from narrows.engine.grammar import Vocabulary

        if self._core.tokenizer is None:
            raise UsageError("this engine has no tokenizer, which a grammar needs; give it one.")
        with self._making_vocabulary:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._core.tokenizer, self._core.network.config.vocab_size)
        return self._vocabulary

    def _followed(self, grammar: Any, after: Any) -> Callable[[], GrammarState] | None:
        """What makes a fresh state of the grammar for every sequence. UsageError for what is no grammar of ours."""
        if grammar is None:
            if after is not None:
                raise UsageError("grammar_after is given without a grammar; give both, or neither.")
            return None
        from narrows.engine.grammar import Grammar, GrammarState

        if not isinstance(grammar, Grammar):
            raise UsageError(f"grammar is {grammar!r}; make one with Grammar.json_schema, regex, lark or tool_calls.")
        if grammar.vocabulary is not self.vocabulary:
            raise UsageError("the grammar was made with another vocabulary; make it with this engine's.")
        size = self._core.network.config.vocab_size
        if after is not None and (type(after) is not int or not 0 <= after < size):
            raise UsageError(f"grammar_after is {after!r}; give a token id below {size}, or None.")
        return partial(GrammarState, grammar, after)

    def stats(self) -> dict[str, Any]:
        """Counters since the beginning, and what memory holds now."""

        def read() -> dict[str, Any]:
            core = self._core
            return {
                **asdict(core.stats),
                "free_slots": core.free_slots,
                "free_blocks": core.pool.free,
                "blocks": core.pool.count,
                "block_bytes": core.history.block_bytes,
                "slot_bytes": core.history.slot_bytes,
                "known_blocks": core.known.tree.blocks,
                "snapshot_bytes": core.known.tree.held_bytes,
            }

        return self._call(read)

    def close(self) -> None:
        """Cancel what runs and end the thread; all handles finish. At the process's end it happens by itself."""
        atexit.unregister(self.close)
        if self.process != os.getpid():  # the thread is another process's
            return
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, function: Callable[[], Any]) -> Any:
        """Run something on the core's thread, between two steps; its result or exception is ours."""
        if threading.current_thread() is self._thread:
            raise NarrowsError("the engine's own thread cannot wait for itself; call from another.")
        if self.process != os.getpid():
            raise NarrowsError("this engine belongs to the process that was forked; make another in this one.")
        done: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
        with self._wake:
            if self._closed:
                raise NarrowsError("the engine is closed; make a new one.")
            self._inbox.append((function, done))
            self._wake.notify()
        result, error = done.get()
        if error is not None:
            raise error
        return result

    def _cancel(self, handle: Handle, index: int | None) -> None:
        """Without waiting: whoever drops a handle may do so from anywhere, the garbage collector's calls included."""

        def cancel() -> None:
            for sequence in handle.sequences:
                if sequence in self._handles and index in (None, sequence.index):
                    self._core.cancel(sequence)

        with self._wake:
            self._inbox.append((cancel, None))
            self._wake.notify()

    def _run(self) -> None:
        try:
            self._steps()
        except Exception as error:  # a fault of ours: nobody may be left waiting for a thread that is gone
            with self._wake:
                self._closed = True
                tasks, self._inbox = self._inbox, []
            for _, done in tasks:
                if done is not None:
                    done.put((None, error))
            self._dispatch([Finished(sequence, "error", error=error) for sequence in list(self._handles)])
            raise

    def _steps(self) -> None:
        while True:
            with self._wake:
                while not self._inbox and self._core.idle and not self._closed:
                    self._wake.wait()
                tasks, self._inbox = self._inbox, []
                closed = self._closed
            for function, done in tasks:
                try:
                    result: tuple[Any, Exception | None] = (function(), None)
                except Exception as error:  # handed to the caller, whose fault it is
                    result = (None, error)
                if done is not None:
                    done.put(result)
            if closed:
                for sequence in list(self._handles):
                    self._core.cancel(sequence)
            self._dispatch(self._core.step())
            if closed:
                return

    def _dispatch(self, events: list[Event]) -> None:
        for event in events:
            self._handles[event.sequence]._put(event)
            if isinstance(event, Finished):
                del self._handles[event.sequence]


def _precision(cache: Precision | str | None) -> Precision | None:
    choices = [Precision.FLOAT32, Precision.BF16, Precision.OFFICIAL]  # fp8 is about weights
    if cache is not None and cache not in choices:
        raise UsageError(f"cache is {cache!r}, which no history is kept in; choose {', '.join(choices)}, or None.")
    return None if cache is None else Precision(cache)
