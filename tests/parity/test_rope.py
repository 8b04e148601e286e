"""RoPE's frequencies and angles are transformers', to the bit, up to the last position."""

from __future__ import annotations

import pytest
import torch
from transformers import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4RotaryEmbedding

from narrows.model.config import ModelConfig
from narrows.model.presets import FLASH, PRO, TINY
from narrows.ops.rope import rope_angles, rope_frequencies
from tests.parity.configurations import Case, Tally, cases


def their_rotary(config: ModelConfig) -> DeepseekV4RotaryEmbedding:
    return DeepseekV4RotaryEmbedding(DeepseekV4Config(**config.to_dict()))


def frequencies_of(config: ModelConfig) -> dict[str, torch.Tensor]:
    dims = config.qk_rope_head_dim
    return {
        "main": rope_frequencies(dims, config.rope_theta),
        "compress": rope_frequencies(dims, config.compress_rope_theta, config.rope_scaling),
    }


def assert_equal_to_the_bit(config: ModelConfig) -> None:
    theirs = their_rotary(config)
    last = config.max_position_embeddings - 1
    positions = torch.tensor([0, 1, 127, 65_535, last // 2, last])
    for kind, ours in frequencies_of(config).items():
        assert ours.dtype == torch.float32
        assert torch.equal(ours, getattr(theirs, f"{kind}_inv_freq")), kind
        assert getattr(theirs, f"{kind}_attention_scaling") == 1.0
        cos, sin = rope_angles(positions, ours)
        their_cos, their_sin = theirs(torch.zeros(1), positions[None], layer_type=kind)
        assert cos.dtype == sin.dtype == torch.float32
        assert torch.equal(cos, their_cos[0]), kind
        assert torch.equal(sin, their_sin[0]), kind


@pytest.mark.parametrize("config", [FLASH, PRO, TINY, FLASH.model_copy(update={"rope_scaling": None})])
def test_presets(config: ModelConfig) -> None:
    assert config.max_position_embeddings - 1 == 1_048_575
    assert_equal_to_the_bit(config)


def test_drawn_configurations() -> None:
    tally = Tally("RoPE", 0.0, mechanisms=("YaRN", "no YaRN"))

    def check(case: Case) -> None:
        tally.decided(case, 1.0)
        assert_equal_to_the_bit(case.config)

    tally.run(cases(longest=10), check)
    tally.finish()


def test_yarn_stretches_what_turns_slowly_and_leaves_the_rest() -> None:
    """So that the comparison above is not one of two unscaled tables."""
    plain = rope_frequencies(64, 160_000.0)
    stretched = rope_frequencies(64, 160_000.0, FLASH.rope_scaling)
    ratio = plain / stretched
    assert ratio[0] == 1.0
    assert ratio[-1] == pytest.approx(16.0)
    assert (ratio.diff() >= -1e-4).all()
