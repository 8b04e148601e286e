"""Long texts to measure on: the standard library's own sources, one behind the other."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from narrows.engine.context import read_source
from narrows.text.tokenizer import Tokenizer


def source_tokens(tokenizer: Tokenizer, count: int) -> list[int]:
    """`count` tokens: BOS, then whole files with EOS behind each, the last one cut. Always the same on one Python."""
    tokens = [tokenizer.bos_id]
    for text in _sources():
        tokens += [*tokenizer.encode(text), tokenizer.eos_id]
        if len(tokens) >= count:
            return tokens[:count]
    raise ValueError(f"the standard library has {len(tokens):,} tokens, fewer than {count:,}")


def _sources() -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if not {"site-packages", "dist-packages", "test", "tests"} & set(path.relative_to(library).parts):
            text = read_source(path)
            if text:
                yield text
