"""A quarter of an hour of requests, a third of them cancelled midway: all comes back, and memory does not grow."""

from __future__ import annotations

import gc
import time
from random import Random

import psutil
import pytest

from benchmarks.real_source import source_tokens
from narrows.engine.engine import Engine
from narrows.engine.grammar import Grammar
from narrows.engine.limits import Limits
from narrows.engine.model import load
from narrows.engine.request import SamplingParameters
from narrows.engine.sequence import Finished
from narrows.engine.store import Prefixes
from tests.draws import occasion

SECONDS, REQUESTS = 15 * 60, 64
LEEWAY = 0.1
"""Of the resident memory, by which it may differ from what it was behind the second round."""


@pytest.mark.soak
def test_many_requests_leave_nothing_behind(tmp_path_factory: pytest.TempPathFactory) -> None:
    now = occasion()
    random = Random(now)
    model = load()
    text = source_tokens(model.tokenizer, 60_000)
    limits = Limits(memory=48 << 20, slots=8, drafts=2)
    prefixes = Prefixes(tmp_path_factory.mktemp("prefixes"), 64 << 20)
    resident: list[int] = []
    outcomes: dict[str, int] = {}
    with Engine(model.network, model.tokenizer, limits, prefixes, cache="official") as engine:
        grammar = Grammar.regex(engine.vocabulary, "[a-z ]{4,40}")
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            handles = []
            for _ in range(REQUESTS):
                start = random.choice((0, 0, 20_000, 40_000))
                prompt = [*text[start : start + random.randint(1, 2_000)], random.randrange(2, 4_096)]
                parameters = SamplingParameters(
                    max_tokens=random.randint(1, 60),
                    temperature=random.choice((0.0, 0.8)),
                    n=random.choice((1, 1, 1, 3)),
                )
                handles.append(
                    engine.submit(
                        prompt,
                        parameters,
                        priority=random.choice((0, 0, 0, 5)),
                        timeout=random.choice((None, None, None, 0.5)),
                        grammar=random.choice((None, None, grammar)),
                    )
                )
            readers = {handle: iter(handle) for handle in handles}
            for handle in random.sample(handles, REQUESTS // 3):
                for _ in range(random.randint(0, 5)):
                    next(readers[handle], None)
                handle.cancel()
            for events in readers.values():
                for event in events:
                    if isinstance(event, Finished):
                        assert event.error is None, (now, event.error)
                        outcomes[event.reason] = outcomes.get(event.reason, 0) + 1
            engine._call(engine._core.known.tree.clear)
            stats = engine.stats()
            assert (stats["free_slots"], stats["free_blocks"]) == (limits.slots, stats["blocks"]), (now, stats)
            assert (stats["known_blocks"], stats["snapshot_bytes"]) == (0, 0), (now, stats)
            gc.collect()
            resident.append(psutil.Process().memory_info().rss)
    assert len(resident) > 2
    print(f"\n{len(resident)} rounds of {REQUESTS}: {outcomes}; {stats}; resident {resident[1]:,} to {resident[-1]:,}")
    assert {"stop", "length", "cancelled", "deadline"} <= outcomes.keys()
    assert max(resident[2:]) < (1 + LEEWAY) * resident[1], (now, resident)
