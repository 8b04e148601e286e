"""What OpenAI's chat and text completions ask alike: how to sample, how many answers, and how they are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, FiniteFloat

from narrows.errors import UsageError
from narrows.server.body import Body, Penalty, Seed, Share, Short, Temperature, Texts, Tokens, unsigned
from narrows.server.openai_wire import AskedTier

_PARAMETERS = ("top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


class StreamOptions(Body):
    """What a stream holds beside the reply."""

    include_usage: bool | None = None


class SampledBody(Body):
    """The fields that both have."""

    model: Short
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Tokens | None = None
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: FiniteFloat | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | Texts | None = None
    seed: Seed | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    service_tier: AskedTier | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with what it took."""
        return self.stream_options is not None and self.stream_options.include_usage is True

    def sampling(self) -> dict[str, Any]:
        """The parameters of sampling that are given; OpenAI's temperature where none is. UsageError."""
        given = {name: getattr(self, name) for name in _PARAMETERS}
        given |= {"seed": unsigned(self.seed), "logit_bias": _bias(self.logit_bias)}
        temperature = 1.0 if self.temperature is None else self.temperature
        return {"temperature": temperature} | {name: value for name, value in given.items() if value is not None}


def _bias(given: Mapping[str, float] | None) -> dict[int, float] | None:
    if given is None:
        return None
    for token in given:
        if not (token.isascii() and token.isdecimal() and len(token) < 10):
            raise UsageError(f"logit_bias names {token[:40]!r}, which is no token id; give whole numbers from 0.")
    return {int(token): bias for token, bias in given.items()}
