"""Results made ahead: in their order, and an exception where it belongs."""

import pytest

from narrows.training.ahead import Ahead


def test_results_come_in_order_and_an_exception_in_its_place() -> None:
    held = {number: number**2 for number in range(40)}  # what the processes inherit
    del held[30]
    ahead = Ahead(held.__getitem__, 2)
    try:
        assert list(ahead.map(range(30))) == [number**2 for number in range(30)]
        results = ahead.map(range(28, 40))
        assert [next(results), next(results)] == [28**2, 29**2]
        with pytest.raises(KeyError):
            next(results)
    finally:
        ahead.close()
