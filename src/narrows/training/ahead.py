"""Results made ahead in processes of their own, so that an accelerator does not wait for what one core prepares."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Generic, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_AHEAD = 2  # results waiting for each process: one to take, and one so that none runs dry

_inherited: Callable[[Any], Any]


class Ahead(Generic[Argument, Result]):
    """`function` of one argument after the other. The processes inherit it with all it holds, by fork."""

    def __init__(self, function: Callable[[Argument], Result], processes: int) -> None:
        self._most = _AHEAD * processes
        self._pool = ProcessPoolExecutor(processes, get_context("fork"), _inherit, (function,))

    def map(self, arguments: Iterable[Argument]) -> Iterator[Result]:
        """The results in their arguments' order; a function's exception is raised in its place."""
        waiting: deque[Future[Result]] = deque()
        for argument in arguments:
            waiting.append(self._pool.submit(_call, argument))
            if len(waiting) > self._most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def close(self) -> None:
        """End the processes; what they were working on is dropped."""
        self._pool.shutdown(cancel_futures=True)


def _inherit(function: Callable[[Any], Any]) -> None:
    global _inherited
    _inherited = function


def _call(argument: Any) -> Any:
    return _inherited(argument)
