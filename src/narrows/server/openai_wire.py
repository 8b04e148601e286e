"""What OpenAI's endpoints share on the wire: usage, scores of tokens, efforts, the service tier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from narrows.engine.sequence import Drawn
from narrows.server.accounting import Tier, Usage
from narrows.text.messages import Effort
from narrows.text.tokenizer import Tokenizer

AskedEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
EFFORTS: dict[AskedEffort, Effort] = {
    "none": "none",
    "minimal": "none",
    "low": "high",
    "medium": "high",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}
"""What the model was trained with, of what can be asked for."""

AskedTier = Literal["auto", "default", "flex", "scale", "priority", "fast"]


def tier_of(asked: AskedTier | None) -> Tier:
    """The tier that a request runs and is charged in."""
    return "priority" if asked == "priority" else "default"


def usage_of(usage: Usage) -> dict[str, Any]:
    """Both vocabularies: OpenAI's details, and DeepSeek's hits and misses."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.output,
        "total_tokens": usage.prompt + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.hit},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
        "prompt_cache_hit_tokens": usage.hit,
        "prompt_cache_miss_tokens": usage.miss,
    }


def scores_of(tokenizer: Tokenizer, drawn: Sequence[Drawn]) -> list[dict[str, Any]]:
    """Log-probabilities of tokens and of what could have stood in their place."""
    return [
        {
            **_score(tokenizer, one.token, one.logprob),
            "top_logprobs": [_score(tokenizer, token, logprob) for token, logprob in one.alternatives],
        }
        for one in drawn
    ]


def _score(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    spelled = tokenizer.bytes_of(token)
    return {"token": spelled.decode("utf-8", errors="replace"), "logprob": logprob, "bytes": [*spelled]}
