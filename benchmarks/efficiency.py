"""A V3.2-like and a V4-like network of equal width and depth, and what a token behind a long context takes them.

Every width is half of what is published for V3.2 and V4-Pro; what is counted in tokens (top-k, window, ratios,
contexts) is as published. So the products of attention, indexer and experts are a quarter each, and stand to each other
as in a layer of the real ones. Equal in both are hidden size, vocabulary, depth, and experts, which are Pro's: 6 of 16
beside the shared one in every layer.

Histories hold random rows: V3.2's own prefill of a million tokens is 16 PFLOP, two days at 100 GFLOP/s. A step takes
as long whatever the numbers are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from narrows.economics.work import AnyConfig
from narrows.model.config import LayerKind, ModelConfig
from narrows.model.history import ContiguousHistory, EntryRows, Key, Layout, RecentRows, Snapshot
from narrows.model.network import Network
from narrows.model.precision import Precision
from narrows.model.presets import PRO
from narrows.model.segments import positions_of
from narrows.model.v32.config import V32, V32Config
from narrows.model.v32.network import V32Network
from narrows.model.v32.step import layout_of

# Of weights and histories. Attention and selection are then PyTorch's operators in both networks: the kernel that V4's
# attention has reads float32 alone.
DTYPE, PRECISION = torch.bfloat16, Precision.BF16
LAYERS, EXPERTS = 6, 16


def _halved(config: AnyConfig, *names: str) -> dict[str, int]:
    """These fields, half as large."""
    return {name: getattr(config, name) // 2 for name in names}


NEW: ModelConfig = PRO.model_copy(
    update=_halved(
        PRO,
        *("vocab_size", "hidden_size", "num_attention_heads", "head_dim", "qk_rope_head_dim", "q_lora_rank"),
        *("o_groups", "o_lora_rank", "index_n_heads", "index_head_dim", "moe_intermediate_size"),
    )
    | {
        "num_hidden_layers": LAYERS,
        "layer_types": (LayerKind.HCA, LayerKind.CSA) * (LAYERS // 2),
        "num_hash_layers": 0,
        "num_nextn_predict_layers": 0,
        "n_routed_experts": EXPERTS,
    }
)
OLD: V32Config = V32.model_copy(
    update=_halved(
        V32,
        *("num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
        *("index_n_heads", "index_head_dim"),
    )
    | {
        "vocab_size": NEW.vocab_size,
        "hidden_size": NEW.hidden_size,
        "num_hidden_layers": LAYERS,
        "first_k_dense_replace": 0,
        "max_position_embeddings": NEW.max_position_embeddings,
        "moe_intermediate_size": NEW.moe_intermediate_size,
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": NEW.num_experts_per_tok,
    }
)

AnyNetwork = Network | V32Network
Draw = Callable[[Key, RecentRows | EntryRows, int], Tensor]
"""(layer and name, how such rows are kept, their number) -> the rows as they are stored, [number, width]."""


def made(config: AnyConfig, dtype: torch.dtype = DTYPE) -> AnyNetwork:
    """The network with random weights."""
    network = V32Network(config, dtype=dtype) if isinstance(config, V32Config) else Network(config, dtype=dtype)
    network.requires_grad_(False)
    network.initialise()
    return network


def history_of(config: AnyConfig, dtype: torch.dtype = DTYPE) -> ContiguousHistory:
    """An empty history, which keeps everything in `dtype` but V4's unfinished compressor windows, which are float32."""
    layout = layout_of(config, dtype) if isinstance(config, V32Config) else Layout.of(config, dtype=dtype)
    return ContiguousHistory(layout)


def fill(history: ContiguousHistory, tokens: int, room: int, draw: Draw) -> None:
    """Make the first slot hold `tokens` tokens, whatever their rows, with storage for the entries of `room` more.

    Row by kind of row, so that nothing is held twice. What `draw` gives for the entries of the room is overwritten
    before it is read.
    """
    for key, entries in history.layout.entries.items():
        rows = draw(key, entries, (tokens + room) // entries.ratio)
        history.restore(0, Snapshot(tokens, 0, {}, {key: rows}))
    for key, recent in history.layout.recent.items():
        rows = draw(key, recent, recent.needed(tokens))
        history.restore(0, Snapshot(tokens, 0, {key: rows}, {}))


def random_rows(seed: int) -> Draw:
    """Standard normal rows: latents, window, entries and keys are what a norm leaves, and have that scale."""
    source = torch.Generator().manual_seed(seed)

    def draw(key: Key, kept: RecentRows | EntryRows, count: int) -> Tensor:
        return torch.empty(count, kept.format.width, dtype=kept.format.dtype).normal_(generator=source)

    return draw


@dataclass(frozen=True)
class Group:
    """What a step spends on operators of one kind: seconds, and the operations of products among them."""

    seconds: float
    flops: int


# One row by a matrix of weights is an mm; heads by keys are a bmm, as are the few projections that every head or group
# has for itself. Of other operators those are named that have much of the time.
_GROUPS = {
    "weights": "mm addmm",
    "scores and attention": "bmm",
    "gathers and conversions": "index_select index gather copy_ cat remainder floor_divide clamp clamp_min_",
    "top-k": "topk gt eq cumsum scatter_ where sum bitwise_and bitwise_or masked_fill masked_fill_",
}


class Decoder:
    """A network that decodes random tokens behind a synthetic history, up to `context` tokens and no further."""

    def __init__(self, network: AnyNetwork, context: int, tokens: int) -> None:
        """`tokens`: how many will be decoded; the last of them sees all of `context`."""
        self.network = network
        self.history = history_of(network.config)
        fill(self.history, context - tokens, tokens, random_rows(context))
        self._source = torch.Generator().manual_seed(0)

    def step(self) -> None:
        """One token, and its logits."""
        segments = [self.history.segment(1)]
        token = torch.randint(self.network.config.vocab_size, (1,), generator=self._source)
        with torch.inference_mode():
            self.network.logits(self.network(token, positions_of(segments), segments, self.history))

    def seconds(self, tokens: int) -> float:
        """Of a token, the mean of so many."""
        start = time.perf_counter()
        for _ in range(tokens):
            self.step()
        return (time.perf_counter() - start) / tokens

    def profiled(self, tokens: int) -> dict[str, Group]:
        """Where a token's time goes, the mean of so many; "the rest" is all operators of no group."""
        with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiled:
            for _ in range(tokens):
                self.step()
        found = {name: Group(0.0, 0) for name in (*_GROUPS, "the rest")}
        for event in profiled.key_averages():
            operator = event.key.removeprefix("aten::")
            name = next((name for name, operators in _GROUPS.items() if operator in operators.split()), "the rest")
            seconds = found[name].seconds + event.self_cpu_time_total / 1e6 / tokens
            found[name] = Group(seconds, found[name].flops + (event.flops or 0) // tokens)
        return found
