"""config.json in its two dialects, official and transformers', to ModelConfig's fields and back.

Everything that both dialects can say twice (layer kinds, hash layers, RoPE dims, ratios, YaRN) must agree with
itself; every switch that V4 does not have must stand where V4 has it. Violations raise ValueError.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SLIDING, CSA, HCA = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
KINDS = (SLIDING, CSA, HCA)

# Read and written under the same name in both dialects.
PLAIN_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_nextn_predict_layers",
    "max_position_embeddings",
    "trained_context",
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


def fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """ModelConfig's keyword arguments from a config.json of either dialect."""
    for name, value in FIXED_FIELDS.items():
        if raw.get(name, value) != value:
            raise ValueError(f"{name} is {raw[name]!r}, but DeepSeek-V4 has {value!r}")
    out = {name: raw[name] for name in PLAIN_FIELDS if raw.get(name) is not None}
    layers = _count(raw, "num_hidden_layers")
    ratios = _ratios(raw)
    if ratios is not None:
        out["csa_ratio"], out["hca_ratio"] = ratios[CSA], ratios[HCA]
    else:
        ratios = {CSA: 4, HCA: 128}
    out["layer_types"] = _layer_types(raw, layers, ratios)
    out["num_hash_layers"] = _hash_layers(raw, layers)
    out["qk_rope_head_dim"] = _rope_dims(raw)
    out["rope_scaling"] = _yarn(raw)
    return out


def official(config: Mapping[str, Any]) -> dict[str, Any]:
    """The official config.json of a ModelConfig's dump; transformers reads it too.

    Ratios other than 4 and 128 have no official spelling: then transformers' own fields stand beside.
    """
    ratio_of = {SLIDING: 0, CSA: config["csa_ratio"], HCA: config["hca_ratio"]}
    out: dict[str, Any] = {"architectures": ["DeepseekV4ForCausalLM"], **FIXED_FIELDS}
    out |= {name: config[name] for name in PLAIN_FIELDS if config[name] is not None}
    out["qk_rope_head_dim"] = config["qk_rope_head_dim"]
    out["num_hash_layers"] = config["num_hash_layers"]
    out["compress_ratios"] = [ratio_of[kind] for kind in config["layer_types"]]
    out["compress_ratios"] += [0] * config["num_nextn_predict_layers"]
    if (config["csa_ratio"], config["hca_ratio"]) != (4, 128):
        out["layer_types"] = list(config["layer_types"])
        out["compress_rates"] = {CSA: config["csa_ratio"], HCA: config["hca_ratio"]}
    if config["rope_scaling"] is not None:
        out["rope_scaling"] = {"type": "yarn", **config["rope_scaling"]}
    return out


def _count(raw: Mapping[str, Any], name: str) -> int:
    value = raw.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"{name} must be a positive whole number, not {value!r}")
    return value


def _ratios(raw: Mapping[str, Any]) -> dict[str, int] | None:
    rates = dict(raw.get("compress_rates") or {})
    for kind, name in ((CSA, "compress_rate_csa"), (HCA, "compress_rate_hca")):
        if raw.get(name) is not None and rates.setdefault(kind, raw[name]) != raw[name]:
            raise ValueError(f"{name} is {raw[name]} but compress_rates says {rates[kind]}")
    if not rates:
        return None
    unknown = set(rates) - {CSA, HCA}
    if unknown:
        raise ValueError(f"compress_rates names the unknown layer kind {sorted(unknown)[0]!r} (known: {CSA}, {HCA})")
    return {CSA: rates.get(CSA, 4), HCA: rates.get(HCA, 128)}


