"""The tokenizer: a byte-level BPE of 2,048 tokens, trained on the corpus.

2,048 is small on purpose: embedding and head are two matrices of that many rows, and the whole model has to fit in
8 MB. Every byte is a token, so any text can be encoded, whatever language it is in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from narrows.text.tokenizer import BOS, CONTROL_TOKENS, EOS

VOCABULARY = 2048

# How text is cut before pairs are merged; no token reaches across a cut. In words:
PIECES = "|".join(
    [
        r"\n[\n ]*",  # line ends with the indentation of the next line
        r"[^\n\p{L}\p{N}]?\p{L}+",  # a word with the one character before it: " return", ".append", "_name"
        r" ?\p{N}",  # digits one by one
        r" ?[^\s\p{L}\p{N}]+",  # punctuation: "):", " ==", "[["
        r"\s+",  # all other white space
    ]
)


def train_tokenizer(texts: Iterable[str], directory: Path) -> None:
    """Learn the merges from `texts` and write tokenizer.json and tokenizer_config.json into `directory`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(content, special=True, normalized=False) for content in CONTROL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    # For transformers, which reads the roles of BOS and EOS from a second file.
    roles = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "add_bos_token": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(roles, ensure_ascii=False, indent=2) + "\n", "utf-8")
