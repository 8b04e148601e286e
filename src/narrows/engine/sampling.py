"""One sequence's way from logits to tokens: penalties, constraint, temperature, cuts, the draw, drafts."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from narrows.engine.request import SamplingParameters
from narrows.errors import NarrowsError, UsageError
from narrows.ops.sample import Summary, draw, soften, summarize
from narrows.ops.topk import top_k

__all__ = ["Sampled", "Sampler", "SamplingParameters"]

# An odd number whose bits look random: seed + index · this is another seed for every index.
_STRIDE = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Sampled:
    """A token and its log-probability, and the likeliest tokens with theirs, as many as were asked for.

    Log-probabilities are the model's own, log_softmax(logits): neither temperature nor penalties, cuts and constraints
    are in them, so they say the same of a token however it was drawn.
    """

    token: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...]


class Sampler:
    """Draws the tokens of one sequence. Its generator is its own: a seed gives the same text whatever else runs."""

    def __init__(
        self, parameters: SamplingParameters, vocab_size: int, prompt_ids: Sequence[int], index: int = 0
    ) -> None:
        """For the reply number `index` to a prompt. UsageError when logit_bias names a token outside the vocabulary."""
        self.parameters = parameters
        self._generator = torch.Generator().manual_seed(_seed(parameters.seed, index))
        for token in parameters.logit_bias:
            if token >= vocab_size:
                raise UsageError(f"logit_bias names token {token}, which lies outside the vocabulary of {vocab_size}.")
        self._biased = torch.tensor([*parameters.logit_bias], dtype=torch.int64)
        self._bias = torch.tensor([*parameters.logit_bias.values()], dtype=torch.float64)
        self._penalises = (
            parameters.repetition_penalty != 1 or parameters.presence_penalty != 0 or parameters.frequency_penalty != 0
        )
        self._unchanged = not self._penalises and not parameters.logit_bias
        # Per token of the vocabulary; empty where no penalty asks for them.
        counted = vocab_size if self._penalises else 0
        self._drawn = torch.zeros(counted, dtype=torch.int32)
        self._seen = torch.zeros(counted, dtype=torch.bool)
        if self._penalises:
            self._seen[torch.tensor(prompt_ids, dtype=torch.int64)] = True

    def draw(self, logits: Tensor, mask: Tensor | None = None) -> Sampled:
        """The next token, from logits [V]; `mask` [V]: what a constraint allows. Errors as in `distribution`."""
        summary = summarize(logits)
        if summary.finite and self._unchanged and mask is None and self.parameters.temperature == 0:
            return _report(summary.largest, logits, summary, self.parameters.logprobs)
        return _report(self._choose(logits, mask, self._generator), logits, summary, self.parameters.logprobs)

    def accept(self, token: int) -> None:
        """Count a token that now belongs to the reply, for the penalties."""
        if self._penalises:
            self._drawn[token] += 1
            self._seen[token] = True

    def distribution(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the next token is drawn from: logits [V] -> probabilities [V], float64.

        Greedy is one at the highest score, of equal ones at the lowest token. `mask` [V], bool, is true where a token
        is allowed. NarrowsError when the logits are not finite, UsageError when the mask allows nothing.
        """
        scores = self._scores(logits, mask)
        if self.parameters.temperature == 0:
            certain = torch.zeros_like(scores)
            certain[scores.argmax()] = 1.0
            return certain
        probabilities = soften(scores, float(self.parameters.temperature))
        kept = self._kept(probabilities)
        if kept == len(probabilities):
            return probabilities
        chosen = top_k(probabilities, kept)
        cut = torch.zeros_like(probabilities)
        cut[chosen] = probabilities[chosen]
        return cut / cut.sum()

    def guess(self, logits: Tensor, mask: Tensor | None = None, ahead: int = 0) -> int:
        """What `draw` would give `ahead` draws from now if the logits were these [V]; nothing is drawn.

        The same chance decides as will then, so that like distributions give like tokens.
        """
        chances = torch.Generator()
        chances.set_state(self._generator.get_state())
        if ahead:
            torch.rand(ahead, generator=chances, dtype=torch.float64)
        return self._choose(logits, mask, chances)

    def _choose(self, logits: Tensor, mask: Tensor | None, chances: torch.Generator) -> int:
        if self.parameters.temperature == 0:
            return int(self._scores(logits, mask).argmax())
        return int(draw(self.distribution(logits, mask)[None], chances))

    def _scores(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        """Logits [V] after penalties, bias and mask, float64."""
        if not bool(logits.isfinite().all()):
            raise NarrowsError(
                "the model's logits are not finite; its weights are damaged, or too large for this precision: choose "
                "float32, or restore them."
            )
        scores = logits.detach().to("cpu", torch.float64, copy=True)
        if self._penalises:
            factor = self.parameters.repetition_penalty
            repeated = torch.where(scores > 0, scores / factor, scores * factor)
            scores = torch.where(self._seen, repeated, scores)
            drawn = self._drawn.to(torch.float64)
            scores -= self.parameters.frequency_penalty * drawn + self.parameters.presence_penalty * drawn.clamp(max=1)
        scores[self._biased] += self._bias
        if mask is not None:
            if not bool(mask.any()):
                raise UsageError("the constraint allows no token here; loosen it, or leave it out.")
            scores[~mask] = -torch.inf
        return scores

    def _kept(self, probabilities: Tensor) -> int:
        """How many of the highest probabilities [V] top_k, top_p and min_p leave: each keeps the first of a ranking."""
        parameters = self.parameters
        kept = len(probabilities)
        if parameters.top_k is not None:
            kept = min(kept, parameters.top_k)
        if parameters.top_p < 1:
            kept = _nucleus(probabilities, kept, parameters.top_p)
        if parameters.min_p > 0:
            kept = min(kept, int((probabilities >= parameters.min_p * probabilities.max()).sum()))
        return kept


def score(token: int, logits: Tensor, alternatives: int) -> Sampled:
    """A token that stands where logits [V] say what may, with as many alternatives."""
    return _report(token, logits, summarize(logits), alternatives)


def _report(token: int, logits: Tensor, summary: Summary, alternatives: int | None) -> Sampled:
    """A token behind logits [V], with the log-probabilities that were asked for."""
    logprob = float(logits[token]) - summary.log_sum
    if not alternatives:
        return Sampled(token, logprob, ())
    row = logits.detach().to("cpu", torch.float64)
    likeliest = top_k(row, alternatives).tolist()
    found = [(other, float(row[other]) - summary.log_sum) for other in likeliest if other >= 0]
    found.sort(key=lambda one: (-one[1], one[0]))
    return Sampled(token, logprob, tuple(found))


def _nucleus(probabilities: Tensor, among: int, share: float) -> int:
    """The least number of highest probabilities that have `share` of what the highest `among` have together."""
    whole = float(probabilities.topk(among).values.sum() if among < len(probabilities) else probabilities.sum())
    width = min(among, 256)
    while True:  # mostly the first few suffice, and sorting all takes longer than the draw
        sums = probabilities.topk(width).values.cumsum(-1)
        if width == among or sums[-1] >= share * whole:
            return min(among, 1 + int((sums < share * whole).sum()))
        width = min(among, 8 * width)


def _seed(seed: int | None, index: int) -> int:
    """Of the reply number `index`; the first one's is the seed itself."""
    return secrets.randbits(64) if seed is None else (int(seed) + index * _STRIDE) % 2**64
