"""What may be asked of a generation, checked before a model is loaded for it; imports nothing that is slow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from narrows.errors import UsageError


@dataclass(frozen=True)
class SamplingParameters:
    """How a reply's tokens are drawn, and where it ends. UsageError, naming the field, for a value out of range.

    On the logits: `repetition_penalty` divides those of tokens that the prompt or the reply holds (multiplies negative
    ones), `frequency_penalty` is subtracted once for every time the reply holds a token, `presence_penalty` once for
    all, `logit_bias` is added by token. On softmax(logits / `temperature`), 0 being greedy: `top_k` keeps the k
    likeliest tokens, `top_p` the fewest likeliest ones that have this share of what top_k kept, `min_p` those with at
    least this share of the likeliest one's probability.

    `stop`: strings before which the text ends. `seed`: the same gives the same text, None another each time.
    `logprobs`: report as many alternatives to every token. `prompt_logprobs`: the same for the prompt's own tokens, all
    of which are computed then, known or not. `n`: so many replies.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1

    def __post_init__(self) -> None:
        check_request(self.max_tokens, self.temperature, 0 if self.seed is None else self.seed)
        for name, least, most in (("top_k", 1, None), ("logprobs", 0, 20), ("prompt_logprobs", 0, 20)):
            if getattr(self, name) is not None:
                _check_whole(name, getattr(self, name), least, most)
        _check_whole("n", self.n, 1, 128)
        for name, low, high in (("min_p", 0, 1), ("presence_penalty", -2, 2), ("frequency_penalty", -2, 2)):
            _check_number(name, getattr(self, name), low, high)
        for name in ("top_p", "repetition_penalty"):
            _check_number(name, getattr(self, name), 0, 1 if name == "top_p" else 100)
            if not getattr(self, name):
                raise UsageError(f"{name} is 0; choose a number above 0, 1 to leave the distribution as it is.")
        self._check_bias()
        self._check_stop()

    def _check_bias(self) -> None:
        if not isinstance(self.logit_bias, Mapping):
            raise UsageError(f"logit_bias is {self.logit_bias!r}; give numbers by token id.")
        for token, bias in self.logit_bias.items():
            _check_whole("a token id in logit_bias", token, 0, None)
            _check_number(f"logit_bias of token {token}", bias, -100, 100)

    def _check_stop(self) -> None:
        if not isinstance(self.stop, tuple) or not all(isinstance(one, str) for one in self.stop):
            raise UsageError(f"stop is {self.stop!r}; give a tuple of strings.")
        if "" in self.stop:
            raise UsageError("a stop string is empty, which every text holds; leave it out.")


@dataclass(frozen=True)
class ThinkingBudget:
    """A reply that begins inside its reasoning has `tokens` for it; then comes the token `end`, if it has not yet.

    UsageError for less than 0 tokens.
    """

    tokens: int
    end: int

    def __post_init__(self) -> None:
        _check_whole("the thinking budget", self.tokens, 0, None)


def check_request(max_tokens: Any, temperature: Any, seed: Any) -> None:
    """UsageError unless max_tokens is a whole number from 1, temperature a number from 0, seed one of 64 bits."""
    for name, value in (("max_tokens", max_tokens), ("seed", seed)):
        _check_kind(name, value, Integral, "a whole number")
    _check_kind("temperature", temperature, Real, "a number")
    if int(max_tokens) < 1:
        raise UsageError(f"max_tokens is {max_tokens}; ask for at least 1.")
    if not 0 <= float(temperature) < float("inf"):
        raise UsageError(f"temperature is {temperature}; choose 0 (greedy) or more.")
    if not 0 <= int(seed) < 2**64:
        raise UsageError(f"seed is {seed}; choose one from 0 to 2**64 - 1.")


def check_submission(parameters: Any, priority: Any, timeout: Any) -> None:
    """UsageError unless these are SamplingParameters, a whole number, and seconds or None."""
    _check_kind("parameters", parameters, SamplingParameters, "SamplingParameters")
    _check_kind("priority", priority, Integral, "a whole number")
    if timeout is not None:
        _check_number("timeout", timeout, 0, 1e9)


def check_thinking(thinking: Any, vocab_size: int) -> None:
    """UsageError unless this is a ThinkingBudget that ends with a token of the vocabulary, or None."""
    if thinking is not None:
        _check_kind("thinking", thinking, ThinkingBudget, "a ThinkingBudget")
        _check_whole("the end of the thinking budget", thinking.end, 0, vocab_size - 1)


def check_prompt(prompt: Sequence[Any], vocab_size: int, positions: int) -> tuple[int, ...]:
    """The prompt's token ids. UsageError for none, too many, or what is no id of the vocabulary."""
    if isinstance(prompt, str | bytes):
        raise UsageError("the prompt is text; give its token ids, with the model's BOS before them.")
    if len(prompt) == 0:
        raise UsageError("the prompt is empty; give it at least one token of text.")
    if len(prompt) > positions:
        raise UsageError(f"the prompt has {len(prompt)} tokens but the model {positions} positions; shorten it.")
    if not all(type(token) is int for token in prompt):  # long prompts are plain numbers: no more than a glance each
        for token in prompt:
            _check_kind("a token id", token, Integral, "a whole number")
        prompt = [int(token) for token in prompt]
    for token in (min(prompt), max(prompt)):
        if not 0 <= token < vocab_size:
            raise UsageError(f"token id {token} lies outside the vocabulary of {vocab_size}.")
    return tuple(prompt)


def _check_whole(name: str, value: Any, least: int, most: int | None) -> None:
    _check_kind(name, value, Integral, "a whole number")
    if int(value) < least or (most is not None and int(value) > most):
        raise UsageError(f"{name} is {value}; choose {least} {'or more' if most is None else f'to {most}'}.")


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    _check_kind(name, value, Real, "a number")
    if not low <= float(value) <= high:
        raise UsageError(f"{name} is {value}; choose {low} to {high}.")


def _check_kind(name: str, value: Any, kind: type, wanted: str) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        raise UsageError(f"{name} is {value!r}; give {wanted}.")
