"""ModelConfig: both dialects are read, what is written reads back, and every contradiction is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import DeepseekV4Config, PreTrainedConfig

from narrows.errors import NarrowsError
from narrows.model.config import ModelConfig
from narrows.model.presets import FLASH, PRESETS, TINY
from tests.draws import draws
from tests.parity.configurations import Case, cases, for_each_draw


@pytest.mark.parametrize("name", PRESETS)
def test_presets_read_back_in_both_dialects(name: str) -> None:
    config = PRESETS[name]
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


@pytest.mark.parametrize("layout", ["psm", "spm"])
def test_how_the_middle_was_learned_reads_back_in_both_dialects(layout: str) -> None:
    """Published models do not say, and have the prefix first."""
    config = ModelConfig.from_dict(TINY.to_dict() | {"fim_layout": layout})
    assert config.fim_layout == layout
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert ModelConfig.from_dict(DeepseekV4Config(**config.to_dict()).to_dict()) == config
    silent = {name: value for name, value in config.to_dict().items() if name != "fim_layout"}
    assert ModelConfig.from_dict(silent).fim_layout == "psm"


def tiny(**changes: Any) -> dict[str, Any]:
    return {**TINY.to_dict(), **changes}


S, C, H = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, "compress_ratios has 5 entries; num_hidden_layers 3"),
        ({"num_hidden_layers": None}, "the field num_hidden_layers is missing"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a positive whole number, not True"),
        ({"compress_ratios": [0, 4, 128, 4, 4]}, "compress_ratios gives the MTP block a compressor"),
        (
            {"compress_ratios": [0, 4, 64, 4, 0]},
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
        ({"hidden_size": 10**18}, "hidden_size = 1000000000000000000: Input should be less than or equal to 262144"),
        ({"vocab_size": 10**30}, "vocab_size = 1000000000"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers is 1000000000"),
        ({"head_dim": 10**400, "partial_rotary_factor": 0.5}, "head_dim is 1000000000"),
        ({"sliding_window": 2**18, "max_position_embeddings": 4096}, "sliding_window 262144 exceeds max_position_emb"),
        ({"fim_layout": "pms"}, "fim_layout = 'pms': Input should be 'psm' or 'spm'"),
        ({"fim_layout": ["spm"]}, "fim_layout = ['spm']: Input should be 'psm' or 'spm'"),
        ({"bos_token_id": 1}, "bos_token_id and eos_token_id are both 1"),
        ({"num_hidden_layers": 5}, "compress_ratios has 5 entries; num_hidden_layers 5 + num_nextn_predict_layers 1"),
        ({"compress_rates": {C: 8, H: 8}}, "gives both kinds of compressor the ratio 8"),
        ({"compress_rate_csa": 8}, "known ratios: 0, 8, 128 as compress_rates or compress_rate_csa and _hca say"),
        ({"compress_rate_csa": 0}, "compress_rate_csa must be a positive whole number, not 0"),
        ({"partial_rotary_factor": float("nan")}, "partial_rotary_factor is nan"),
        ({"layer_types": S}, "layer_types must be a list of strings"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method is 'gptq'"),
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


YARN = {"rope_type": "yarn", "factor": 16, "original_max_position_embeddings": 65536}
BASES = {"main": {"rope_theta": 5000}, "compress": {"rope_theta": 77777, **YARN}}


def nested(**changes: Any) -> dict[str, Any]:
    """TINY with its RoPE bases and YaRN in `rope_parameters` only."""
    flat = ("rope_theta", "compress_rope_theta", "rope_scaling")
    return {name: value for name, value in tiny().items() if name not in flat} | {"rope_parameters": BASES} | changes


def test_bases_given_only_in_the_nested_settings_are_those() -> None:
    config = ModelConfig.from_dict(nested())
    assert (config.rope_theta, config.compress_rope_theta) == (5000, 77777)
    assert config.rope_scaling == TINY.rope_scaling
    assert ModelConfig.from_dict(nested(rope_theta=5000, compress_rope_theta=77777.0)) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": 10_000}, "rope_theta is 10000 but rope_parameters.main says 5000"),
        ({"compress_rope_theta": 160_000}, "compress_rope_theta is 160000 but rope_parameters.compress says 77777"),
        ({"rope_scaling": YARN | {"factor": 4}}, "rope_scaling and rope_parameters.compress describe different RoPE"),
        ({"rope_scaling": YARN | {"beta_fast": 31}}, "rope_scaling and rope_parameters.compress describe different"),
        ({"rope_scaling": {"type": "default"}}, "rope_scaling and rope_parameters.compress describe different RoPE"),
        ({"rope_parameters": {"compress": YARN}}, "rope_parameters must hold main and compress and nothing else"),
        ({"rope_parameters": {**BASES, "factor": 16}}, "rope_parameters must hold main and compress and nothing else"),
        ({"rope_parameters": {**BASES, "main": 3}}, "rope_parameters.main must be a JSON object, not 3"),
        ({"rope_parameters": {**BASES, "main": YARN}}, "rope_parameters.main must be plain RoPE"),
        ({"rope_parameters": {**YARN, "rope_theta": 5000}}, "rope_parameters has the setting 'rope_theta'"),
    ],
)
def test_what_is_said_twice_about_rope_agrees(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NarrowsError) as caught:
        ModelConfig.from_dict(nested(**changes))
    assert message in str(caught.value)


def test_rope_said_twice_and_alike_is_read() -> None:
    """Defaults that one side leaves out are no difference."""
    both = nested(rope_scaling={"type": "yarn", **YARN, "beta_fast": 32.0, "attention_factor": 1})
    assert ModelConfig.from_dict(both) == ModelConfig.from_dict(nested())
    assert ModelConfig.from_dict(tiny(rope_scaling=None, rope_parameters=YARN)) == TINY


def test_the_published_settings_of_rope_are_read() -> None:
    """Whole numbers where floats are meant, and a spelling of their own for the kind of scaling."""
    published = {
        "rope_theta": 10000,
        "compress_rope_theta": 160000,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 16,
            "original_max_position_embeddings": 65536,
            "type": "yarn",
        },
    }
    assert ModelConfig.from_dict(FLASH.to_dict() | published) == FLASH


@pytest.mark.parametrize(
    "settings",
    [
        {"mscale": 1.0},
        {"attn_factor": 3},
        {"beta_fast": 1, "beta_slow": 1},
        {"beta_fast": 1, "beta_slow": 2},
        {"factor": "16"},
        {"factor": True},
        {"factor": float("inf")},
        {"type": "linear"},
        {"original_max_position_embeddings": 65536.0},
    ],
)
def test_settings_of_yarn_that_v4_does_not_have_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(NarrowsError):
        ModelConfig.from_dict(tiny(rope_scaling=YARN | settings))


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-5, 200),
        st.integers(),
        st.just(10**400),
        st.floats(),
        st.sampled_from(["", "x", "yarn", "default", S, C, H, "hash_moe", "moe", "64"]),
    ),
    lambda value: st.one_of(
        st.lists(value, max_size=5),
        st.dictionaries(st.sampled_from(["main", "compress", *YARN, "rope_theta", "type", C, H, "x"]), value),
    ),
    max_leaves=6,
)
FIELDS = sorted({*tiny(), *DeepseekV4Config(**tiny()).to_dict(), "compress_rate_csa", "compress_rate_hca"})


@given(st.sampled_from(["official", "transformers"]), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=2))
def test_a_field_of_any_shape_is_read_or_refused_in_one_sentence(dialect: str, changes: dict[str, Any]) -> None:
    raw = tiny() if dialect == "official" else DeepseekV4Config(**tiny()).to_dict()
    assert_read_or_refused(raw | changes)


@given(st.sampled_from(["main", "compress"]), st.sampled_from([*YARN, "rope_theta", "partial_rotary_factor"]), JSON)
def test_a_nested_field_of_any_shape_is_read_or_refused_in_one_sentence(part: str, name: str, value: Any) -> None:
    assert_read_or_refused(nested(rope_parameters=BASES | {part: BASES[part] | {name: value}}))


def assert_read_or_refused(raw: dict[str, Any]) -> None:
    try:
        config = ModelConfig.from_dict(raw)
    except NarrowsError as error:
        refusal = str(error)
    else:
        assert ModelConfig.from_dict(config.to_dict()) == config
        return
    assert "\n" not in refusal
    assert len(refusal) < 400


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compress_ratios": 4}, "compress_ratios must be a list of whole numbers, not 4"),
        ({"compress_ratios": [0, True, 128, 4]}, "compress_ratios must be a list of whole numbers, not [0, True, 128"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be a JSON object, not 'yarn'"),
        ({"compress_rates": 3}, "compress_rates must be a JSON object, not 3"),
        ({"layer_types": 3}, "layer_types must be a list of strings, not 3"),
        ({"mlp_layer_types": 4}, "mlp_layer_types must be a list of strings, not 4"),
        ({"rope_parameters": [1]}, "rope_parameters must be a JSON object, not [1]"),
        ({"partial_rotary_factor": "x"}, "partial_rotary_factor must be a number, not 'x'"),
        ({"compress_rope_theta": 1}, "compress_rope_theta = 1: Input should be greater than 1"),
        ({"hidden_size": "64"}, "hidden_size = '64': Input should be a valid integer"),
        ({"hidden_size": 64.0}, "hidden_size = 64.0: Input should be a valid integer"),
        ({"swiglu_limit": float("inf")}, "swiglu_limit = inf: Input should be a finite number"),
        ({"n_shared_experts": True}, "n_shared_experts is True, but DeepSeek-V4 has 1"),
    ],
)
def test_fields_of_another_shape_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NarrowsError) as caught:
        ModelConfig.from_dict(tiny(**changes))
    assert message in str(caught.value)


@pytest.mark.parametrize(("right", "wrong"), [("hidden_size", "hidden_sizee"), ("swiglu_limit", "swiglu_limits")])
def test_misspelt_fields_are_refused(right: str, wrong: str) -> None:
    raw = tiny()
    raw[wrong] = raw.pop(right)
    with pytest.raises(NarrowsError, match=f"the field '{wrong}' is not known; did you mean {right}"):
        ModelConfig.from_dict(raw)


@pytest.mark.parametrize("dialect", ["official", "transformers"])
def test_fields_of_others_are_no_misspellings(dialect: str) -> None:
    """What transformers writes for any model, what older DeepSeek models have, and a second one beside the right."""
    raw = tiny() if dialect == "official" else DeepseekV4Config(**tiny()).to_dict()
    theirs = {name: 1 for name in PreTrainedConfig().to_dict() if name not in ("model_type", *raw)}
    older = {"qk_nope_head_dim": 64, "v_head_dim": 64, "kv_lora_rank": 512, "n_group": 8, "first_k_dense_replace": 3}
    assert ModelConfig.from_dict({**raw, **theirs, **older, "hidden_sizes": [1]}) == TINY
