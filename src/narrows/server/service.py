"""What the protocols' routes share: models, the ledger, places, and the way from a request to its delivery."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from narrows.errors import NarrowsError
from narrows.server.accounting import Ledger, Tier, Wanted
from narrows.server.answer import Answer
from narrows.server.backend import Backend, Job
from narrows.server.deliver import Stream, Whole
from narrows.server.errors import ApiError
from narrows.server.generation import Generation
from narrows.server.lifecycle import Lifecycle
from narrows.server.metrics import Metrics
from narrows.server.settings import Settings
from narrows.server.threads import Threads
from narrows.server.visit import Visit

# How much more urgent the priority tier is; waiting counts too (Policy.patience), so that nobody starves.
_PRIORITY = 8

# The longest idempotency key: what the ledger has room for, and longer than any scheme of naming needs.
_LONGEST_KEY = 255

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Plan:
    """A request in the engine's words, and what will tell its answer."""

    jobs: Sequence[Job]
    answer: Answer
    stream: bool
    tier: Tier


class Service:
    """Everything that a route needs; one a server."""

    def __init__(self, backends: Sequence[Backend], ledger: Ledger, settings: Settings) -> None:
        self.backends = {backend.info.name: backend for backend in backends}
        self.ledger, self.settings, self.threads = ledger, settings, Threads()
        self.metrics = Metrics(backends)
        self.lifecycle = Lifecycle(settings.most_requests, self.metrics)

    @staticmethod
    def of(request: Request) -> Service:
        """The service of the application that was asked."""
        service: Service = request.app.state.service
        return service

    def backend(self, name: str) -> Backend:
        """The model of this name. 404 for one that is not served."""
        if name in self.backends:
            return self.backends[name]
        near = difflib.get_close_matches(name, self.backends, n=len(self.backends), cutoff=0) or [*self.backends]
        raise ApiError(
            404,
            f"the model {name[:200]!r} is not served here; ask for {' or '.join(map(repr, near))}.",
            code="model_not_found",
            param="model",
        )

    def check_scope(self, request: Request, scope: str) -> None:
        """403 for a key that is not good for this."""
        if not Visit.of(request.scope).owner.may(scope):
            raise ApiError(403, f"this key is not good for this; use one with the scope {scope!r}.")

    async def answer(self, request: Request, model: str, plan: Callable[[Backend], Plan]) -> Response:
        """Run what `plan` makes of the request, which happens in a thread, and deliver its answer."""
        self.check_scope(request, "inference")
        visit = Visit.of(request.scope)
        backend = self.backend(model)
        self.lifecycle.enter()
        try:
            made = await self.prepared(plan, backend)
            wanted = Wanted(
                request_id=visit.id,
                model=model,
                endpoint=visit.path,
                protocol=visit.protocol,
                prompt=sum(len(job.prompt) for job in made.jobs),
                output=sum(job.parameters.max_tokens * job.parameters.n for job in made.jobs),
                tier=made.tier,
                began=visit.began,
                **await _attempt(request),
            )
            generation = Generation(backend, self.ledger, visit, made.answer, self.threads, self.lifecycle.pause)
            visit.model = model
            await generation.begin(wanted, made.jobs)
            self.lifecycle.under_way.add(generation)
        except BaseException:
            self.lifecycle.leave()
            raise
        kind = Stream if made.stream else Whole
        return kind(generation, visit, self.settings, self.threads, partial(self._close, generation))

    async def prepared(self, make: Callable[..., _Made], *arguments: Any) -> _Made:
        """What `make` returns, from a thread: long texts take their time. What it says is wrong is the request's
        fault."""
        try:
            return await self.threads.run("plans", make, *arguments)
        except NarrowsError as error:
            raise ApiError(400, str(error)) from None

    def _close(self, generation: Generation) -> None:
        self.lifecycle.under_way.discard(generation)
        self.lifecycle.leave()


def priority_of(tier: Tier) -> int:
    """How urgent a tier is to the engine."""
    return _PRIORITY if tier == "priority" else 0


def room(backend: Backend, prompt: Sequence[int], asked: int | None, default: int) -> int:
    """Tokens that a reply may have: what was asked for or the default, and no more than fit behind the prompt."""
    left = backend.info.context - len(prompt)
    if left < 1:
        raise ApiError(
            400,
            f"the prompt has {len(prompt):,} tokens and the model holds {backend.info.context:,} with the reply; "
            "shorten it.",
            code="context_length_exceeded",
        )
    return min(default if asked is None else asked, left)


async def _attempt(request: Request) -> dict[str, str]:
    """Where the client names its request: the name, and a fingerprint of what it asks under it."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return {}
    if not (0 < len(key) <= _LONGEST_KEY and key.isascii() and key.isprintable()):
        raise ApiError(400, f"the Idempotency-Key is not 1 to {_LONGEST_KEY} printable characters; give it such a one.")
    asked = sha256(f"{request.method} {request.url.path}\n".encode() + await request.body())
    return {"idempotency": key, "fingerprint": asked.hexdigest()}
