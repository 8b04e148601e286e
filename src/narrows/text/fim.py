"""Fill in the middle: the prompt that asks for the text between a prefix and a suffix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from narrows.text.tokenizer import FIM_BEGIN, FIM_END, FIM_HOLE, Tokenizer

Layout = Literal["psm", "spm"]
"""Prefix, suffix, middle, as the published models have it; or suffix first (arXiv 2207.14255), so that the middle
stands right behind the prefix that it continues, within the sliding window."""


def fim_prompt(
    tokenizer: Tokenizer, prefix: str, suffix: str, context: Sequence[int] = (), layout: Layout = "psm"
) -> list[int]:
    """The prompt after which the middle and EOS follow.

    psm: BOS `<｜fim▁begin｜>` prefix `<｜fim▁hole｜>` suffix `<｜fim▁end｜>`.
    spm: BOS `<｜fim▁begin｜>` `<｜fim▁hole｜>` suffix `<｜fim▁end｜>` prefix: psm of an empty prefix, its middle begun.
    `context`: tokens of whole files that stand before, behind BOS, EOS behind each of them.
    """
    return [
        tokenizer.bos_id,
        *context,
        *arranged(tokenizer, tokenizer.encode(prefix), tokenizer.encode(suffix), layout),
    ]


def spelled(text: str) -> tuple[str, str] | None:
    """Prefix and suffix of a text that is a prompt of psm with its control tokens spelled, as editors' templates write
    it. None for any other text."""
    if not (text.startswith(FIM_BEGIN) and text.endswith(FIM_END)):
        return None
    parts = text.removeprefix(FIM_BEGIN).removesuffix(FIM_END).split(FIM_HOLE)
    return (parts[0], parts[1]) if len(parts) == 2 else None


def arranged(tokenizer: Tokenizer, prefix: Sequence[int], suffix: Sequence[int], layout: Layout) -> list[int]:
    """Prefix and suffix between their control tokens."""
    first, last = (prefix, ()) if layout == "psm" else ((), prefix)
    return [
        tokenizer.control(FIM_BEGIN),
        *first,
        tokenizer.control(FIM_HOLE),
        *suffix,
        tokenizer.control(FIM_END),
        *last,
    ]
