"""The network on the CPU kernels of native/: weights bound once, a forward step in one call.

It computes what `Network` does with rounded inputs (`Network.round_inputs`), which is its reference, and reads and
writes the same histories.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from narrows.model.config import LayerKind, ModelConfig
from narrows.model.history import Key, Layout
from narrows.model.precision import Precision
from narrows.model.segments import Segment, frequencies
from narrows.ops import native
from narrows.ops.packed import Packed

_KINDS = {LayerKind.SLIDING: "sliding", LayerKind.CSA: "csa", LayerKind.HCA: "hca"}
_SIZES = (
    *("vocab_size", "hidden_size", "num_attention_heads", "head_dim", "qk_rope_head_dim", "q_lora_rank", "o_groups"),
    *("o_lora_rank", "sliding_window", "max_position_embeddings", "index_n_heads", "index_head_dim", "index_topk"),
    *("csa_ratio", "hca_ratio", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "swiglu_limit"),
    *("routed_scaling_factor", "rms_norm_eps", "hc_eps", "hc_sinkhorn_iters", "hc_mult"),
)


def why_not(config: ModelConfig) -> str | None:
    """Why the kernels cannot run a network of this shape; None where they can."""
    return native.kernels.why_not(_sizes(config)) if native.available() else native.why_none()


def _sizes(config: ModelConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in _SIZES}


class Prefetched(NamedTuple):
    """Bytes of the experts that steps chose (`needed`), and of these, what was not in memory then (`absent`); experts
    that were `guessed` for layers whose router decides, how many of these were chosen (`right`), and how many of such
    layers were `chosen` at all."""

    needed: int
    absent: int
    guessed: int
    right: int
    chosen: int


class NativeNetwork:
    """Called like `Network`, on a CPU, for inference. `dtype` is that of its streams, `cache` its precision."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(
        self,
        config: ModelConfig,
        precision: Precision,
        matrices: Mapping[str, Packed],
        arrays: Mapping[str, Tensor],
        fingerprint: str = "",
        *,
        prefetch: int = 0,
    ) -> None:
        """Weights by the names of `Network`'s, experts' matrices one by one (`layers.0.ffn.experts.7.w1`). They stay
        where they are: views of a mapped file are read from it. `arrays`: embed.weight in BF16, tid2eid in int32, the
        rest in float32. `fingerprint` names the weights, where a history is to outlive them. `prefetch`: of a file
        that is larger than memory, so many bytes of experts are asked for before they are used; 0: none. ValueError for
        weights that do not fit, or a shape that the kernels do not take (`why_not`).
        """
        reason = why_not(config)
        if reason is not None:
            raise ValueError(f"the kernels cannot run this network: {reason}")
        self.config, self.cache, self._fingerprint = config, precision, fingerprint
        self.parameter_count = sum(packed.rows * packed.columns for packed in matrices.values()) + sum(
            array.numel()
            for name, array in arrays.items()
            if array.is_floating_point() and not name.endswith(".ffn.gate.bias")  # no parameter: a buffer
        )
        self.mtp = any(name.startswith("mtp.") for name in arrays)
        tensors = {
            "sliding_frequencies": frequencies(config, LayerKind.SLIDING),
            "compressed_frequencies": frequencies(config, LayerKind.HCA),
            **{
                name: tensor.view(torch.uint16) if name == "embed.weight" else tensor for name, tensor in arrays.items()
            },
        }
        kernels = native.kernels
        self._bound = kernels.Network(
            _sizes(config) | {"layer_types": [_KINDS[kind] for kind in config.layer_types]},
            {
                name: kernels.Matrix(packed.format, packed.rows, packed.columns, packed.values, packed.scales)
                for name, packed in matrices.items()
            },
            tensors,
            prefetch,
        )

    def __call__(self, tokens: Tensor, positions: Tensor, segments: Sequence[Segment], history: PagedMemory) -> Tensor:
        """`Network.forward`. What does not fit is refused before anything is stored: it costs no slot its history."""
        streams = torch.empty(len(tokens), self.config.hc_mult, self.config.hidden_size)
        _run(self._bound.step, tokens, positions, segments, history, streams)
        return streams

    def logits(self, streams: Tensor) -> Tensor:
        """`Network.logits`."""
        return self._logits(streams, draft=False)

    def mtp_forward(
        self,
        next_tokens: Tensor,
        positions: Tensor,
        segments: Sequence[Segment],
        streams: Tensor,
        history: PagedMemory,
    ) -> Tensor:
        """`Network.mtp_forward`."""
        streams = streams.contiguous()
        out = torch.empty_like(streams)
        _run(self._bound.draft_step, next_tokens, positions, segments, history, streams, out)
        return out

    def mtp_logits(self, streams: Tensor) -> Tensor:
        """`Network.mtp_logits`."""
        return self._logits(streams, draft=True)

    def prefetched(self) -> Prefetched:
        """What prefetching has found so far."""
        return Prefetched(*self._bound.prefetched())

    def fingerprint(self) -> str:
        """Its weights' name, and its precision."""
        return f"{self.cache} {self._fingerprint}"

    def _logits(self, streams: Tensor, *, draft: bool) -> Tensor:
        out = torch.empty(len(streams), self.config.vocab_size)
        self._bound.logits(streams.contiguous(), draft, torch.get_num_threads(), out)
        return out


