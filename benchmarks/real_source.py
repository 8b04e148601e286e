"""Long texts to measure on: the standard library's own sources, one behind the other."""

from __future__ import annotations

from narrows.engine.real_source import library_sources
from narrows.text.tokenizer import Tokenizer


def source_tokens(tokenizer: Tokenizer, count: int) -> list[int]:
    """`count` tokens: BOS, then whole files with EOS behind each, the last one cut. Always the same on one Python."""
    tokens = [tokenizer.bos_id]
    for text in library_sources():
        tokens += [*tokenizer.encode(text), tokenizer.eos_id]
        if len(tokens) >= count:
            return tokens[:count]
    raise ValueError(f"the standard library has {len(tokens):,} tokens, fewer than {count:,}")
