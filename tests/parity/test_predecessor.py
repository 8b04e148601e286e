"""V3.2's network gives transformers' logits, whole, packed and token by token: in float64 to 1e-9."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DeepseekV32Config

from narrows.model.config import Yarn
from narrows.model.history import ContiguousHistory
from narrows.model.segments import Segment
from narrows.model.v32.config import V32, V32Config
from narrows.model.v32.network import V32Network
from narrows.model.v32.step import layout_of
from narrows.ops import tiles
from tests.draws import draws, occasion
from tests.parity.configurations import irregular_chunks, randomised
from tests.parity.reference import float64_predecessor

CLOSE = 1e-9

RENAMES = (
    (r"embed\.weight", "model.embed_tokens.weight"),
    (r"head\.weight", "lm_head.weight"),
    (r"norm\.weight", "model.norm.weight"),
    (r"(layers\.\d+)\.attn_norm\.weight", r"model.\1.input_layernorm.weight"),
    (r"(layers\.\d+)\.ffn_norm\.weight", r"model.\1.post_attention_layernorm.weight"),
    (r"(layers\.\d+)\.attn\.wq_(a|b)\.weight", r"model.\1.self_attn.q_\2_proj.weight"),
    (r"(layers\.\d+)\.attn\.wkv_a\.weight", r"model.\1.self_attn.kv_a_proj_with_mqa.weight"),
    (r"(layers\.\d+)\.attn\.wkv_b\.weight", r"model.\1.self_attn.kv_b_proj.weight"),
    (r"(layers\.\d+)\.attn\.wo\.weight", r"model.\1.self_attn.o_proj.weight"),
    (r"(layers\.\d+)\.attn\.(q|kv)_norm\.weight", r"model.\1.self_attn.\2_a_layernorm.weight"),
    (r"(layers\.\d+)\.attn\.indexer\.(.+)", r"model.\1.self_attn.indexer.\2"),
    (r"(layers\.\d+)\.ffn\.gate\.weight", r"model.\1.mlp.gate.weight"),
    (r"(layers\.\d+)\.ffn\.gate\.bias", r"model.\1.mlp.gate.e_score_correction_bias"),
    (r"(layers\.\d+)\.ffn\.experts\.w13", r"model.\1.mlp.experts.gate_up_proj"),
    (r"(layers\.\d+)\.ffn\.experts\.w2", r"model.\1.mlp.experts.down_proj"),
    (r"(layers\.\d+)\.ffn\.(shared_experts\.)?w1\.weight", r"model.\1.mlp.\2gate_proj.weight"),
    (r"(layers\.\d+)\.ffn\.(shared_experts\.)?w2\.weight", r"model.\1.mlp.\2down_proj.weight"),
    (r"(layers\.\d+)\.ffn\.(shared_experts\.)?w3\.weight", r"model.\1.mlp.\2up_proj.weight"),
)


@dataclass(frozen=True)
class Case:
    config: V32Config
    seed: int
    lengths: tuple[int, ...]

    def network(self) -> V32Network:
        network = V32Network(self.config, dtype=torch.float64)
        return randomised(network, torch.Generator().manual_seed(self.seed))

    def tokens(self) -> list[Tensor]:
        source = torch.Generator().manual_seed(self.seed + 1)
        return [torch.randint(self.config.vocab_size, (length,), generator=source) for length in self.lengths]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    def one_of(*choices: int) -> int:
        return draw(st.sampled_from(choices))

    groups, each = one_of(1, 2, 4), one_of(2, 3)
    kept = draw(st.integers(1, groups))
    config = V32Config(
        vocab_size=64,
        hidden_size=one_of(24, 32),
        intermediate_size=one_of(24, 48),
        moe_intermediate_size=one_of(8, 16),
        num_hidden_layers=one_of(1, 2, 3),
        first_k_dense_replace=one_of(0, 1, 2),
        num_attention_heads=one_of(1, 2, 4),
        q_lora_rank=one_of(8, 16),
        kv_lora_rank=one_of(8, 12),
        qk_nope_head_dim=one_of(4, 8),
        qk_rope_head_dim=one_of(4, 8),
        v_head_dim=one_of(4, 6),
        index_n_heads=one_of(16, 24),
        index_head_dim=one_of(8, 16),
        index_topk=one_of(1, 3, 8, 40),
        rope_scaling=draw(
            st.sampled_from([None, *(Yarn(factor=by, original_max_position_embeddings=8 * by) for by in (4, 40))])
        ),
        mscale_all_dim=draw(st.sampled_from([1.0, 0.707])),
        n_routed_experts=groups * each,
        n_shared_experts=one_of(1, 2),
        num_experts_per_tok=draw(st.integers(1, kept * each)),
        n_group=groups,
        topk_group=kept,
        max_position_embeddings=2048,
    )
    lengths = tuple(draw(st.lists(st.integers(1, 90), min_size=1, max_size=3)))
    return Case(config, draw(st.integers(0, 2**31)), lengths)


class Reference:
    """A `DeepseekV32ForCausalLM` with our weights."""

    def __init__(self, config: V32Config, weights: dict[str, Tensor]) -> None:
        fields = config.model_dump(exclude={"rope_scaling", "rope_theta", "mscale_all_dim"})
        rope = {"rope_type": "default", "rope_theta": config.rope_theta}
        if config.rope_scaling is not None:
            mscale = config.mscale_all_dim
            rope |= config.rope_scaling.model_dump()
            rope |= {"rope_type": "yarn", "mscale": mscale, "mscale_all_dim": mscale, "truncate": True}
        module = float64_predecessor()
        theirs = DeepseekV32Config(
            **fields,
            num_key_value_heads=config.num_attention_heads,
            rope_parameters=rope,
            attn_implementation="eager",
            experts_implementation="eager",
        )
        self.model = module.DeepseekV32ForCausalLM(theirs).to(torch.float64).eval()
        self.model.load_state_dict({their_name(name): tensor for name, tensor in weights.items()}, strict=True)

    def logits(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.model(input_ids=tokens[None], use_cache=False).logits
        return out[0]


def their_name(name: str) -> str:
    for pattern, template in RENAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(template)
    raise KeyError(name)


def whole(network: V32Network, sequences: list[Tensor]) -> list[Tensor]:
    lengths = [len(tokens) for tokens in sequences]
    positions = torch.cat([torch.arange(length) for length in lengths])
    out = network(torch.cat(sequences), positions, [Segment(length) for length in lengths])
    return list(network.logits(out).split(lengths))


def by_pieces(network: V32Network, sequences: list[Tensor], random: Random) -> list[Tensor]:
    """Every sequence in its own slot, in irregular chunks, of several sequences in a step."""
    history = ContiguousHistory(layout_of(network.config, torch.float64), slots=len(sequences))
    parts = [list(tokens.split(irregular_chunks(len(tokens), random))) for tokens in sequences]
    found: list[list[Tensor]] = [[] for _ in sequences]
    while any(parts):
        slots = [slot for slot, chunks in enumerate(parts) if chunks and random.random() < 0.8]
        if not slots:
            continue
        chunks = [parts[slot].pop(0) for slot in slots]
        segments = [history.segment(len(chunk), slot) for slot, chunk in zip(slots, chunks, strict=True)]
        positions = torch.cat([torch.arange(s.past, s.past + s.rows) for s in segments])
        out = network.logits(network(torch.cat(chunks), positions, segments, history))
        for slot, logits in zip(slots, out.split([len(chunk) for chunk in chunks]), strict=True):
            found[slot].append(logits)
    return [torch.cat(one) for one in found]


@torch.no_grad()
def test_logits_are_transformers_however_the_tokens_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {"selected": 0, "all": 0, "YaRN": 0, "groups": 0}

    @seed(occasion())
    @settings(max_examples=draws(), deadline=None)
    @given(cases())
    def check(case: Case) -> None:
        network, sequences = case.network(), case.tokens()
        reference = Reference(case.config, network.state_dict())
        wanted = [reference.logits(tokens) for tokens in sequences]
        for budget in (1 << 24, 300):
            monkeypatch.setattr(tiles, "ELEMENT_BUDGET", budget)
            for ours in (whole(network, sequences), by_pieces(network, sequences, Random(case.seed))):
                for got, theirs in zip(ours, wanted, strict=True):
                    torch.testing.assert_close(got, theirs, rtol=CLOSE, atol=CLOSE)
        longest = max(case.lengths)
        seen["selected"] += longest > case.config.index_topk
        seen["all"] += longest <= case.config.index_topk
        seen["YaRN"] += case.config.rope_scaling is not None
        seen["groups"] += case.config.topk_group < case.config.n_group

    check()
    assert all(count > 2 for count in seen.values()), seen


def test_the_published_network_has_the_published_parameters() -> None:
    network = V32Network(V32, device="meta")
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    total = sum(sizes.values())
    routed = sum(size for name, size in sizes.items() if ".experts." in name)
    active = total - sizes["embed.weight"] - routed + routed // V32.n_routed_experts * V32.num_experts_per_tok
    assert round(total / 1e9) in (671, 672)
    assert round(active / 1e9) == 37
