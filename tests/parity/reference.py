"""transformers' `deepseek_v4`, built from our configuration and our weights.

transformers computes norms, softmaxes and mixing weights in float32 whatever the model's dtype, so even its float64
model carries errors of 1e-6. `float64_module` therefore reads its source at test time and lifts those casts to float64.
The rotary class stays as it is: float32 angles are part of the architecture.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Sequence
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DeepseekV4Config
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as float32_module
from transformers.models.deepseek_v32 import modeling_deepseek_v32 as predecessor_module
from transformers.utils.logging import set_verbosity_error

from narrows.model.config import ModelConfig

# Short YaRN lengths are meant here; transformers warns that they do not match the model's longest text.
set_verbosity_error()

ROTARY_CLASSES = ("DeepseekV4RotaryEmbedding", "DeepseekV32RotaryEmbedding")

# Every way in which the source could name a dtype narrower than float64.
NARROW = {"float", "float32", "half", "float16", "bfloat16", "autocast", "maybe_autocast", "get_default_dtype"}

# Our names to transformers' names in memory, first match wins; `{}` takes what the pattern's groups caught.
RENAMES = (
    (r"embed\.weight", "model.embed_tokens.weight"),
    (r"head\.weight", "lm_head.weight"),
    (r"norm\.weight", "model.norm.weight"),
    (r"hc_head\.(\w+)", "model.hc_head.hc_{}"),
    (r"layers\.(\d+)\.attn_norm\.weight", "model.layers.{}.input_layernorm.weight"),
    (r"layers\.(\d+)\.ffn_norm\.weight", "model.layers.{}.post_attention_layernorm.weight"),
    (r"layers\.(\d+)\.hc_(attn|ffn)\.(\w+)", "model.layers.{}.{}_hc.{}"),
    (r"layers\.(\d+)\.attn\.wq_a\.weight", "model.layers.{}.self_attn.q_a_proj.weight"),
    (r"layers\.(\d+)\.attn\.wq_b\.weight", "model.layers.{}.self_attn.q_b_proj.weight"),
    (r"layers\.(\d+)\.attn\.wkv\.weight", "model.layers.{}.self_attn.kv_proj.weight"),
    (r"layers\.(\d+)\.attn\.wo_(a|b)\.weight", "model.layers.{}.self_attn.o_{}_proj.weight"),
    (r"layers\.(\d+)\.attn\.q_norm\.weight", "model.layers.{}.self_attn.q_a_norm.weight"),
    (r"layers\.(\d+)\.attn\.kv_norm\.weight", "model.layers.{}.self_attn.kv_norm.weight"),
    (r"layers\.(\d+)\.attn\.attn_sink", "model.layers.{}.self_attn.sinks"),
    (r"layers\.(\d+)\.attn\.indexer\.wq_b\.weight", "model.layers.{}.self_attn.compressor.indexer.q_b_proj.weight"),
    (
        r"layers\.(\d+)\.attn\.indexer\.weights_proj\.weight",
        "model.layers.{}.self_attn.compressor.indexer.scorer.weights_proj.weight",
    ),
    (
        r"layers\.(\d+)\.attn\.(indexer\.)?compressor\.wkv\.weight",
        "model.layers.{}.self_attn.compressor.{}kv_proj.weight",
    ),
    (
        r"layers\.(\d+)\.attn\.(indexer\.)?compressor\.wgate\.weight",
        "model.layers.{}.self_attn.compressor.{}gate_proj.weight",
    ),
    (
        r"layers\.(\d+)\.attn\.(indexer\.)?compressor\.norm\.weight",
        "model.layers.{}.self_attn.compressor.{}kv_norm.weight",
    ),
    (r"layers\.(\d+)\.attn\.(indexer\.)?compressor\.ape", "model.layers.{}.self_attn.compressor.{}position_bias"),
    (r"layers\.(\d+)\.ffn\.gate\.bias", "model.layers.{}.mlp.gate.e_score_correction_bias"),
    (r"layers\.(\d+)\.ffn\.gate\.(weight|tid2eid)", "model.layers.{}.mlp.gate.{}"),
    (r"layers\.(\d+)\.ffn\.experts\.w13", "model.layers.{}.mlp.experts.gate_up_proj"),
    (r"layers\.(\d+)\.ffn\.experts\.w2", "model.layers.{}.mlp.experts.down_proj"),
    (r"layers\.(\d+)\.ffn\.shared_experts\.w1\.weight", "model.layers.{}.mlp.shared_experts.gate_proj.weight"),
    (r"layers\.(\d+)\.ffn\.shared_experts\.w2\.weight", "model.layers.{}.mlp.shared_experts.down_proj.weight"),
    (r"layers\.(\d+)\.ffn\.shared_experts\.w3\.weight", "model.layers.{}.mlp.shared_experts.up_proj.weight"),
)


class _LiftCasts(ast.NodeTransformer):
    """Replaces `x.float()` and `torch.float32` by their float64 twins outside the rotary class."""

    def __init__(self) -> None:
        self.lifted = 0

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return node if node.name in ROTARY_CLASSES else self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr in ("float", "float32"):
            self.lifted += 1
            node.attr = "double"  # as a method and as torch.double
        return node


def narrow_names(tree: ast.AST) -> list[str]:
    """The narrow dtypes and the autocasting that `tree` names outside the rotary class (`float(...)` is no dtype)."""
    found: list[str] = []
    for child in ast.iter_child_nodes(tree):
        match child:
            case ast.ClassDef(name=name) if name in ROTARY_CLASSES:
                continue
            case ast.Attribute(attr=name) if name in NARROW:
                found.append(name)
            case ast.Name(id=name) if name in NARROW - {"float"}:
                found.append(name)
            case ast.Constant(value=str(name)) if name in NARROW:
                found.append(name)
        found += narrow_names(child)
    return found


@cache
def float64_module(*, stable_ties: bool = False) -> ModuleType:
    """transformers' model source, casts to float32 lifted, as a module of its own.

    With `stable_ties` its indexer's `topk`, which leaves the order of equal scores open, is replaced by one that
    prefers the lower entry. Fails when a release of transformers casts in a way that is not understood here.
    """
    return _lifted(float32_module, "DeepseekV4Indexer" if stable_ties else None)


@cache
def float64_predecessor() -> ModuleType:
    """The same of `deepseek_v32`, whose indexer prefers the lower token of equal scores."""
    return _lifted(predecessor_module, "DeepseekV32Indexer")


def _lifted(source: ModuleType, stable_indexer: str | None) -> ModuleType:
    tree = ast.parse(inspect.getsource(source))
    assert any(isinstance(node, ast.ClassDef) and node.name in ROTARY_CLASSES for node in tree.body)
    lift = _LiftCasts()
    tree = ast.fix_missing_locations(lift.visit(tree))
    assert lift.lifted > 0, "transformers has no float32 casts any more: compare with it directly"
    assert not narrow_names(tree), f"casts that were not lifted: {narrow_names(tree)}"
    name = f"{source.__name__}_float64{'_stable' if stable_indexer else ''}"
    spec = importlib.util.spec_from_file_location(name, source.__file__)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # decorators of transformers look their module up
    if stable_indexer:
        _prefer_lower_entries(tree, stable_indexer)
        module.__dict__["_stable_topk"] = _stable_topk
    exec(compile(tree, str(source.__file__), "exec"), module.__dict__)
    return module


def _prefer_lower_entries(tree: ast.Module, name: str) -> None:
    (indexer,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    replaced = 0
    for node in ast.walk(indexer):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "topk":
            node.args.insert(0, node.func.value)
            node.func = ast.Name(id="_stable_topk", ctx=ast.Load())
            replaced += 1
    assert replaced > 0, "transformers' indexer selects in another way now"
    ast.fix_missing_locations(tree)


def _stable_topk(scores: Tensor, k: int, dim: int) -> Any:
    order = torch.sort(scores, dim=dim, descending=True, stable=True)
    return SimpleNamespace(values=order.values.narrow(dim, 0, k), indices=order.indices.narrow(dim, 0, k))


def their_name(name: str) -> str:
    """transformers' name in memory of our tensor `name`."""
    for pattern, template in RENAMES:
        if match := re.fullmatch(pattern, name):
            return template.format(*(group or "" for group in match.groups()))
    raise KeyError(name)