class PagedMemory(Protocol):
    """A history whose memory a step may read and write itself, as `PagedHistory` says where everything lies. These
    tensors stay where they are."""

    @property
    def layout(self) -> Layout: ...
    @property
    def recent(self) -> dict[Key, Tensor]: ...
    @property
    def entries(self) -> dict[Key, Tensor]: ...
    @property
    def tables(self) -> Tensor: ...

    def begin(self, segments: Sequence[Segment]) -> None: ...
    def withdraw(self, segments: Sequence[Segment]) -> None: ...
    def commit(self, segments: Sequence[Segment]) -> None: ...


def _run(
    step: Callable[..., None],
    tokens: Tensor,
    positions: Tensor,
    segments: Sequence[Segment],
    history: PagedMemory,
    *streams: Tensor,
) -> None:
    """Begin a step, have the kernels compute it in the history's memory, and commit, or withdraw what they refuse."""
    table, memory = _table(segments), _memory(history)
    history.begin(segments)
    try:
        step(tokens, positions, table, memory, torch.get_num_threads(), *streams)
    except (TypeError, ValueError, MemoryError):  # all that kernels raise, which is before they write anything
        history.withdraw(segments)
        raise
    history.commit(segments)


def _memory(history: PagedMemory) -> Any:
    """A history's memory, bound once."""
    found = _memories.get(history)
    if found is None:
        layers = sorted({layer for layer, _ in history.recent})
        entry = history.layout.recent[layers[0], "window"].format
        keys = [kept.format for (_, name), kept in history.layout.entries.items() if name == "indexer"]
        parts = [
            (
                _bytes(history.recent[layer, "window"]),
                _bytes(history.recent.get((layer, "compressor"))),
                _bytes(history.recent.get((layer, "indexer"))),
                _bytes(history.entries.get((layer, "compressor"))),
                _bytes(history.entries.get((layer, "indexer"))),
            )
            for layer in layers
        ]
        found = native.kernels.History(
            parts, native.row_format(entry), native.row_format(keys[0] if keys else entry), history.tables
        )
        _memories[history] = found
    return found


_memories: WeakKeyDictionary[PagedMemory, Any] = WeakKeyDictionary()


def _bytes(memory: Tensor | None) -> Tensor | None:
    return None if memory is None else memory.view(torch.uint8)


def _table(segments: Sequence[Segment]) -> Tensor:
    if not segments:
        return torch.empty(0, 3, dtype=torch.int64)  # which the kernels refuse in words of their own
    return torch.tensor([(segment.rows, segment.past, segment.slot) for segment in segments])
