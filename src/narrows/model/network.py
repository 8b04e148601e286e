"""The network: one forward step over packed tokens, for training and generation alike."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from narrows.model.block import Block
from narrows.model.config import ModelConfig
from narrows.model.history import BatchHistory, History
from narrows.model.hyper import HyperHead
from narrows.model.indexer import Indexer
from narrows.model.linear import Linear
from narrows.model.moe import Experts
from narrows.model.mtp import MTPBlock
from narrows.model.norm import RMSNorm
from narrows.model.precision import Precision
from narrows.model.segments import Segment, Step, positions_of
from narrows.ops.dtypes import wide

__all__ = ["Network", "positions_of"]


@runtime_checkable
class _HasNeutralValues(Protocol):
    def reset_parameters(self) -> None: ...


class Network(nn.Module):
    """DeepSeek-V4. Parameters are uninitialised: load them, or call `initialise`.

    Matrices have `dtype`; norms, mHC, sinks, router and compressor inputs are float32 at least.
    """

    cache: Precision | None = None
    """The precision of a history that belongs to the network; None: that of its dtype."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        d, eps = config.hidden_size, config.rms_norm_eps
        # `from_pretrained` takes memory as it is, where `nn.Embedding` would draw random values first.
        self.embed = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, d, dtype=dtype, device=device), freeze=False
        )
        self.layers = nn.ModuleList(
            Block(config, layer, kind, hashed=config.is_hash_layer(layer), dtype=dtype, device=device)
            for layer, kind in enumerate(config.layer_types)
        )
        self.hc_head = HyperHead(config, dtype=dtype, device=device)
        self.norm = RMSNorm(d, eps, dtype=dtype, device=device)
        self.head = Linear(d, config.vocab_size, dtype=dtype, device=device)
        self.mtp = nn.ModuleList(
            MTPBlock(config, dtype=dtype, device=device) for _ in range(config.num_nextn_predict_layers)
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrices, and of what flows through them."""
        return self.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where all parameters lie."""
        return self.embed.weight.device

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def fingerprint(self) -> str:
        """A hash of all weights and of which modules round their inputs: with tokens, configuration and cache it
        decides what comes out."""
        rounding = [
            name
            for name, module in self.named_modules()
            if isinstance(module, Linear | Experts | Indexer) and module.rounds_inputs
        ]
        running = hashlib.sha256(repr(rounding).encode())
        for name, tensor in sorted(self.state_dict().items()):
            running.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            running.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return running.hexdigest()

    def forward(
        self, tokens: Tensor, positions: Tensor, segments: Sequence[Segment], history: History | None = None
    ) -> Tensor:
        """One step over N tokens of several sequences, packed.

        tokens, positions int64 [N]; segments in the order of the rows; history None: every past is empty, nothing is
        kept, and the step differentiates -> streams [N, hc_mult, d]. ValueError when these do not fit each other. A
        step that fails later, within the layers, leaves its slots of the history to be reset or restored.
        """
        embedded = self.embed(tokens)
        step, history = self._begin(tokens, positions, segments, history)
        streams = embedded[:, None, :].repeat(1, self.config.hc_mult, 1)
        for block in self.layers:
            streams = block(streams, tokens, step, history)
        history.commit(segments)
        return streams

    def logits(self, streams: Tensor) -> Tensor:
        """Next-token logits of the rows wanted: streams [R, hc_mult, d] -> [R, vocab], float32 at least."""
        return self.head(self.collapse(streams)).to(wide(streams.dtype))

    def collapse(self, streams: Tensor) -> Tensor:
        """What the head reads: streams [R, hc_mult, d] -> [R, d]. Training goes from here to its loss."""
        x: Tensor = self.norm(self.hc_head(streams))
        return x

    def mtp_forward(
        self,
        next_tokens: Tensor,
        positions: Tensor,
        segments: Sequence[Segment],
        streams: Tensor,
        history: History | None = None,
    ) -> Tensor:
        """The MTP block over the streams of the same rows: next_tokens [N] are the tokens that follow them.

        -> streams [N, hc_mult, d]. `history` is the MTP block's own (`PagedHistory.for_mtp`).
        """
        mtp = self._mtp()
        streams = mtp.combine(self.embed(next_tokens), streams)
        step, history = self._begin(next_tokens, positions, segments, history)
        streams = mtp(streams, next_tokens, step, history)
        history.commit(segments)
        return streams

    def mtp_logits(self, streams: Tensor) -> Tensor:
        """Logits of the token after the next: the MTP block's streams [R, hc_mult, d] -> [R, vocab]."""
        return self.head(self.mtp_collapse(streams)).to(wide(streams.dtype))

    def mtp_collapse(self, streams: Tensor) -> Tensor:
        """What the head reads of the MTP block: its streams [R, hc_mult, d] -> [R, d]."""
        return self._mtp().collapse(streams)

    def round_inputs(self) -> None:
        """From now on compute as kernels for weights in BF16, FP8 or MXFP4 do: every product with such a matrix reads
        its input rounded to BF16, and sums in float32.

        These are attention's projections, the indexer's `wq_b`, `weights_proj` and rotated queries, all experts' inputs
        and inner activations, the head, and MTP's `e_proj` and `h_proj`. Compressors and routers read theirs as they
        are (they do not call `Linear`), and so does all that has no such matrix.
        """
        for module in self.modules():
            if isinstance(module, Linear | Experts | Indexer):
                module.rounds_inputs = True

    def initialise(self) -> None:
        """Draw all parameters afresh: matrices normal with `initializer_range`, the rest at their neutral values."""
        with torch.no_grad():
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=self.config.initializer_range)
            for module in self.modules():
                if not isinstance(module, nn.Embedding) and isinstance(module, _HasNeutralValues):
                    module.reset_parameters()

    def _begin(
        self, tokens: Tensor, positions: Tensor, segments: Sequence[Segment], history: History | None
    ) -> tuple[Step, History]:
        if tokens.shape != positions.shape or tokens.dim() != 1:
            raise ValueError(
                f"tokens {list(tokens.shape)} and positions {list(positions.shape)} must be flat and equal"
            )
        step = Step(self.config, segments, positions)
        history = BatchHistory() if history is None else history
        history.begin(segments)
        return step, history

    def _mtp(self) -> MTPBlock:
        if not self.mtp:
            raise ValueError("this network has no MTP block (num_nextn_predict_layers is 0)")
        block = self.mtp[0]
        assert isinstance(block, MTPBlock)
        return block
