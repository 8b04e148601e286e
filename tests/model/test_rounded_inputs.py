"""`Network.round_inputs`: which products read BF16, and that they compute with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from narrows.model import indexer
from narrows.model.config import ModelConfig
from narrows.model.history import ContiguousHistory
from narrows.model.network import Network, positions_of
from narrows.model.precision import Precision
from narrows.model.presets import TINY
from narrows.model.segments import Segment
from narrows.ops.experts import experts
from narrows.ops.index_topk import index_topk
from narrows.ops.pages import Pages
from narrows.ops.row_format import FP4Keys, hadamard
from narrows.ops.tiles import Tiles
from tests.parity.configurations import randomised

ROUNDED = re.compile(
    r"attn\.(wq_a|wq_b|wkv|wo_a|wo_b)\.|indexer\.(wq_b|weights_proj)\.|ffn\.(shared_)?experts\.|^head\.|[eh]_proj\."
)
EXACT = re.compile(r"compressor\.(wkv|wgate)\.|ffn\.gate\.")
PRODUCTS = ("linear", "mm", "bmm", "matmul")


def is_bf16(x: Tensor) -> bool:
    return torch.equal(x.bfloat16().to(x.dtype), x)


class Products(TorchFunctionMode):
    """Of every parameter that a product reads, whether all it was multiplied with was in BF16."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._names = {p.untyped_storage().data_ptr(): name for name, p in network.named_parameters()}
        self.seen: dict[str, bool] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in PRODUCTS:
            name = self._names.get(args[1].untyped_storage().data_ptr())
            if name is not None:
                self.seen[name] = self.seen.get(name, True) and is_bf16(args[0])
        return func(*args, **kwargs or {})


def make_network(config: ModelConfig = TINY) -> Network:
    return randomised(Network(config), torch.Generator().manual_seed(0)).eval()


@torch.no_grad()
def run(network: Network, precision: Precision | None = None) -> tuple[Tensor, Tensor]:
    """Logits of 200 tokens, and those of the MTP block."""
    tokens = torch.randint(network.config.vocab_size, (200,), generator=torch.Generator().manual_seed(1))
    history = ContiguousHistory(network.config, precision=precision)
    segments = [Segment(200)]
    positions = positions_of(segments)
    streams = network(tokens, positions, segments, history)
    ahead = network.mtp_forward(tokens.roll(-1), positions, segments, streams)
    return network.logits(streams), network.mtp_logits(ahead)


def test_these_products_and_no_others_read_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    def watched(queries: Tensor, *arguments: Any, **options: Any) -> Tensor:
        turned.append(options["rounds_queries"])
        return index_topk(queries, *arguments, **options)

    turned: list[bool] = []
    monkeypatch.setattr(indexer, "index_topk", watched)
    for rounded in (False, True):
        network = make_network()
        if rounded:
            network.round_inputs()
        turned.clear()
        with Products(network) as products:
            run(network)
        names = {name for name, _ in network.named_parameters()}
        for name in names:
            if ROUNDED.search(name):
                assert products.seen[name] is rounded, name
            elif EXACT.search(name):
                assert not products.seen[name], name
            else:
                assert not products.seen.get(name, False), name
        assert turned == [rounded] * 2


def test_a_network_rounds_nothing_unless_it_is_told_to() -> None:
    exact, rounded = make_network(), make_network()
    rounded.round_inputs()
    for precision in (None, Precision.BF16, Precision.OFFICIAL):
        for before, after in zip(run(exact, precision), run(rounded, precision), strict=True):
            assert not torch.equal(before, after)
            assert 0 < (before - after).norm() / before.norm() < 0.2


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 6), st.floats(0.1, 3.0))
def test_experts_read_bf16_twice(seed: int, rows: int, count: int, limit: float) -> None:
    """Against a transcription token by token, in float64, where nothing else is rounded."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=random)

    k = int(torch.randint(1, count + 1, (), generator=random))
    x, w13, w2, weights = draw(rows, 5), draw(count, 6, 5), draw(count, 5, 3), draw(rows, k)
    chosen = torch.rand(rows, count, generator=random).argsort(-1)[:, :k]
    expected = torch.zeros(rows, 5, dtype=torch.float64)
    for row in range(rows):
        for weight, expert in zip(weights[row], chosen[row], strict=True):
            gate, up = (w13[expert] @ x[row].bfloat16().double()).split(3)
            hidden = F.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)
            expected[row] += weight * (w2[expert] @ hidden.bfloat16().double())
    found = experts(x, weights, chosen, w13, w2, limit, rounds_inputs=True)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)  # sums in another order may round elsewhere
    assert (found - expected).abs().median() < 1e-12


def test_rounded_experts_pass_gradients_straight_through() -> None:
    """The weights' are exactly those of what was read; x gets what it would if it were read as it is."""
    random = torch.Generator().manual_seed(0)
    x, w13, w2, weights = (
        torch.randn(*shape, generator=random, dtype=torch.float64).requires_grad_()
        for shape in ((7, 5), (3, 6, 5), (3, 5, 3), (7, 2))
    )
    chosen = torch.rand(7, 3, generator=random).argsort(-1)[:, :2]

    def through(value: Tensor) -> Tensor:
        return value + (value.bfloat16().double() - value).detach()

    expected = torch.zeros(7, 5, dtype=torch.float64)
    for choice in range(2):
        both = torch.einsum("nd,nfd->nf", through(x), w13[chosen[:, choice]])
        gate, up = both.split(3, dim=-1)
        inner = through(F.silu(gate.clamp(max=10.0)) * up.clamp(-10.0, 10.0))
        expected = expected + weights[:, choice, None] * torch.einsum("nf,ndf->nd", inner, w2[chosen[:, choice]])
    upper = torch.randn(7, 5, generator=random, dtype=torch.float64)
    wanted = torch.autograd.grad(expected, (x, w13, w2, weights), upper)
    found = experts(x, weights, chosen, w13, w2, 10.0, rounds_inputs=True)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found, (x, w13, w2, weights), upper), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def plain(keys: Tensor) -> tuple[Pages, Callable[[Tensor], Tensor]]:
    return Pages(keys, torch.zeros(1, 1, dtype=torch.int64), len(keys)), lambda queries: queries


def turned(keys: Tensor) -> tuple[Pages, Callable[[Tensor], Tensor]]:
    stored = FP4Keys(keys.shape[1])
    return Pages(stored.encode(keys), torch.zeros(1, 1, dtype=torch.int64), len(keys), stored), hadamard


@pytest.mark.parametrize("kept", [plain, turned])
@given(st.integers(0, 2**31))
def test_queries_are_rounded_where_the_keys_lie(
    kept: Callable[[Tensor], tuple[Pages, Callable[[Tensor], Tensor]]], seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    queries, weights = torch.randn(30, 3, 32, generator=random), torch.randn(30, 3, generator=random)
    pages, turn = kept(torch.randn(40, 32, generator=random))
    visible = torch.randint(0, 41, (30,), generator=random)
    tiles = Tiles.cut([30], 64, torch.device("cpu"))
    found = index_topk(queries, weights, pages, visible, tiles, k=8, most=40, rounds_queries=True)
    keys = pages.gather(torch.zeros(1, dtype=torch.int64), torch.arange(40), torch.float32)
    rounded = turn(queries).bfloat16().float()
    again = plain(keys)[0]
    assert torch.equal(found, index_topk(rounded, weights, again, visible, tiles, k=8, most=40))
