"""config.json in its two dialects, official and transformers', to ModelConfig's fields and back.

Everything that both dialects can say twice (layer kinds, hash layers, RoPE dims and bases, ratios, YaRN) must agree
with itself; every switch that V4 does not have must stand where V4 has it. Violations raise ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from reprlib import repr as short
from typing import Any

from narrows.model.config_rope import rope_fields
from narrows.model.config_values import objects, same, strings, whole, whole_numbers
from narrows.model.layer_kind import LayerKind

_DEFAULT_RATIOS = {LayerKind.CSA: 4, LayerKind.HCA: 128}

# Read and written under the same name in both dialects.
PLAIN_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_nextn_predict_layers",
    "max_position_embeddings",
    "trained_context",
    "fim_layout",
    "num_attention_heads",
    "head_dim",
    "q_lora_rank",
    "o_groups",
    "o_lora_rank",
    "sliding_window",
    "index_n_heads",
    "index_head_dim",
    "index_topk",
    "rope_theta",
    "compress_rope_theta",
    "moe_intermediate_size",
    "n_routed_experts",
    "num_experts_per_tok",
    "routed_scaling_factor",
    "swiglu_limit",
    "hc_mult",
    "hc_sinkhorn_iters",
    "hc_eps",
    "rms_norm_eps",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
)

# What the architecture leaves no choice about: a file may say it, but only so.
FIXED_FIELDS: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "num_key_value_heads": 1,
    "n_shared_experts": 1,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
}

# Read by functions of their own.
OTHER_FIELDS = (
    "num_hash_layers",
    "mlp_layer_types",
    "compress_ratios",
    "compress_rates",
    "compress_rate_csa",
    "compress_rate_hca",
    "layer_types",
    "qk_rope_head_dim",
    "partial_rotary_factor",
    "rope_scaling",
    "rope_parameters",
    "quantization_config",
)


def fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """ModelConfig's keyword arguments from a config.json of either dialect."""
    _refuse_misspelt(raw)
    for name, value in FIXED_FIELDS.items():
        if not same(raw.get(name, value), value):
            raise ValueError(f"{name} is {short(raw[name])}, but DeepSeek-V4 has {value!r}")
    out = {name: raw[name] for name in PLAIN_FIELDS if raw.get(name) is not None}
    quantisation = objects(raw, "quantization_config").get("quant_method")
    if quantisation not in (None, "fp8"):
        raise ValueError(f"quant_method is {short(quantisation)}, but of quantised models only fp8 can be read")
    layers = whole(raw, "num_hidden_layers", least=1)
    ratios = _ratios(raw)
    out["csa_ratio"], out["hca_ratio"] = ratios[LayerKind.CSA], ratios[LayerKind.HCA]
    out["layer_types"] = _layer_types(raw, layers, ratios)
    out["num_hash_layers"] = _hash_layers(raw, layers)
    return out | rope_fields(raw)


def official(config: Mapping[str, Any]) -> dict[str, Any]:
    """The official config.json of a ModelConfig's dump; transformers reads it too.

    Ratios other than 4 and 128 have no official spelling: then transformers' own fields stand beside.
    """
    ratios = {LayerKind.CSA: config["csa_ratio"], LayerKind.HCA: config["hca_ratio"]}
    out: dict[str, Any] = {"architectures": ["DeepseekV4ForCausalLM"], **FIXED_FIELDS}
    out |= {name: config[name] for name in PLAIN_FIELDS if config[name] is not None}
    out["qk_rope_head_dim"] = config["qk_rope_head_dim"]
    out["num_hash_layers"] = config["num_hash_layers"]
    out["compress_ratios"] = [ratios.get(kind, 0) for kind in config["layer_types"]]
    out["compress_ratios"] += [0] * config["num_nextn_predict_layers"]
    if ratios != _DEFAULT_RATIOS:
        out["layer_types"] = list(config["layer_types"])
        out["compress_rates"] = {str(kind): ratio for kind, ratio in ratios.items()}
    if config["rope_scaling"] is not None:
        out["rope_scaling"] = {"type": "yarn", **config["rope_scaling"]}
    return out


