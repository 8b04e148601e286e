"""The formulas count what PyTorch's counter sees when the networks run, component by component, to the operation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from narrows.economics.work import AnyConfig, decode_work, prefill_work
from narrows.model.config import LayerKind
from narrows.model.history import ContiguousHistory
from narrows.model.network import Network
from narrows.model.presets import TINY
from narrows.model.segments import Segment
from narrows.model.v32.config import V32Config
from narrows.model.v32.network import V32Network
from narrows.model.v32.step import layout_of

OLD = V32Config(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    moe_intermediate_size=32,
    num_hidden_layers=3,
    first_k_dense_replace=1,
    num_attention_heads=4,
    q_lora_rank=32,
    kv_lora_rank=24,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=12,
    index_n_heads=16,
    index_head_dim=32,
    index_topk=16,
    n_routed_experts=4,
    n_shared_experts=2,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=2,
)
# Few of many entries, so that attention reads only those that were selected.
NEW = TINY.model_copy(update={"index_topk": 4, "sliding_window": 16, "hca_ratio": 32})


class Counted:
    """What the counter saw of a step, by module and operation. Float64, which no kernel takes out of its sight."""

    def __init__(self, network: Network | V32Network, past: int, rows: int) -> None:
        self.config = network.config
        config: Any = network.config
        kept = layout_of(config, torch.float64) if isinstance(config, V32Config) else config
        history = ContiguousHistory(kept, dtype=torch.float64)
        tokens = torch.arange(past + rows) % config.vocab_size
        with torch.no_grad():
            if past:
                network(tokens[:past], torch.arange(past), [Segment(past)], history)
            with FlopCounterMode(display=False) as counter:
                out = network(tokens[past:], torch.arange(past, past + rows), [Segment(rows, past)], history)
                network.logits(out[-1:])
        name = type(network).__name__
        self._seen = {
            place.removeprefix(f"{name}."): {str(operation): flops for operation, flops in by.items()}
            for place, by in counter.get_flop_counts().items()
        }
        self.total = counter.get_total_flops()

    def of(self, place: str, operation: str = "") -> int:
        """In all layers' modules of that place, or in the one."""
        layers = range(self.config.num_hidden_layers) if place.startswith("*") else [None]
        return sum(
            flops
            for layer in layers
            for name, flops in self._seen.get(place.replace("*", f"layers.{layer}"), {}).items()
            if operation in name
        )


def network_of(config: AnyConfig) -> Network | V32Network:
    kind: Callable[..., Any] = V32Network if isinstance(config, V32Config) else Network
    network = kind(config, dtype=torch.float64).requires_grad_(False)
    torch.manual_seed(0)
    with torch.no_grad():
        network.initialise()
    made: Network | V32Network = network
    return made


def flops(work: Any) -> Counter[str]:
    found: Counter[str] = Counter()
    for product in work:
        found[product.component] += product.flops
        found[f"{product.component}: {product.name}"] += product.flops
    return found


