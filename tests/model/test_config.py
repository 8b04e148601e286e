"""ModelConfig: both dialects are read, what is written reads back, and every contradiction is named."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import DeepseekV4Config

from narrows.errors import NarrowsError, UsageError
from narrows.model.config import ModelConfig
from narrows.model.presets import PRESETS, TINY, preset
from tests.draws import draws
from tests.parity.configurations import Case, cases, for_each_draw


@pytest.mark.parametrize("name", PRESETS)
def test_presets_read_back_in_both_dialects(name: str) -> None:
    config = preset(name)
    assert ModelConfig.from_dict(config.to_dict()) == config
    theirs = DeepseekV4Config(**config.to_dict())
    assert ModelConfig.from_dict(theirs.to_dict()) == config


def test_any_configuration_reads_back_in_both_dialects() -> None:
    seen = []

    def check(case: Case) -> None:
        assert ModelConfig.from_dict(case.config.to_dict()) == case.config
        theirs = DeepseekV4Config(**case.config.to_dict())
        assert ModelConfig.from_dict(theirs.to_dict()) == case.config
        assert theirs.qk_rope_head_dim == case.config.qk_rope_head_dim
        seen.append(case)

    for_each_draw("config", cases(longest=2), check)
    assert len(seen) >= draws() // 2


def tiny(**changes: Any) -> dict[str, Any]:
    return {**TINY.to_dict(), **changes}


S, C, H = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, "compress_ratios has 5 entries; num_hidden_layers 3"),
        ({"num_hidden_layers": None}, "num_hidden_layers must be a positive whole number, not None"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a positive whole number, not True"),
        ({"compress_ratios": [0, 4, 128, 4, 4]}, "compress_ratios gives the MTP block a compressor"),
        (
            {"compress_ratios": [0, 4, 64, 4]},
            "compress_ratios names the unknown layer kind 64 (known ratios: 0, 4, 128)",
        ),
        ({"layer_types": [S, C, "linear_attention", C]}, "layer_types names the unknown layer kind 'linear_attention'"),
        ({"layer_types": [S, C, C, C]}, "layer_types and compress_ratios describe different layers"),
        ({"compress_ratios": None}, "neither compress_ratios nor layer_types says what kind each layer is"),
        ({"compress_rates": {"linear": 2}}, "compress_rates names the unknown layer kind 'linear'"),
        ({"compress_rate_csa": 8, "compress_rates": {C: 4}}, "compress_rate_csa is 8 but compress_rates says 4"),
        (
            {"mlp_layer_types": ["moe", "hash_moe", "moe", "moe"]},
            "mlp_layer_types must be hash_moe layers followed by moe",
        ),
        ({"mlp_layer_types": ["hash_moe"] * 2 + ["moe"] * 2}, "num_hash_layers is 1 but mlp_layer_types names 2"),
        ({"num_hash_layers": 9}, "num_hash_layers 9 exceeds num_hidden_layers 4"),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim 7 must be even and at most head_dim 32"),
        ({"qk_rope_head_dim": 64}, "qk_rope_head_dim 64 must be even and at most head_dim 32"),
        ({"partial_rotary_factor": 0.5}, "qk_rope_head_dim is 8 but partial_rotary_factor gives 16"),
        ({"num_attention_heads": 3}, "num_attention_heads 3 is not a multiple of o_groups 2"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok 5 exceeds n_routed_experts 4"),
        ({"index_head_dim": 4}, "index_head_dim 4 is smaller than qk_rope_head_dim 8"),
        ({"eos_token_id": 512}, "eos_token_id 512 lies outside vocab_size 512"),
        ({"trained_context": 2_000_000}, "trained_context 2000000 exceeds max_position_embeddings 1048576"),
        ({"hidden_size": -4}, "hidden_size = -4: Input should be greater than 0"),
        ({"hidden_size": "wide"}, "hidden_size = 'wide': Input should be a valid integer"),
        ({"hidden_size": None}, "the field hidden_size is missing; add it"),
        ({"model_type": "deepseek_v3"}, "model_type is 'deepseek_v3', but DeepSeek-V4 has 'deepseek_v4'"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 4, but DeepSeek-V4 has 1"),
        ({"n_shared_experts": 2}, "n_shared_experts is 2, but DeepSeek-V4 has 1"),
        ({"scoring_func": "softmax"}, "scoring_func is 'softmax', but DeepSeek-V4 has 'sqrtsoftplus'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True, but DeepSeek-V4 has False"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "RoPE scaling 'linear' is not known here"),
        ({"rope_scaling": {"type": "yarn", "factor": 16}}, "YaRN needs original_max_position_embeddings"),
        (
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 16,
                    "original_max_position_embeddings": 8,
                    "attention_factor": 2,
                }
            },
            "attention_factor is 2, but DeepSeek-V4's YaRN has none",
        ),
        (
            {"num_nextn_predict_layers": 2},
            "compress_ratios has 5 entries; num_hidden_layers 4 + num_nextn_predict_layers 2",
        ),
    ],
)
def test_contradictions_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NarrowsError) as caught:
        ModelConfig.from_dict(tiny(**changes), source="some/config.json")
    assert str(caught.value).startswith("some/config.json: ")
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="there is no preset 'pro'; choose one of deepseek-v4-pro, deepseek-v4-flash"):
        preset("pro")