class Reference:
    """A `DeepseekV4ForCausalLM` with our weights, which also measures how clearly it decided.

    `margin` is the smallest gap seen so far between the last chosen and the first rejected candidate of any router or
    indexer, relative to the row's largest score: below the rounding error, it is luck whether another implementation
    chooses alike. With `ties_decide`, scores that are both exactly 0 count as decided (by a stable top-k), and as one
    of `ties`.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, Tensor],
        module: ModuleType = float32_module,
        *,
        ties_decide: bool = False,
    ) -> None:
        dtype = torch.float32 if module is float32_module else torch.float64
        theirs = DeepseekV4Config(**config.to_dict(), attn_implementation="eager", experts_implementation="eager")
        self.model: nn.Module = module.DeepseekV4ForCausalLM(theirs).to(dtype).eval()
        renamed = {their_name(name): tensor for name, tensor in weights.items() if not name.startswith("mtp.")}
        self.model.load_state_dict(renamed, strict=True)
        self.margin = float("inf")
        self.ties, self._ties_decide = 0, ties_decide
        for part in self.model.modules():
            kind = type(part).__name__
            if kind == "DeepseekV4TopKRouter":
                part.register_forward_hook(self._measure_router)
            elif kind == "DeepseekV4IndexerScorer":
                part.register_forward_hook(self._measure_indexer(config.csa_ratio, config.index_topk))

    def logits(self, tokens: Tensor) -> Tensor:
        """tokens int64 [T], one whole sequence -> logits [T, vocab]."""
        out: Tensor = self.model(input_ids=tokens[None], use_cache=False).logits
        return out[0]

    def gradients(self, ours: Sequence[str]) -> dict[str, Tensor | None]:
        """The gradient of each of our parameters (by our names), None where transformers has none."""
        theirs = dict(self.model.named_parameters())
        return {name: theirs[their_name(name)].grad for name in ours}

    @torch.no_grad()
    def _measure_router(self, router: Any, inputs: Any, outputs: Any) -> None:
        affinity = router.score_fn(outputs[0]) + router.e_score_correction_bias  # [T, E]
        if router.top_k < router.num_experts:
            ranked = affinity.sort(dim=-1, descending=True).values
            self._note(ranked[:, router.top_k - 1] - ranked[:, router.top_k], ranked.abs().amax(-1))

    def _measure_indexer(self, ratio: int, k: int) -> Any:
        @torch.no_grad()
        def measure(scorer: Any, inputs: Any, scores: Tensor) -> None:
            time, entries = scores.shape[1:]  # scores [1, T, entries]
            visible = (torch.arange(time) + 1)[:, None] // ratio > torch.arange(entries)  # [T, entries]
            rows = visible.sum(-1) > k  # fewer: all of them are chosen, whatever they score
            if rows.any():
                seen = scores[0].masked_fill(~visible, -torch.inf)[rows]
                ranked = seen.sort(dim=-1, descending=True).values
                gap = ranked[:, k - 1] - ranked[:, k]
                if self._ties_decide:
                    tied = (ranked[:, k - 1] == 0) & (ranked[:, k] == 0)
                    self.ties += int(tied.sum())
                    gap = gap.masked_fill(tied, torch.inf)
                self._note(gap, ranked.masked_fill(ranked == -torch.inf, 0).abs().amax(-1))

        return measure

    def _note(self, gap: Tensor, scale: Tensor) -> None:
        relative = gap / scale.clamp_min(1e-30)
        self.margin = min(self.margin, float(relative.min()))
