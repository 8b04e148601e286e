"""Samples: pieces of a package's files in their order, and their rearrangement for fill-in-the-middle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from narrows.corpus.shards import Corpus
from narrows.errors import NarrowsError
from narrows.text.fim import Layout, arranged
from narrows.text.tokenizer import Tokenizer

SHORTEST_MIDDLE = 8
"""Characters that a fill-in-the-middle sample leaves out at least, unless its text ends before."""

_SHORTEST_TARGET = 16  # tokens of a file that is worth cutting a middle from
_FIM_CONTROLS = 5  # BOS, begin, hole, end, EOS


class TokenStream:
    """Files in one flat array of tokens, each ending in EOS, the files of one package one behind the other.

    `tokens` [T], of the smallest unsigned integers that hold an id; `file_ends` and `package_ends` int64, ascending.
    Raises NarrowsError when there are none.
    """

    def __init__(self, tokenizer: Tokenizer, packages: Iterable[Iterable[Sequence[int] | NDArray[np.int64]]]) -> None:
        """`packages`: the tokens of every file of every package."""
        dtype = np.min_scalar_type(tokenizer.vocab_size)
        files: list[NDArray[Any]] = []
        sizes = []
        for package in packages:
            before = len(files)
            files += [np.append(np.asarray(file, dtype), dtype.type(tokenizer.eos_id)) for file in package]
            sizes.append(len(files) - before)
        if not files:
            raise NarrowsError("there is no document to train on; check where the corpus is read from.")
        self.tokenizer = tokenizer
        self.tokens = np.concatenate(files)
        self.file_ends = np.cumsum([len(file) for file in files])
        self.package_ends = self.file_ends[np.cumsum([size for size in sizes if size]) - 1]

    @classmethod
    def of(cls, corpus: Corpus, split: str) -> Self:
        """A split of a corpus."""
        packages: list[list[NDArray[np.int64]]] = []
        last = None
        for index in range(corpus.documents(split)):
            package = corpus.package(split, index).name
            if package != last:
                packages.append([])
                last = package
            packages[-1].append(corpus.tokens(split, index).numpy())
        return cls(corpus.tokenizer, packages)

    def cut(self, length: int, random: np.random.Generator) -> NDArray[np.int64]:
        """Every token once, in pieces of at most `length` that stay within a package: [P, 2], start and end.

        Each package's cuts are shifted by a random number of tokens, so that they fall elsewhere in every epoch.
        """
        pieces, start = [], 0
        for end in self.package_ends.tolist():
            cuts = np.array([start, *range(start + int(random.integers(1, length + 1)), end, length), end])
            pieces.append(np.stack((cuts[:-1], cuts[1:]), axis=1))
            start = end
        return np.concatenate(pieces)


def fim_sample(
    tokenizer: Tokenizer, tokens: Sequence[int], most: int, random: np.random.Generator, layout: Layout = "psm"
) -> list[int]:
    """`tokens` with their last file rearranged: the files before it, prefix and suffix, then the middle and EOS.

    At most `most` tokens: what does not fit is taken from the beginning first, from the suffix's end next. The text is
    cut at characters, not at tokens, as a cursor would.
    """
    starts = [0, *(place + 1 for place, token in enumerate(tokens) if token == tokenizer.eos_id)]
    lengths = np.diff([*starts, len(tokens)])
    worth = [number for number, length in enumerate(lengths.tolist()) if length >= _SHORTEST_TARGET]
    chosen = worth[-1] if worth else int(lengths.argmax())
    first = starts[chosen]
    context, file = tokens[:first], tokens[first : first + int(lengths[chosen])]
    text = tokenizer.decode(token for token in file if token != tokenizer.eos_id).strip("\ufffd")
    start, end = middle_of(text, random)
    prefix, middle, suffix = map(tokenizer.encode, (text[:start], text[start:end], text[end:]))
    surplus = max(0, len(context) + len(prefix) + len(suffix) + len(middle) + _FIM_CONTROLS - most)
    from_context = min(surplus, len(context))
    from_prefix = min(surplus - from_context, len(prefix))
    from_suffix = min(surplus - from_context - from_prefix, len(suffix))
    return [
        tokenizer.bos_id,
        *context[from_context:],
        *arranged(tokenizer, prefix[from_prefix:], suffix[: len(suffix) - from_suffix], layout),
        *middle,
        tokenizer.eos_id,
    ][:most]


def middle_of(text: str, random: np.random.Generator) -> tuple[int, int]:
    """Where the middle begins and ends, as editors ask for it: a third each of

    the rest of a line from some place in it, a few whole lines (their number log-uniform), and any stretch at all (its
    length log-uniform from SHORTEST_MIDDLE to all that follows).
    """
    start = int(random.integers(0, len(text) + 1))
    kind = int(random.integers(3))
    if kind == 0:
        end = text.find("\n", start)
        return start, len(text) if end < 0 else end
    if kind == 1:
        start = text.rfind("\n", 0, start) + 1
        following = text[start:].splitlines(keepends=True)
        count = max(1, round(min(len(following), 30) ** random.random()))
        return start, start + len("".join(following[:count]).removesuffix("\n"))
    rest = len(text) - start
    return start, start + min(rest, int(SHORTEST_MIDDLE * max(1.0, rest / SHORTEST_MIDDLE) ** random.random()))
