"""Whether the server takes requests, and which are under way."""

from __future__ import annotations

from narrows.server.errors import ApiError, CutOffError, overloaded
from narrows.server.generation import Generation
from narrows.server.metrics import Metrics

# Between two pieces of a stream at least, and pieces of all streams in a second.
_PAUSE_SECONDS = 0.01
_MOST_PIECES = 800


class Lifecycle:
    """Counts places. On the event loop alone."""

    def __init__(self, most: int, metrics: Metrics) -> None:
        """`most`: requests under way or waiting at once."""
        self._most, self._metrics = most, metrics
        self._taken = 0
        self.draining = False
        self.under_way: set[Generation] = set()

    def enter(self) -> None:
        """Take a place. `ApiError` where there is none, or where the server is about to end."""
        self.check()
        if self._taken >= self._most:
            raise overloaded(f"{self._most} requests are under way or waiting here; try again a little later.")
        self._taken += 1
        self._metrics.open.inc()

    def leave(self) -> None:
        """Give the place back."""
        self._taken -= 1
        self._metrics.open.dec()

    def pause(self) -> float:
        """Seconds between two pieces of one stream: as many as a reader sees, and together no more than a loop can tell
        beside an engine's steps."""
        return max(_PAUSE_SECONDS, len(self.under_way) / _MOST_PIECES)

    def drain(self) -> None:
        """Take no more requests; those that are under way go on."""
        self.draining = True

    def cut(self) -> None:
        """End what is under way."""
        for generation in self.under_way:
            generation.leave(CutOffError(503, "the server ended before this answer did; ask again, or another server."))

    def check(self) -> None:
        """`ApiError` where the server is about to end."""
        if self.draining:
            raise ApiError(503, "the server is about to end; try another, or this one later.", retry_after=5)
