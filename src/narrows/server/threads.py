"""Threads for what would keep the event loop waiting, by what they do: nobody queues behind what takes longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from anyio import CapacityLimiter, to_thread

_Made = TypeVar("_Made")

Purpose = Literal["keys", "ledger", "plans", "engine", "answers"]
"""To look a key up; to reserve and settle, where a locked ledger is waited for; to make a prompt of a request; to reach
an engine between two steps; to write a long answer."""

_EACH = 16


class Threads:
    """One server's; used on its event loop alone."""

    def __init__(self) -> None:
        self._limiters: dict[Purpose, CapacityLimiter] = {}

    async def run(self, purpose: Purpose, function: Callable[..., _Made], *arguments: Any) -> _Made:
        """What the function returns, from a thread of this purpose."""
        if purpose not in self._limiters:
            self._limiters[purpose] = CapacityLimiter(_EACH)
        return await to_thread.run_sync(function, *arguments, limiter=self._limiters[purpose])
