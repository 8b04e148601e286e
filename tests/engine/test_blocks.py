"""Blocks are free, or held as often as they were taken: counted beside a plain dictionary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.engine.blocks import BlockPool


@given(actions=st.lists(st.tuples(st.sampled_from(("allocate", "share", "release")), st.integers(0, 9)), max_size=60))
def test_holders_are_counted(actions: list[tuple[str, int]]) -> None:
    pool, held = BlockPool(6), dict.fromkeys(range(6), 0)
    for action, number in actions:
        taken = sorted(block for block, holders in held.items() if holders)
        if action == "allocate":
            free = 6 - len(taken)
            if number > free:
                with pytest.raises(ValueError, match=f"{number} blocks are wanted and {free} are free"):
                    pool.allocate(number)
            else:
                new = pool.allocate(number)
                assert len(set(new)) == number
                assert not set(new) & set(taken)
                held.update(dict.fromkeys(new, 1))
        elif number < len(taken):
            block = taken[number]
            held[block] += 1 if action == "share" else -1
            getattr(pool, action)([block])
        elif number < 6 and not held[number]:
            with pytest.raises(ValueError, match=f"block {number} is free"):
                getattr(pool, action)([number])
        assert pool.free == sum(not holders for holders in held.values())
        assert all(pool.holders(block) == holders for block, holders in held.items())
