"""The bytes that a decoded token must read, counted by hand and against the parameters that it uses."""

import pytest
import torch
from hypothesis import given, settings

from narrows.economics import measure
from narrows.economics.measure import read_bandwidth
from narrows.economics.storage import history_read
from narrows.economics.traffic import bytes_per_token, weights_read
from narrows.model.config import ModelConfig
from narrows.model.count import count
from narrows.model.precision import Precision
from narrows.model.presets import TINY
from tests.draws import scaled
from tests.parity.configurations import configurations


def test_the_tiny_configuration_by_hand() -> None:
    """Matrices as rows × columns of bytes (FP8), with one scale for 128 × 128, or half bytes, with one for 32."""
    hyper = 2 * 4 * (24 * 256 + 24 + 3)
    norms = 2 * 2 * 64
    attention = (32 * 64 + 1) + 2 * 32 + (128 * 32 + 1) + (32 * 64 + 1) + 2 * 32 + 2 * (64 * 64 + 1) + 4 * 4
    router = 2 * 4 * 64 + 16  # its bias, four floats, or in the hash layer two experts' numbers
    experts = 2 * 3 * (32 * 64 // 2 + 32 * 64 // 32)
    shared = 3 * (32 * 64 + 1)
    compressor = 2 * 2 * 64 * 64 + 4 * 4 * 64 + 2 * 32
    csa = compressor + (512 * 32 + 4) + 2 * 16 * 64 + compressor
    hca = 2 * 2 * 32 * 64 + 4 * 128 * 32 + 2 * 32
    ends = 2 * 64 + 2 * 64 + 4 * (4 * 256 + 4 + 1) + 2 * 512 * 64
    weights = 4 * (hyper + norms + attention + router + experts + shared) + 2 * csa + hca + ends
    assert weights_read(TINY, Precision.OFFICIAL) == weights

    entry, key = 24 + 2 * 8 + 8, 32 // 2 + 1
    read = [sum(one.bytes for one in history_read(TINY, context)) for context in (1, 40, 1000)]
    assert read[0] == 4 * entry  # its own, in every layer's window
    assert read[1] == 4 * 40 * entry + 2 * 10 * entry  # of ten entries all are read, and no key
    assert read[2] == 4 * 128 * entry + 2 * (16 * entry + 250 * key) + 7 * entry
    assert bytes_per_token(TINY, Precision.OFFICIAL, 999) == weights + read[2]


@given(configurations())
@settings(max_examples=scaled(20))
def test_in_float32_they_are_the_parameters_that_a_token_uses_and_its_rows_of_tables(config: ModelConfig) -> None:
    hashed = config.num_hash_layers
    biases = (config.num_hidden_layers - hashed) * config.n_routed_experts
    rows = 4 * config.hidden_size + 8 * hashed * config.num_experts_per_tok
    assert weights_read(config, Precision.FLOAT32) == 4 * (count(config).active + biases) + rows


def test_memory_is_read_at_a_speed_and_the_threads_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_READ", 1 << 20)
    threads = torch.get_num_threads()
    assert 1e8 < read_bandwidth(1) < 1e13
    assert torch.get_num_threads() == threads
