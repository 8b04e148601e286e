"""Step: the time of one step on the chips of a stage, part by part."""

from __future__ import annotations

from dataclasses import dataclass

SIDES = ("products", "weights", "history", "links", "latency")
"""What a step's time goes to. Weights and history are read from the same memory, while products are computed; links and
their latency come behind."""


@dataclass(frozen=True)
class Term:
    """One part of a step's time. `side`: which of SIDES it counts against; `terms`: how it comes about."""

    side: str
    name: str
    seconds: float
    terms: str


@dataclass(frozen=True)
class Step:
    """The time of one step on that chip of a stage that has most to do. `stages` follow each other; `reached` is the
    share of the roofline that is assumed, of everything but latency, which is assumed as it is."""

    parts: tuple[Term, ...]
    stages: int
    reached: float

    def of(self, side: str) -> float:
        """Seconds of one side at the roofline, in one stage."""
        return sum(part.seconds for part in self.parts if part.side == side)

    def shown(self, side: str) -> float:
        """Seconds of one side through all stages, as far as the roofline is reached."""
        return self.stages * self.of(side) / (1.0 if side == "latency" else self.reached)

    @property
    def stage_seconds(self) -> float:
        """From one set of rows to the next in a stage."""
        memory = self.of("weights") + self.of("history")
        return (max(self.of("products"), memory) + self.of("links")) / self.reached + self.of("latency")

    @property
    def seconds(self) -> float:
        """Through all stages."""
        return self.stages * self.stage_seconds

    @property
    def binds(self) -> str:
        """What a step waits for longest."""
        memory = max(("weights", "history"), key=self.of)
        computed = "products" if self.of("products") > self.of("weights") + self.of("history") else memory
        time = {computed: self.shown(computed), "links": self.shown("links"), "latency": self.shown("latency")}
        return max(time, key=lambda side: time[side])