@pytest.mark.parametrize("context", [1, 3, 9, 40, 64, 300])
def test_a_decoded_token_of_v4(context: int) -> None:
    counted, wanted = Counted(network_of(NEW), context - 1, 1), flops(decode_work(NEW, context))
    heads, width = NEW.num_attention_heads, NEW.head_dim
    layers, csa = NEW.num_hidden_layers, NEW.layer_types.count(LayerKind.CSA)
    assert counted.of("*.attn.compressor") == wanted["compressors"]
    scored = context // NEW.csa_ratio > NEW.index_topk  # or there is nothing to choose, and keys are made all the same
    heads_summed = 2 * csa * NEW.index_n_heads * (context // NEW.csa_ratio)  # which R's count leaves out
    indexer = wanted["indexer"] + heads_summed if scored else wanted["indexer: compressor"]
    assert counted.of("*.attn.indexer") == indexer
    projections = sum(counted.of(f"*.attn.{name}") for name in ("wq_a", "wq_b", "wkv", "wo_b"))
    first_output = 2 * layers * heads * width * NEW.o_lora_rank  # a product of no module
    assert projections + first_output == wanted["attention projections"]
    core = counted.of("*.attn") - projections - first_output - wanted["compressors"] - indexer
    sinks = 4 * layers * heads * width  # a sink stands among the keys
    assert core == wanted["attention core"] + sinks
    assert counted.of("*.ffn.gate") == wanted["router"]
    assert counted.of("*.ffn.experts") == wanted["experts: routed"]
    assert counted.of("*.ffn.shared_experts") == wanted["experts: shared"]
    assert counted.of("head") == wanted["head"]


def _hyper(counted: Counted) -> int:
    """Products with matrices in blocks that are neither attention's nor the experts'."""
    return counted.of("*", "aten.mm") - counted.of("*.attn", "aten.mm") - counted.of("*.ffn", "aten.mm")


@pytest.mark.parametrize("context", [1, 300])
def test_hyper_connections(context: int) -> None:
    counted, wanted = Counted(network_of(NEW), context - 1, 1), flops(decode_work(NEW, context))
    assert _hyper(counted) == wanted["hyper-connections: fn"]
    assert counted.of("hc_head", "aten.mm") == wanted["hyper-connections: head"]


@pytest.mark.parametrize("context", [1, 10, 16, 17, 300])
def test_a_decoded_token_of_v32(context: int) -> None:
    counted, wanted = Counted(network_of(OLD), context - 1, 1), flops(decode_work(OLD, context))
    scored = context > OLD.index_topk
    heads_summed = 2 * OLD.num_hidden_layers * OLD.index_n_heads * context
    assert counted.of("*.attn.indexer") == (wanted["indexer"] + heads_summed if scored else wanted["indexer: keys"])
    projections = sum(counted.of(f"*.attn.{name}") for name in ("wq_a", "wq_b", "wkv_a", "wo"))
    rest = counted.of("*.attn") - projections - counted.of("*.attn.indexer")
    assert projections + wanted["attention projections: absorbed"] == wanted["attention projections"]
    assert rest == wanted["attention projections: absorbed"] + wanted["attention core"]
    assert counted.of("*.ffn.gate") == wanted["router"]
    assert counted.of("*.ffn") - counted.of("*.ffn.gate") == wanted["experts"]
    assert counted.of("head") == wanted["head"]
    assert counted.total == sum(counted.of(place) for place in ("*.attn", "*.ffn", "head"))


@pytest.mark.parametrize("config", [NEW, OLD])
@pytest.mark.parametrize(("past", "rows"), [(0, 1), (0, 70), (37, 50), (128, 64)])
def test_a_prefill(config: AnyConfig, past: int, rows: int) -> None:
    """All but what tiles repeat: attention's scores and the indexer's are the decoded tokens' sums (test_work.py)."""
    counted, wanted = Counted(network_of(config), past, rows), flops(prefill_work(config, rows, past))
    assert counted.of("head") == wanted["head"]
    assert counted.of("*.ffn.gate") == wanted["router"]
    assert counted.of("*.ffn") - counted.of("*.ffn.gate") == wanted["experts"]
    names = ("wq_a", "wq_b", "wkv_a", "wo") if isinstance(config, V32Config) else ("wq_a", "wq_b", "wkv", "wo_b")
    projections = sum(counted.of(f"*.attn.{name}") for name in names)
    if isinstance(config, V32Config):
        assert projections + wanted["attention projections: absorbed"] == wanted["attention projections"]
    else:
        first_output = 2 * rows * config.num_hidden_layers * config.num_attention_heads * config.head_dim
        assert projections + first_output * config.o_lora_rank == wanted["attention projections"]
        assert counted.of("*.attn.compressor") == wanted["compressors"]
        assert counted.of("*.attn.indexer.compressor") == wanted["indexer: compressor"]
        assert _hyper(counted) == wanted["hyper-connections: fn"]