def _layer_types(raw: Mapping[str, Any], layers: int, ratios: Mapping[str, int]) -> list[str]:
    types, per_layer = raw.get("layer_types"), raw.get("compress_ratios")
    if per_layer is not None:
        extra = raw.get("num_nextn_predict_layers") or 0
        if len(per_layer) not in (layers, layers + extra):
            raise ValueError(
                f"compress_ratios has {len(per_layer)} entries; "
                f"num_hidden_layers {layers} + num_nextn_predict_layers {extra} ask for {layers + extra}"
            )
        if any(per_layer[layers:]):
            raise ValueError("compress_ratios gives the MTP block a compressor; its entry must be 0")
        per_layer = per_layer[:layers]
    if types is not None:
        for kind in types:
            if kind not in KINDS:
                raise ValueError(f"layer_types names the unknown layer kind {kind!r} (known: {', '.join(KINDS)})")
        ratio_of = {SLIDING: 0, **ratios}
        if per_layer is not None and [ratio_of[kind] for kind in types] != list(per_layer):
            raise ValueError("layer_types and compress_ratios describe different layers")
        return list(types)
    if per_layer is None:
        raise ValueError("neither compress_ratios nor layer_types says what kind each layer is")
    kind_of = {0: SLIDING, ratios[HCA]: HCA, ratios[CSA]: CSA}
    for ratio in per_layer:
        if ratio not in kind_of:
            known = ", ".join(str(known) for known in sorted(kind_of))
            raise ValueError(f"compress_ratios names the unknown layer kind {ratio!r} (known ratios: {known})")
    return [kind_of[ratio] for ratio in per_layer]


def _hash_layers(raw: Mapping[str, Any], layers: int) -> int:
    count, types = raw.get("num_hash_layers"), raw.get("mlp_layer_types")
    if types is None:
        return 3 if count is None else count
    hashed = sum(kind == "hash_moe" for kind in types)
    if len(types) != layers or list(types) != ["hash_moe"] * hashed + ["moe"] * (layers - hashed):
        raise ValueError(f"mlp_layer_types must be hash_moe layers followed by moe layers, {layers} in all")
    if count is not None and count != hashed:
        raise ValueError(f"num_hash_layers is {count} but mlp_layer_types names {hashed} hash_moe layers")
    return hashed


def _rope_dims(raw: Mapping[str, Any]) -> int:
    head_dim, dims, factor = _count(raw, "head_dim"), raw.get("qk_rope_head_dim"), raw.get("partial_rotary_factor")
    nested = raw.get("rope_parameters") or {}
    for part in (nested.get("main"), nested.get("compress")):
        if isinstance(part, Mapping) and part.get("partial_rotary_factor") is not None:
            if factor is not None and part["partial_rotary_factor"] != factor:
                raise ValueError("rope_parameters and partial_rotary_factor disagree on the RoPE dims")
            factor = part["partial_rotary_factor"]
    from_factor = None if factor is None else round(head_dim * factor)
    if dims is not None and from_factor is not None and dims != from_factor:
        raise ValueError(f"qk_rope_head_dim is {dims} but partial_rotary_factor gives {from_factor}")
    if dims is None:
        dims = from_factor if from_factor is not None else head_dim // 8
    return dims


def _yarn(raw: Mapping[str, Any]) -> dict[str, Any] | None:
    nested = raw.get("rope_parameters") or {}
    rope = raw.get("rope_scaling") or nested.get("compress") or nested
    if isinstance(nested.get("main"), Mapping):
        for part, theta in (("main", "rope_theta"), ("compress", "compress_rope_theta")):
            given = (nested.get(part) or {}).get("rope_theta")
            if given is not None and raw.get(theta, given) != given:
                raise ValueError(f"{theta} is {raw[theta]} but rope_parameters.{part} says {given}")
        if nested["main"].get("rope_type", "default") != "default":
            raise ValueError("rope_parameters.main must be plain RoPE: sliding layers have no YaRN")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise ValueError(f"RoPE scaling {kind!r} is not known here; DeepSeek-V4 has yarn or none")
    if rope.get("attention_factor", 1.0) != 1.0:
        raise ValueError(f"attention_factor is {rope['attention_factor']}, but DeepSeek-V4's YaRN has none (1.0)")
    names = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
    for name in names[:2]:
        if rope.get(name) is None:
            raise ValueError(f"YaRN needs {name}")
    return {name: rope[name] for name in names if rope.get(name) is not None}
