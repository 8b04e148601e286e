"""A server that is killed at any moment: what it acknowledged is there, and what it had begun costs nothing.

1,000 moments in the soak.
"""

from __future__ import annotations

import time
from random import Random

from narrows.ledger.ledger import Ledger
from tests.draws import SOAK, occasion
from tests.ledger import worker
from tests.ledger.postgres import wait_until_left

POINTS = 1000 if SOAK else 20


def test_what_was_acknowledged_is_there_after_a_kill(url: str) -> None:
    now = occasion()
    random = Random(now)
    with Ledger.open(url) as ledger:
        key, _ = ledger.create_key("one")
    charged, acknowledged, lost = 0, 0, 0
    for point in range(POINTS):
        where = (now, point)
        name = f"p{point}"
        process, reader = worker.start(worker.serve, url, key, name)
        # Counted in what it has done, so that it comes to something on a slow machine too; at 0 it may be opening.
        before = worker.first_lines(reader, random.randrange(16))
        time.sleep(random.random() * 0.02)
        process.kill()
        said = worker.lines(reader, before)
        process.join()
        wait_until_left(url)
        begun = {words[1] for words in said if words[0] == "reserved"}
        settled = {words[1]: int(words[2]) for words in said if words[0] == "settled"}
        released = {words[1] for words in said if words[0] == "released"}
        with Ledger.open(url) as ledger:
            rows = {row.id: row for row in ledger.requests(limit=500) if row.id.startswith(f"{name}-")}
            spent = ledger.spending()[key.id] if rows or charged else None
            total = sum(one.cost for one in ledger.usage())
        paid = {row.id for row in rows.values() if row.state == "settled"}
        assert begun <= rows.keys(), where
        assert {request: rows[request].cost for request in settled} == settled, where
        assert all(rows[request].cost == worker.cost(request) for request in paid), where
        # What was committed and could not be said any more: one request of each thread at most.
        assert settled.keys() <= paid, where
        assert len(paid - settled.keys()) + len(rows.keys() - begun) <= worker.THREADS, where
        for row in rows.values():
            if row.id not in paid:
                assert (row.state, row.cost) == ("released", 0), where
                assert row.outcome == "lost" or row.id in released or row.outcome == "cancelled", where
                lost += row.outcome == "lost"
            assert row.id not in released or row.outcome == "cancelled", where
        charged += sum(rows[request].cost for request in paid)
        acknowledged += len(settled)
        assert total == charged, where
        assert spent is None or (spent.settled, spent.reserved) == (charged, 0), where
    print(f"\n{POINTS} kills: {acknowledged} acknowledged, {lost} lost")
    assert acknowledged
    assert lost