def _refuse_misspelt(raw: Mapping[str, Any]) -> None:
    """Other tools write many fields beside ours, so that only what looks like one that is not there is suspect."""
    known = {*PLAIN_FIELDS, *FIXED_FIELDS, *OTHER_FIELDS}
    absent = sorted(known - raw.keys())
    for name in sorted(map(str, raw.keys() - known)):
        if meant := get_close_matches(name, absent, n=1, cutoff=0.9):
            raise ValueError(f"the field {short(name)} is not known; did you mean {meant[0]}?")


def _ratios(raw: Mapping[str, Any]) -> dict[LayerKind, int]:
    given = objects(raw, "compress_rates")
    rates = {_kind(name, "compress_rates", _DEFAULT_RATIOS): whole(given, name, least=1) for name in given}
    for kind, name in ((LayerKind.CSA, "compress_rate_csa"), (LayerKind.HCA, "compress_rate_hca")):
        if raw.get(name) is not None:
            rate = whole(raw, name, least=1)
            if rates.setdefault(kind, rate) != rate:
                raise ValueError(f"{name} is {rate} but compress_rates says {rates[kind]}")
    return _DEFAULT_RATIOS | rates


def _kind(name: str, source: str, known: Iterable[LayerKind]) -> LayerKind:
    if name not in tuple(known):
        raise ValueError(f"{source} names the unknown layer kind {short(name)} (known: {', '.join(known)})")
    return LayerKind(name)


def _layer_types(raw: Mapping[str, Any], layers: int, ratios: Mapping[LayerKind, int]) -> tuple[LayerKind, ...]:
    per_layer = _layer_ratios(raw, layers)
    if raw.get("layer_types") is not None:
        types = tuple(_kind(name, "layer_types", LayerKind) for name in strings(raw, "layer_types"))
        if per_layer is not None and [ratios.get(kind, 0) for kind in types] != per_layer:
            raise ValueError("layer_types and compress_ratios describe different layers")
        return types
    if per_layer is None:
        raise ValueError("neither compress_ratios nor layer_types says what kind each layer is")
    if ratios[LayerKind.CSA] == ratios[LayerKind.HCA] and any(per_layer):
        raise ValueError(
            f"compress_rates gives both kinds of compressor the ratio {ratios[LayerKind.CSA]}, so that compress_ratios "
            "cannot tell them apart; say layer_types"
        )
    kind_of = {0: LayerKind.SLIDING, ratios[LayerKind.HCA]: LayerKind.HCA, ratios[LayerKind.CSA]: LayerKind.CSA}
    for ratio in per_layer:
        if ratio not in kind_of:
            known = ", ".join(str(known) for known in sorted(kind_of))
            said = "" if ratios == _DEFAULT_RATIOS else " as compress_rates or compress_rate_csa and _hca say"
            raise ValueError(f"compress_ratios names the unknown layer kind {ratio!r} (known ratios: {known}{said})")
    return tuple(kind_of[ratio] for ratio in per_layer)


def _layer_ratios(raw: Mapping[str, Any], layers: int) -> list[int] | None:
    """compress_ratios without the MTP block's, if the file has them."""
    if raw.get("compress_ratios") is None:
        return None
    ratios = whole_numbers(raw, "compress_ratios")
    extra = 0 if raw.get("num_nextn_predict_layers") is None else whole(raw, "num_nextn_predict_layers", least=0)
    if len(ratios) != layers + extra:
        raise ValueError(
            f"compress_ratios has {len(ratios)} entries; "
            f"num_hidden_layers {layers} + num_nextn_predict_layers {extra} ask for {layers + extra}"
        )
    if any(ratios[layers:]):
        raise ValueError("compress_ratios gives the MTP block a compressor; its entry must be 0")
    return ratios[:layers]


def _hash_layers(raw: Mapping[str, Any], layers: int) -> int:
    count = None if raw.get("num_hash_layers") is None else whole(raw, "num_hash_layers", least=0)
    if raw.get("mlp_layer_types") is None:
        return 3 if count is None else count
    types = strings(raw, "mlp_layer_types")
    hashed = types.count("hash_moe")
    if len(types) != layers or types != ["hash_moe"] * hashed + ["moe"] * (layers - hashed):
        raise ValueError(f"mlp_layer_types must be hash_moe layers followed by moe layers, {layers} in all")
    if count is not None and count != hashed:
        raise ValueError(f"num_hash_layers is {count} but mlp_layer_types names {hashed} hash_moe layers")
    return hashed
