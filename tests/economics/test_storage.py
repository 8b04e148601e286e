"""The byte formulas are what histories really hold, in every precision."""

from __future__ import annotations

from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import narrows
from narrows.economics.storage import history_bytes, history_read, pool_bytes
from narrows.economics.work import decode_work
from narrows.engine.paged_history import PagedHistory
from narrows.model.config import ModelConfig
from narrows.model.precision import Precision
from narrows.model.presets import FLASH, PRO, TINY
from narrows.model.v32.config import V32
from tests.draws import scaled
from tests.parity.configurations import configurations


def held(history: PagedHistory) -> int:
    """Bytes of the tensors themselves."""
    tensors = [*history.entries.values(), *history.recent.values()]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@given(configurations(), st.integers(1, 4), st.integers(0, 6), st.sampled_from([*Precision]))
@settings(max_examples=scaled(30))
def test_a_pool_is_as_large_as_the_formula_says(
    config: ModelConfig, slots: int, blocks: int, precision: Precision
) -> None:
    if precision is Precision.OFFICIAL and config.index_head_dim % 32:
        precision = Precision.BF16  # FP4 keys cannot have such widths
    history = PagedHistory(config, slots=slots, blocks=blocks, precision=precision)
    state = pool_bytes(config, 0, precision)
    block = pool_bytes(config, history.block_tokens, precision) - state
    assert held(history) == blocks * block + slots * state


@pytest.mark.parametrize("config", [PRO, FLASH])
def test_a_block_and_a_state_of_the_published_models(config: ModelConfig) -> None:
    history = PagedHistory(config, slots=1, blocks=2, precision=Precision.OFFICIAL)
    assert held(history) == pool_bytes(config, 2 * history.block_tokens)


def test_the_engine_counts_the_same() -> None:
    model = narrows.load()
    with closing(model.engine):
        table = 4 * -(-model.config.max_position_embeddings // 128)  # numbers of blocks, which no formula counts
        for tokens in (1, 128, 129, 10_000):
            assert model.history_bytes(tokens) - table == pool_bytes(model.config, tokens, Precision.OFFICIAL)


def test_a_history_is_its_pool_but_for_what_rounds_up() -> None:
    for config in (PRO, FLASH, V32):
        for context in (1 << 17, 1 << 20):
            assert history_bytes(config, context) == pytest.approx(pool_bytes(config, context), rel=0.035)
            assert history_bytes(config, context) <= pool_bytes(config, context)
    assert pool_bytes(V32, 65) == pool_bytes(V32, 128) == history_bytes(V32, 128)  # blocks of 64


@given(st.sampled_from([TINY, PRO, V32]), st.integers(1, 200_000))
def test_what_is_read_is_what_is_multiplied(config: ModelConfig, context: int) -> None:
    """Rows that attention and indexer read, from the bytes, are those that they multiply with, from the operations."""
    rows = {read.component: read.bytes for read in history_read(config, context, Precision.BF16)}
    products = {product.name: product.macs for product in decode_work(config, context)}
    if isinstance(config, ModelConfig):
        per_row = 2 * config.num_attention_heads * config.head_dim  # as keys and as values
        for name in ("window", "CSA entries", "HCA entries"):
            assert rows.get(name, 0) // (2 * config.head_dim) == products[name] // per_row
        keys, topk = context // config.csa_ratio, config.index_topk
        scored = products["scores"] // (config.index_n_heads * config.index_head_dim)
    else:
        latent = config.kv_lora_rank + config.qk_rope_head_dim
        per_row = config.num_attention_heads * (latent + config.kv_lora_rank)
        assert rows["selected tokens"] // (2 * latent) == products["selected tokens"] // per_row
        keys, topk = context, config.index_topk
        scored = products["scores"] // (config.index_n_heads * config.index_head_dim)
    # Scores of keys among which there is nothing to choose are counted as R does, and need not be read.
    assert rows.get("index keys", 0) // (2 * config.index_head_dim) == (scored if keys > topk else 0)


def test_each_precision_of_the_predecessor() -> None:
    plain = 61 * (512 + 64 + 128)
    assert history_bytes(V32, 10, Precision.FLOAT32) == 10 * 4 * plain
    assert history_bytes(V32, 10, Precision.BF16) == history_bytes(V32, 10, Precision.FP8) == 10 * 2 * plain
