"""A backend that says anything at all, as long as the job's grammar allows it, and counts the jobs under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

from narrows.engine.grammar import GrammarState, Vocabulary
from narrows.engine.sequence import Drawn, Event, Finished, FinishReason, Prefilled
from narrows.engine.text import TextStream
from narrows.errors import UsageError
from narrows.server.backend import Job, ModelInfo
from narrows.text.tokenizer import EOS
from tests.server.scripted import VOCABULARY, call, calls, tokens_of
from tests.text.conversations import EMBEDDED

# Whatever a job allows, its answers have no more tokens together, since each is drawn under a mask.
_MOST_TOKENS = 200
_LONGEST = 40

_REPLIES = [
    tokens_of(text + EOS)
    for text in (
        *("Hello.", "", "So.</think>", "So.</think>Hello, 你好 🎉.", "</think>" * 3, "</think></think>x"),
        '{"a": 1}</think>{"a": [1, null]}',
        "</think>" + calls(call("f", ("a", "true", "x"), ("b", "false", "[1]"))),
        "</think>Look:" + calls(call("f"), call("g")),
        "</think>" + calls(call("nobody", ("a", "false", "{broken"))) + "and more",
        "</think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=",
    )
]


@dataclass
class Babbler:
    """Replies are drawn from `random`; those under a grammar token by token."""

    random: Random = field(default_factory=lambda: Random(7))
    under_way: int = 0
    jobs: int = 0
    info: ModelInfo = field(
        default_factory=lambda: ModelInfo("scripted", EMBEDDED, EMBEDDED.vocab_size, 4096, 1_700_000_000, chat=True)
    )
    vocabulary: Vocabulary = field(default_factory=lambda: VOCABULARY)

    def start(self, job: Job) -> Babble:
        self.jobs += 1
        self.under_way += 1
        return Babble(self, job)

    def stats(self) -> Mapping[str, float]:
        return {"steps": self.jobs}


class Babble:
    """One job of it."""

    def __init__(self, babbler: Babbler, job: Job) -> None:
        self._babbler, self._job = babbler, job
        self._cancelled: set[int | None] = set()
        self._ended = False

    def cancel(self, index: int | None = None) -> None:
        """As Stream.cancel. A stream that nobody reads any more ends so."""
        self._cancelled.add(index)
        if index is None:
            self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._babbler.under_way -= 1

    async def batches(self) -> AsyncGenerator[list[Event]]:
        """As Stream.batches."""
        job = self._job
        first: Any = SimpleNamespace(index=0)
        try:
            yield [Prefilled(first, len(job.prompt), 1)]
            for index in range(job.parameters.n):
                yield self._answer(index)
                await asyncio.sleep(0)
        finally:
            self._end()

    def _answer(self, index: int) -> list[Event]:
        job, random = self._job, self._babbler.random
        sequence: Any = SimpleNamespace(index=index)
        text = TextStream(EMBEDDED, job.parameters.stop)
        grammar = None if job.grammar is None else GrammarState(job.grammar, job.grammar_after)
        reply = iter(random.choice(_REPLIES))
        told: list[Event] = []
        reason: FinishReason = "length"
        for _ in range(min(job.parameters.max_tokens, _LONGEST, 1 + _MOST_TOKENS // job.parameters.n)):
            if self._cancelled & {None, index}:
                reason = "cancelled"
                break
            token = next(reply)
            if grammar is not None:
                try:
                    allowed = grammar.mask()
                    if not allowed[token]:
                        token = random.choice(allowed.nonzero().flatten().tolist())
                    grammar.advance(token)
                except UsageError as error:
                    return [*told, Finished(sequence, "error", error=error)]
            if token == EMBEDDED.eos_id:
                reason = "stop"
                break
            likely = [(token, -0.5), (7, -1.5)][: job.parameters.logprobs or 0]
            told.append(Drawn(sequence, token, text.push(token), -0.5, tuple(likely)))
            if text.stopped:
                reason = "stop"
                break
            reply = iter([*reply, EMBEDDED.eos_id])
        return [*told, Finished(sequence, reason, text.finish())]
