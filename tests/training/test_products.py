"""The setting of float32 products: taken where it is wanted, and afterwards what it was."""

from collections.abc import Iterator

import pytest
import torch

from narrows.training.products import fast_products

MATMUL = torch.backends.mkldnn.matmul


@pytest.fixture(params=["as found", "ieee", "bf16"])
def before(request: pytest.FixtureRequest) -> Iterator[str]:
    """What was set before."""
    found = MATMUL.fp32_precision
    if request.param != "as found":
        MATMUL.fp32_precision = request.param
    yield MATMUL.fp32_precision
    MATMUL.fp32_precision = found


@pytest.mark.parametrize("wanted", [False, True])
def test_products_are_fast_within_and_as_before_behind(before: str, wanted: bool) -> None:
    with fast_products(wanted):
        assert MATMUL.fp32_precision == ("bf16" if wanted and torch.backends.mkldnn.is_available() else before)
    assert MATMUL.fp32_precision == before


def test_what_fails_within_leaves_nothing_behind(before: str) -> None:
    with pytest.raises(KeyError), fast_products(True):
        raise KeyError
    assert MATMUL.fp32_precision == before


def test_fast_products_are_products() -> None:
    """To BF16's eight bits, whatever the CPU has for them."""
    random = torch.Generator().manual_seed(0)
    x, y = torch.rand(40, 300, generator=random), torch.rand(300, 50, generator=random)
    with fast_products(True):
        got = x @ y
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, (x.double() @ y.double()).float(), rtol=2**-7, atol=0)
