"""The MTP block equals the transcription of its description: whole, packed, token by token, and in its gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from narrows.engine.paged_history import PagedHistory
from narrows.model.network import Network
from narrows.model.segments import Segment
from tests.parity.configurations import Case, Tally, cases, irregular_chunks
from tests.parity.spec_mtp import SpecMTP, official_names
from tests.parity.test_parity import MARGIN, TIGHT, whole_streams

# The block is one sliding layer: what it needs to have seen is less than what the whole network does.
MECHANISMS = ("window slides", "learned routing", "narrow clamp", "YaRN", "no YaRN")
GRADIENTS = 1e-9


class Inputs(NamedTuple):
    """What the block reads of one sequence: the network's streams, and the token that follows each row."""

    streams: Tensor
    next_tokens: Tensor


def inputs(network: Network, tokens: list[Tensor]) -> list[Inputs]:
    """Of sequences of T + 1 tokens, the T rows whose next token is known."""
    streams = whole_streams(network, tokens)
    return [Inputs(s[:-1].detach(), t[1:]) for s, t in zip(streams, tokens, strict=True)]


def one_longer(case: Case) -> list[Tensor]:
    return Case(case.config, case.seed, tuple(length + 1 for length in case.lengths)).tokens()


def packed(network: Network, sequences: list[Inputs]) -> tuple[list[Tensor], list[Tensor]]:
    """The block over several sequences in one step -> streams and logits of each."""
    lengths = [len(sequence.next_tokens) for sequence in sequences]
    streams = network.mtp_forward(
        torch.cat([sequence.next_tokens for sequence in sequences]),
        torch.cat([torch.arange(length) for length in lengths]),
        [Segment(length) for length in lengths],
        torch.cat([sequence.streams for sequence in sequences]),
        None,
    )
    return list(streams.split(lengths)), list(network.mtp_logits(streams).split(lengths))


def chunked(network: Network, sequence: Inputs, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """The block over one sequence in several steps, through its own history."""
    history = PagedHistory.for_mtp(network.config, dtype=torch.float64)
    out = []
    for streams, next_tokens in zip(sequence.streams.split(sizes), sequence.next_tokens.split(sizes), strict=True):
        past = history.length()
        positions = torch.arange(past, past + len(next_tokens))
        out.append(network.mtp_forward(next_tokens, positions, [history.segment(len(next_tokens))], streams, history))
    return torch.cat(out), network.mtp_logits(torch.cat(out))


def test_mtp_whole_packed_and_in_steps() -> None:
    tally = Tally("MTP", MARGIN, mechanisms=MECHANISMS)

    @torch.no_grad()
    def check(case: Case) -> None:
        network = case.network()
        sequences = inputs(network, one_longer(case))
        weights = official_names(network.state_dict())
        specs = [SpecMTP(case.config, weights) for _ in sequences]
        wanted = [spec.forward(s.next_tokens, s.streams) for spec, s in zip(specs, sequences, strict=True)]
        if not tally.decided(case, min(spec.margin for spec in specs)):
            return
        for streams, logits, theirs in zip(*packed(network, sequences), wanted, strict=True):
            tally.close(streams, theirs[0], TIGHT)
            tally.close(logits, theirs[1], TIGHT)
        length = len(sequences[0].next_tokens)
        for sizes in ([1] * length, irregular_chunks(length, case.random())):
            streams, logits = chunked(network, sequences[0], sizes)
            tally.close(streams, wanted[0][0], TIGHT)
            tally.close(logits, wanted[0][1], TIGHT)

    tally.run(cases(most_sequences=2, longest=16), check)
    tally.finish()


def test_mtp_gradients() -> None:
    """Of the block's parameters, and of the embedding and the head that it shares with the network."""
    tally = Tally("MTP gradients", MARGIN, mechanisms=MECHANISMS)

    def check(case: Case) -> None:
        network = case.network()
        (sequence,) = inputs(network, one_longer(case))
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in parameters(network).items()}
        buffers = {name: tensor for name, tensor in network.named_buffers() if name.startswith("mtp.")}
        spec = SpecMTP(case.config, official_names({**leaves, **buffers}))
        _, theirs = spec.forward(*reversed(sequence))
        if not tally.decided(case, spec.margin):
            return
        _, (ours,) = packed(network, [sequence])
        direction = torch.randn(ours.shape, generator=case.generator(), dtype=torch.float64)
        (theirs * direction).sum().backward()
        (ours * direction).sum().backward()
        largest = max(float(leaf.grad.abs().max()) for leaf in leaves.values() if leaf.grad is not None)
        for name, parameter in parameters(network).items():
            wanted = leaves[name].grad
            assert wanted is not None, name
            assert parameter.grad is not None, name
            scale = max(float(wanted.abs().max()), 1e-6 * largest)
            error = float((parameter.grad - wanted).abs().max()) / scale
            tally.worst = max(tally.worst, error)
            assert error <= GRADIENTS, f"{name}: relative error {error:.2e}"
        others = [p for name, p in network.named_parameters() if name not in leaves]
        assert all(p.grad is None for p in others)

    tally.run(cases(longest=9), check)
    tally.finish()


def parameters(network: Network) -> dict[str, Tensor]:
    """Those that the MTP loss reaches."""
    shared = ("embed.weight", "head.weight")
    return {name: p for name, p in network.named_parameters() if name.startswith("mtp.") or name in shared}
