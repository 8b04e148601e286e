"""Configurations, weights and lengths drawn at random, none of them left at a value that could hide a mistake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from narrows.model.config import LayerKind, ModelConfig, Yarn
from narrows.model.network import Network
from tests.draws import draws, occasion

# What a property must have seen at work in the draws that it compared.
MECHANISMS = (
    "window slides",
    "window no multiple of m",
    "CSA overlap",
    "all entries selected",
    "some entries selected",
    "few of many entries selected",
    "HCA entries",
    "HCA without entries",
    "hash routing",
    "learned routing",
    "YaRN",
    "no YaRN",
    "narrow clamp",
)


@dataclass(frozen=True)
class Case:
    """A configuration, a seed for its weights and tokens, and the lengths of the sequences to compare."""

    config: ModelConfig
    seed: int
    lengths: tuple[int, ...]

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def tokens(self) -> list[Tensor]:
        """int64 [T] for each length."""
        source = torch.Generator().manual_seed(self.seed + 1)
        return [torch.randint(self.config.vocab_size, (length,), generator=source) for length in self.lengths]

    def network(self, dtype: torch.dtype = torch.float64) -> Network:
        return randomised(Network(self.config, dtype=dtype), self.generator())

    def random(self) -> Random:
        return Random(self.seed)

    def mechanisms(self) -> set[str]:
        """Which of MECHANISMS this case puts to work."""
        config, longest, kinds = self.config, max(self.lengths), set(self.config.layer_types)
        entries = longest // config.csa_ratio if LayerKind.CSA in kinds else 0
        yarn = config.rope_scaling is not None and kinds != {LayerKind.SLIDING}
        hashed, learned = config.num_hash_layers > 0, config.num_hash_layers < config.num_hidden_layers
        choice = config.num_experts_per_tok < config.n_routed_experts
        acts = {
            "window slides": longest > config.sliding_window,
            "window no multiple of m": entries > 0 and config.sliding_window % config.csa_ratio > 0,
            "CSA overlap": entries > 1,
            "all entries selected": 0 < entries <= config.index_topk,
            "some entries selected": entries > config.index_topk,
            "few of many entries selected": entries > 8 * config.index_topk,
            "HCA entries": LayerKind.HCA in kinds and longest >= config.hca_ratio,
            "HCA without entries": LayerKind.HCA in kinds and longest < config.hca_ratio,
            "hash routing": hashed and choice,
            "learned routing": learned and choice,
            "YaRN": yarn,
            "no YaRN": not yarn,
            "narrow clamp": config.swiglu_limit < 1,
        }
        assert tuple(acts) == MECHANISMS
        return {mechanism for mechanism, act in acts.items() if act}


@dataclass
class Tally:
    """Draws the cases of one property, and fails it when too many could not be compared or a mechanism never acted.

    A draw is skipped when a router or an indexer had to choose between scores closer than `margin`: then two correct
    implementations may choose differently.
    """

    name: str
    margin: float
    mechanisms: tuple[str, ...] = MECHANISMS
    most_skipped: float = 0.25
    compared: int = 0
    skipped: int = 0
    worst: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)

    def run(self, strategy: st.SearchStrategy[Case], check: Callable[[Case], None]) -> None:
        """`check` the property on every draw, and on a few more while a mechanism has not been seen."""
        for_each_draw(self.name, strategy, check, more=self.unseen)

    def decided(self, case: Case, margin: float) -> bool:
        """Whether the case's choices were clear; counts it."""
        clear = margin > self.margin
        self.compared += clear
        self.skipped += not clear
        if clear:
            self.seen.update(case.mechanisms())
        return clear

    def close(self, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
        """Largest difference ≤ tolerance × largest reference value."""
        assert ours.shape == theirs.shape
        assert ours.isfinite().all()
        error = relative_error(ours, theirs)
        self.worst = max(self.worst, error)
        assert error <= tolerance, f"relative error {error:.2e} > {tolerance:.0e}"

    def finish(self) -> None:
        """Report, and fail when the draws did not show what they should."""
        total = self.compared + self.skipped
        print(f"\n{self.name}: {self.compared} of {total} draws compared, worst relative error {self.worst:.1e}")
        print(", ".join(f"{mechanism} {self.seen[mechanism]}" for mechanism in self.mechanisms))
        assert total >= draws()
        assert self.skipped <= self.most_skipped * total, f"{self.skipped} of {total} draws were skipped"
        assert not self.unseen(), f"no compared draw has shown: {', '.join(self.unseen())}"

    def unseen(self) -> list[str]:
        """The mechanisms that no compared draw has put to work so far."""
        return [mechanism for mechanism in self.mechanisms if not self.seen[mechanism]]


Drawn = TypeVar("Drawn")
"""What can be kept in a set."""


def for_each_draw(
    name: str,
    strategy: st.SearchStrategy[Drawn],
    check: Callable[[Drawn], None],
    more: Callable[[], object] = lambda: False,
    count: int | None = None,
) -> None:
    """`check` `count` cases, or as many as `draws()` says, and up to twice as many more as long as `more()` is true.

    `make test` draws the same cases every time, `make soak` fresh ones; a failure tells how to draw them again.

    Every draw is a run of its own: in one run hypothesis spends most of a small budget on near copies of its first
    examples, while a run of two examples is the simplest one and a fresh one.
    """
    passed: set[Drawn] = set()
    now = occasion()

    def once(case: Drawn) -> None:
        if case not in passed:
            check(case)
            passed.add(case)

    options = settings(max_examples=2, derandomize=False, database=None, suppress_health_check=list(HealthCheck))
    count = draws() if count is None else count
    for number in range(3 * count):
        if number >= count and not more():
            break
        try:
            seed(f"{name} {now} {number}")(options(given(strategy)(once)))()
        except BaseException as error:
            error.add_note(f"draw {number} of {name!r}; with NARROWS_OCCASION={now} in the environment it comes again")
            raise


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs| / max |theirs|."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp_min(1e-30))


# -- configurations -----------------------------------------------------------------------------------------------


@st.composite
def configurations(draw: st.DrawFn) -> ModelConfig:
    """Every field that changes the arithmetic, over small values around those that matter."""
    layer_types = tuple(draw(st.lists(st.sampled_from(LayerKind), min_size=1, max_size=5)))
    groups = draw(st.integers(1, 3))
    head_dim = draw(st.sampled_from((4, 8, 12, 16, 24)))
    rope_dims = draw(st.sampled_from([dims for dims in (2, 4, 6, 8, 16) if dims <= head_dim]))
    experts = draw(st.integers(1, 8))
    return ModelConfig(
        vocab_size=draw(st.integers(2, 60)),
        hidden_size=draw(st.integers(3, 40)),
        num_hidden_layers=len(layer_types),
        layer_types=layer_types,
        num_hash_layers=draw(st.integers(0, len(layer_types))),
        num_nextn_predict_layers=1,
        num_attention_heads=groups * draw(st.integers(1, 3)),
        head_dim=head_dim,
        qk_rope_head_dim=rope_dims,
        q_lora_rank=draw(st.integers(2, 16)),
        o_groups=groups,
        o_lora_rank=draw(st.integers(1, 12)),
        sliding_window=draw(st.one_of(st.integers(1, 20), st.just(128))),
        csa_ratio=draw(st.sampled_from((4, 4, 4, 1, 2, 3, 5))),
        hca_ratio=draw(st.sampled_from((4, 7, 8, 12, 16, 128))),
        # With few index heads whole scores are 0 and tie; 16 and more keep a draw decidable.
        index_n_heads=draw(st.sampled_from((16, 16, 16, 17, 24, 3))),
        index_head_dim=rope_dims + draw(st.sampled_from((0, 2, 8))),
        index_topk=draw(st.one_of(st.sampled_from((1, 1, 2, 3)), st.integers(1, 12), st.integers(1, 40))),
        rope_theta=draw(st.sampled_from((10_000.0, 100.0))),
        compress_rope_theta=draw(st.sampled_from((160_000.0, 1_000.0))),
        rope_scaling=draw(st.one_of(st.none(), yarns())),
        moe_intermediate_size=draw(st.integers(1, 24)),
        n_routed_experts=experts,
        num_experts_per_tok=draw(st.integers(1, experts)),
        routed_scaling_factor=draw(st.sampled_from((1.5, 2.5, 0.7))),
        swiglu_limit=draw(st.sampled_from((0.3, 1.0, 10.0))),
        hc_mult=draw(st.sampled_from((4, 4, 4, 2, 1))),
        hc_sinkhorn_iters=draw(st.sampled_from((20, 20, 1, 3))),
        hc_eps=draw(st.sampled_from((1e-6, 1e-2))),
        rms_norm_eps=draw(st.sampled_from((1e-6, 1e-2))),
        bos_token_id=0,
        eos_token_id=1,
    )


def yarns() -> st.SearchStrategy[Yarn]:
    """The official stretch, and shorter ones that short texts already feel."""
    return st.builds(
        Yarn,
        factor=st.sampled_from((16.0, 4.0, 2.5)),
        original_max_position_embeddings=st.sampled_from((65_536, 512, 32)),
        beta_fast=st.sampled_from((32.0, 4.0)),
        beta_slow=st.sampled_from((1.0, 0.5)),
    )


@st.composite
def lengths(draw: st.DrawFn, config: ModelConfig, longest: int) -> int:
    """A length at, just below or just above a boundary of the configuration, or any."""
    k_filled = config.csa_ratio * config.index_topk
    boundaries = [config.csa_ratio, config.hca_ratio, config.sliding_window, k_filled]
    boundaries += [multiple * boundary for multiple in (2, 3, 9) for boundary in boundaries]
    near = [b + offset for b in boundaries for offset in (-1, 0, 1) if 1 <= b + offset <= longest]
    return draw(st.one_of(st.sampled_from(near or [longest]), st.integers(1, longest)))


@st.composite
def cases(draw: st.DrawFn, *, most_sequences: int = 1, longest: int) -> Case:
    config = draw(configurations())
    count = draw(st.integers(min(2, most_sequences), most_sequences))
    drawn_lengths = tuple(draw(lengths(config, longest)) for _ in range(count))
    return Case(config, draw(st.integers(0, 2**31)), drawn_lengths)


# -- weights ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def randomised(network: Network, generator: torch.Generator) -> Network:
    """Every parameter and table of `network` drawn anew, in float64 and then cast, so that dtypes see equal draws."""
    modules = dict(network.named_modules())
    for name, tensor in network.state_dict().items():
        owner, leaf = name.rpartition(".")[::2]
        tensor.copy_(_random_tensor(name, leaf, tensor, modules[owner], generator))
    return network


def _random_tensor(name: str, leaf: str, tensor: Tensor, owner: nn.Module, generator: torch.Generator) -> Tensor:
    shape = tensor.shape

    def normal() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    if leaf == "tid2eid":  # distinct experts for every token
        experts = owner.get_parameter("weight").shape[0]
        return torch.rand(shape[0], experts, generator=generator).argsort(dim=-1)[:, : shape[1]]
    if leaf in ("attn_sink", "ape", "base"):
        return normal()
    if leaf == "scale":
        return uniform(0.3, 1.5)
    if leaf == "bias":
        return 0.3 * normal()
    if "norm" in name.split(".")[-2]:
        return uniform(0.4, 1.6)
    if name == "embed.weight":
        return normal()
    assert leaf in ("weight", "w13", "w2", "fn") and tensor.dim() >= 2, f"how is {name} to be drawn?"
    return 1.5 * normal() / shape[-1] ** 0.5


# -- schedules ----------------------------------------------------------------------------------------------------


def irregular_chunks(length: int, random: Random) -> list[int]:
    """Positive chunk sizes that sum to `length`: single tokens, short runs and long ones."""
    sizes = []
    while (left := length - sum(sizes)) > 0:
        sizes.append(min(left, random.choice((1, 1, 2, random.randint(1, 9), random.randint(1, length)))))
    return sizes
