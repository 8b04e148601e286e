"""A backend that says what a test lets it say, a ledger in memory, and a live server around them."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI

from narrows.engine.grammar import GrammarState, Vocabulary
from narrows.engine.sequence import Drawn, Event, Finished, FinishReason, Prefilled
from narrows.engine.text import TextStream
from narrows.server.accounting import Account, Ledger, Outcome, Usage, Wanted
from narrows.server.app import create_app
from narrows.server.backend import Backend, Job, ModelInfo
from narrows.server.errors import ApiError
from narrows.server.listen import Server
from narrows.server.settings import Settings
from narrows.text.tokenizer import CONTROL_TOKENS, EOS
from tests.text.conversations import EMBEDDED

KEY = "nrw_test"
ENDLESS = "endless"


def tokens_of(text: str) -> list[int]:
    """Ids of a text in which control tokens are spelled."""
    tokens: list[int] = []
    for piece in re.split(f"({'|'.join(map(re.escape, CONTROL_TOKENS))})", text):
        tokens += [EMBEDDED.control(piece)] if piece in CONTROL_TOKENS else EMBEDDED.encode(piece)
    return tokens


@dataclass
class Scripted:
    """Answers every job with `replies` in turn, token by token: texts with control tokens, of which EOS ends them. It
    checks that they are what the job's grammar allows. `pause`: seconds before each token; `reused`: known tokens of a
    prompt; `steps`: in which it is read; `fault`: what goes wrong after the reply."""

    replies: list[str] = field(default_factory=list)
    pause: float = 0.0
    reused: int = 0
    steps: int = 1
    fault: Exception | None = None
    jobs: list[Job] = field(default_factory=list)
    cancelled: list[int | None] = field(default_factory=list)
    started: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    info: ModelInfo = field(
        default_factory=lambda: ModelInfo("scripted", EMBEDDED, EMBEDDED.vocab_size, 4096, 1_700_000_000, chat=True)
    )
    vocabulary: Vocabulary = field(default_factory=lambda: VOCABULARY)

    def start(self, job: Job) -> ScriptedStream:
        self.jobs.append(job)
        self.ended.clear()
        self.started.set()
        return ScriptedStream(self, job)

    def stats(self) -> Mapping[str, float]:
        return {"steps": len(self.jobs)}


VOCABULARY = Vocabulary(EMBEDDED, EMBEDDED.vocab_size)


class ScriptedStream:
    def __init__(self, script: Scripted, job: Job) -> None:
        self._script, self._job = script, job
        self._cancelled: set[int | None] = set()

    def cancel(self, index: int | None = None) -> None:
        self._cancelled.add(index)
        self._script.cancelled.append(index)

    async def batches(self) -> AsyncGenerator[list[Event]]:
        script, job = self._script, self._job
        first: Any = SimpleNamespace(index=0)
        try:
            for step in range(1, script.steps + 1):
                await asyncio.sleep(script.pause)
                yield [Prefilled(first, len(job.prompt) * step // script.steps, script.reused)]
            for index in range(job.parameters.n):
                async for event in self._answer(index):
                    yield [event]
        finally:
            script.ended.set()

    async def _answer(self, index: int) -> AsyncGenerator[Event]:
        script, job = self._script, self._job
        sequence: Any = SimpleNamespace(index=index)
        text = TextStream(EMBEDDED, job.parameters.stop)
        grammar = None if job.grammar is None else GrammarState(job.grammar, job.grammar_after)
        reply = script.replies[index % len(script.replies)]
        reason: FinishReason = "length"
        tokens = EMBEDDED.encode("endless ") * 1000 if reply == ENDLESS else tokens_of(reply)
        for number, token in enumerate(tokens):
            await asyncio.sleep(script.pause)
            if self._cancelled & {None, index}:
                reason = "cancelled"
                break
            if grammar is not None:
                grammar.advance(token)
            if token == EMBEDDED.eos_id:
                reason = "stop"
                break
            likely = [(token, -0.5), (7, -1.5)][: job.parameters.logprobs or 0]
            yield Drawn(sequence, token, text.push(token), -0.5, tuple(likely))
            if text.stopped:
                reason = "stop"
            if text.stopped or number + 1 == job.parameters.max_tokens:
                break
        if script.fault is not None:
            yield Finished(sequence, "error", error=script.fault)
        else:
            yield Finished(sequence, reason, text.finish())


@dataclass
class Row:
    """What a ledger knows of a request."""

    wanted: Wanted
    outcome: Outcome | None = None
    usage: Usage | None = None


class MemoryLedger:
    """A ledger as the server sees it. `budget`: tokens that all requests together may take."""

    def __init__(self) -> None:
        everything = frozenset({"inference", "metrics"})
        self.accounts = {KEY: Account("key_1", "test", everything), "nrw_other": Account("key_2", "no", frozenset())}
        self.rows: list[Row] = []
        self.budget: int | None = None
        self.refusal: ApiError | None = None

    def authenticate(self, secret: str) -> Account:
        if secret not in self.accounts:
            raise ApiError(401, "this key is not known here; make one.", code="invalid_api_key")
        return self.accounts[secret]

    def reserve(self, account: Account, wanted: Wanted) -> Row:
        if self.refusal is not None:
            raise self.refusal
        if self.budget is not None and wanted.prompt + wanted.output > self.budget:
            raise ApiError(402, "the budget is spent; raise it.")
        row = Row(wanted)
        self.rows.append(row)
        return row

    def settle(self, reservation: Row, usage: Usage, outcome: Outcome, first_token: float | None) -> int:
        assert reservation.outcome is None, "settled twice"
        reservation.outcome, reservation.usage = outcome, usage
        return usage.prompt * 10_000 + usage.output * 20_000

    def release(self, reservation: Row, outcome: Outcome) -> None:
        assert reservation.outcome is None, "settled twice"
        reservation.outcome = outcome


@dataclass
class Live:
    """A server that answers at `url`."""

    url: str
    port: int
    app: FastAPI
    ledger: Any  # in memory, where a test brings no other
    server: Server


@contextmanager
def live(*backends: Backend, settings: Settings | None = None, accounts: Ledger | None = None) -> Iterator[Live]:
    """A server on a loopback port of its own, until the block ends."""
    ledger = accounts or MemoryLedger()
    app = create_app(backends, ledger, settings)
    server = Server(app, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        port = server.port
        yield Live(f"http://127.0.0.1:{port}", port, app, ledger, server)
    finally:
        server.end()
        thread.join(30)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this took too long"
        time.sleep(0.01)


def reply(*parts: str) -> str:
    """A reply that ends by itself."""
    return "".join((*parts, EOS))


def call(name: str, *parameters: Sequence[str]) -> str:
    """The markup of one call; parameters as (name, "true" or "false", value)."""
    dsml = "｜DSML｜"
    given = "".join(
        f'\n<{dsml}parameter name="{name}" string="{is_string}">{value}</{dsml}parameter>'
        for name, is_string, value in parameters
    )
    return f'\n<{dsml}invoke name="{name}">{given or chr(10)}\n</{dsml}invoke>'


def calls(*each: str) -> str:
    """A block of calls."""
    dsml = "｜DSML｜"
    return f"\n\n<{dsml}tool_calls>{''.join(each)}\n</{dsml}tool_calls>"
