"""What benchmarks.efficiency measures holds what is counted, behind histories that no step can tell from real ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.efficiency import NEW, OLD, Draw, fill, history_of, made, random_rows
from narrows.economics.storage import history_bytes
from narrows.economics.work import AnyConfig
from narrows.model.config import ModelConfig
from narrows.model.count import cache_bytes
from narrows.model.history import ContiguousHistory, EntryRows, Key, RecentRows
from narrows.model.precision import Precision
from narrows.model.segments import Segment
from narrows.model.v32.config import V32Config
from tests.economics import test_counter as small

SMALL = pytest.mark.parametrize("config", [small.OLD, small.NEW], ids=["V3.2", "V4"])


def test_the_configurations_are_valid_and_equally_wide_and_deep() -> None:
    assert V32Config(**OLD.model_dump()) == OLD
    assert ModelConfig(**NEW.model_dump()) == NEW
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "moe_intermediate_size", "num_experts_per_tok"):
        assert getattr(OLD, name) == getattr(NEW, name)
    assert OLD.n_shared_experts == 1


@SMALL
@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float32, Precision.FLOAT32), (torch.bfloat16, Precision.BF16)], ids=str
)
def test_a_history_takes_the_bytes_that_are_counted(
    config: AnyConfig, dtype: torch.dtype, precision: Precision
) -> None:
    context = 1024
    history = history_of(config, dtype)
    fill(history, context - 8, 8, random_rows(0))
    unfinished = 0
    if isinstance(config, ModelConfig):  # a ring has a row more than must be kept
        ring_rows = [rows for (_, name), rows in history.recent.items() if name != "window"]
        unfinished = cache_bytes(config, precision).unfinished + sum(4 * rows.shape[-1] for rows in ring_rows)
    assert history.bytes() == history_bytes(config, context, precision) + unfinished


@SMALL
@pytest.mark.parametrize("past", [40, 253, 320])
@torch.no_grad()
def test_a_filled_history_is_the_real_one(config: AnyConfig, past: int) -> None:
    """Steps behind it, over ends of every compressor's windows, give the same logits to the bit."""
    torch.manual_seed(0)
    network, tokens = made(config, torch.float64), torch.arange(past + 40) * 37 % config.vocab_size
    real, filled = history_of(config, torch.float64), history_of(config, torch.float64)
    network(tokens[:past], torch.arange(past), [Segment(past)], real)
    fill(filled, past, 40, rows_of(real))
    kept = filled.bytes()
    for place in range(past, past + 40):
        token, position, segments = tokens[place : place + 1], torch.tensor([place]), [Segment(1, place)]
        wanted, got = (network.logits(network(token, position, segments, one)) for one in (real, filled))
        assert torch.equal(got, wanted)
    assert filled.bytes() == kept


def rows_of(history: ContiguousHistory) -> Draw:
    """The rows that it holds, and numbers that would be noticed for the room behind them."""
    snapshot = history.snapshot()

    def draw(key: Key, kept: RecentRows | EntryRows, count: int) -> Tensor:
        if isinstance(kept, RecentRows):
            return snapshot.recent[key][-count:] if count else snapshot.recent[key][:0]
        room = torch.full((count - snapshot.length // kept.ratio, kept.format.width), 1e3, dtype=kept.format.dtype)
        return torch.cat((snapshot.entries[key], room))

    return draw
