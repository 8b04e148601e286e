"""The one place where tensor names are mapped: ours, the official ones, and the two dialects of transformers.

The official names (no `model.` prefix; every expert its own tensors) are the common tongue of this package's readers
and writers. transformers has its own names in memory, and `save_pretrained` writes a third mixture of both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

Index = tuple[int | slice, ...]
"""Which part of a tensor: () is all of it, (expert,) one matrix of a stack, (expert, slice) some of its rows."""

# transformers' modules inside a layer -> the official ones. Their tensors are `.weight` and, quantised, its scale.
_MODULES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_a_proj": "attn.wq_a",
    "self_attn.q_a_norm": "attn.q_norm",
    "self_attn.q_b_proj": "attn.wq_b",
    "self_attn.kv_proj": "attn.wkv",
    "self_attn.kv_norm": "attn.kv_norm",
    "attn.norm": "attn.kv_norm",  # so written by save_pretrained
    "self_attn.o_a_proj": "attn.wo_a",
    "self_attn.o_b_proj": "attn.wo_b",
    "self_attn.compressor.kv_proj": "attn.compressor.wkv",
    "self_attn.compressor.gate_proj": "attn.compressor.wgate",
    "self_attn.compressor.kv_norm": "attn.compressor.norm",
    "self_attn.compressor.indexer.kv_proj": "attn.indexer.compressor.wkv",
    "self_attn.compressor.indexer.gate_proj": "attn.indexer.compressor.wgate",
    "self_attn.compressor.indexer.kv_norm": "attn.indexer.compressor.norm",
    "self_attn.compressor.indexer.q_b_proj": "attn.indexer.wq_b",
    "self_attn.compressor.indexer.scorer.weights_proj": "attn.indexer.weights_proj",
    "mlp.gate": "ffn.gate",
    "mlp.shared_experts.gate_proj": "ffn.shared_experts.w1",
    "mlp.shared_experts.down_proj": "ffn.shared_experts.w2",
    "mlp.shared_experts.up_proj": "ffn.shared_experts.w3",
}

# transformers' tensors that are no `.weight`. Stacked experts have no official name; they take ours.
_TENSORS = {
    "self_attn.sinks": "attn.attn_sink",
    "self_attn.compressor.position_bias": "attn.compressor.ape",
    "self_attn.compressor.indexer.position_bias": "attn.indexer.compressor.ape",
    "mlp.gate.e_score_correction_bias": "ffn.gate.bias",
    "mlp.gate.tid2eid": "ffn.gate.tid2eid",
    "mlp.experts.gate_up_proj": "ffn.experts.w13",
    "mlp.experts.gate_up_proj_scale_inv": "ffn.experts.w13.scale",
    "mlp.experts.down_proj": "ffn.experts.w2",
    "mlp.experts.down_proj_scale_inv": "ffn.experts.w2.scale",
    **{f"{part}_hc.{leaf}": f"hc_{part}_{leaf}" for part in ("attn", "ffn") for leaf in ("fn", "base", "scale")},
}

_TOP = {
    "embed_tokens.weight": "embed.weight",
    "lm_head.weight": "head.weight",
    **{f"hc_head.hc_{leaf}": f"hc_head_{leaf}" for leaf in ("fn", "base", "scale")},
}

_ON_DISK = {official: f"model.{name}" for name, official in _TOP.items()} | {"head.weight": "head.weight"}
_LAYER = re.compile(r"(layers\.\d+\.)(.+)")
_SCALES = re.compile(r"\.weight_scale_inv$")


def to_official(name: str) -> str:
    """The official name of a tensor in any of the dialects; names of none are returned unchanged.

    Stacked experts become `layers.N.ffn.experts.w13` and `.w2`, whose parts `official_parts` names.
    """
    name = _SCALES.sub(".scale", name.removeprefix("model."))
    if name in _TOP:
        return _TOP[name]
    match = _LAYER.fullmatch(name)
    if match is None:
        return name
    layer, rest = match.groups()
    if rest in _TENSORS:
        return layer + _TENSORS[rest]
    module, _, leaf = rest.rpartition(".")
    return f"{layer}{_MODULES.get(module, module)}.{leaf}" if module else name


def to_transformers(official: str) -> str:
    """The name that transformers' `save_pretrained` writes for an official one (5.23; `mtp.*` has none there)."""
    name = re.sub(r"\.attn\.kv_norm\.weight$", ".attn.norm.weight", official)
    return _ON_DISK.get(name, f"model.{name}")


def official_parts(ours: str, shape: Sequence[int]) -> Iterator[tuple[str, Index]]:
    """The official tensors that our parameter or buffer of this shape holds, and which part of it each one is."""
    stem, _, leaf = ours.rpartition(".")
    if stem.endswith(".ffn.experts"):
        for expert in range(shape[0]):
            if leaf == "w2":
                yield f"{stem}.{expert}.w2.weight", (expert,)
            else:
                width = shape[1] // 2
                yield f"{stem}.{expert}.w1.weight", (expert, slice(0, width))
                yield f"{stem}.{expert}.w3.weight", (expert, slice(width, 2 * width))
    elif re.search(r"(^|\.)hc_(attn|ffn|head)$", stem):
        yield f"{stem}_{leaf}", ()
    else:
        yield ours, ()


def scale_name(official: str) -> str:
    """Where the scales of a quantised tensor lie."""
    return official.removesuffix(".weight") + ".scale"
