"""Every instruction set that this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ops.computed import INSTRUCTION_SETS, computed


# One setting for all draws of a test is meant, which is what hypothesis asks the scope for.
@pytest.fixture(scope="class", params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each of them."""
    with computed(request.param):
        yield


@pytest.fixture(scope="class", params=[*INSTRUCTION_SETS, "reference"])
def anything(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each of them, and the references."""
    with computed(request.param):
        yield
