"""Constrained output: which tokens may come next so that the reply is what was asked for, by llguidance.

`mask` and `advance` follow the reply token by token; a grammar is compiled once and followed by any number of replies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from narrows.engine.lark import checked, json_rule, refused
from narrows.engine.tool_grammar import tool_calls
from narrows.errors import NarrowsError, UsageError
from narrows.text.messages import Tool
from narrows.text.tokenizer import DSML, Tokenizer

# Its errors are for whoever sent the grammar: a reason, not the parser's insides.
_LIMITS = LLParserLimits(verbose_errors=False)


class Vocabulary:
    """A tokenizer as grammars need it; made once for a model, in about half a second for 129,280 tokens."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        """For a model of `size` logits; those for which the tokenizer has no token are never allowed."""
        self.tokenizer, self.size = tokenizer, size
        wrapper = TokenizerWrapper(_Tokens(tokenizer, size))
        self.compiled = LLTokenizer(wrapper, n_vocab=size, eos_token=tokenizer.eos_id)


class _Tokens:
    """What `TokenizerWrapper` asks a tokenizer for."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.tokens = [tokenizer.bytes_of(token) for token in range(size)]
        self.special_token_ids = [token for token in range(size) if tokenizer.is_control(token)]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


class Grammar:
    """What a reply must be, compiled. UsageError, with llguidance's reason, for what cannot be."""

    def __init__(self, vocabulary: Vocabulary, lark: str, owner: str) -> None:
        """From Lark text; errors name `owner`. See `json_schema`, `regex`, `lark` and `tool_calls`."""
        self.vocabulary = vocabulary
        self.matcher = LLMatcher(vocabulary.compiled, checked(lark, owner), log_level=0, limits=_LIMITS)
        if not self.matcher.is_error():
            self.matcher.compute_bitmask()  # finds grammars that nothing satisfies
            if self.matcher.is_error():
                raise UsageError(f"{owner} allows no reply at all; loosen it.")
        if self.matcher.is_error():
            raise refused(owner, self.matcher.get_error())

    @classmethod
    def json_schema(cls, vocabulary: Vocabulary, schema: Mapping[str, Any]) -> Self:
        """A JSON value that satisfies `schema`: its properties in their order, nothing around the value."""
        if not isinstance(schema, Mapping):
            raise UsageError(f"the JSON schema is {schema!r}; give an object.")
        return cls(vocabulary, f"start: {json_rule(schema, 'the JSON schema')}", "the JSON schema")

    @classmethod
    def regex(cls, vocabulary: Vocabulary, pattern: str) -> Self:
        """A text that matches `pattern` as a whole. Without look-around and references back, which llguidance lacks."""
        owner = "the regular expression"
        return cls(vocabulary, LLMatcher.grammar_from_regex(checked(pattern, owner)), owner)

    @classmethod
    def lark(cls, vocabulary: Vocabulary, text: str) -> Self:
        """A text that the rule `start` derives, in llguidance's kind of Lark."""
        return cls(vocabulary, text, "the grammar")

    @classmethod
    def tool_calls(
        cls,
        vocabulary: Vocabulary,
        tools: Sequence[Tool],
        *,
        required: bool = False,
        parallel: bool = True,
        content: Mapping[str, Any] | None = None,
    ) -> Self:
        """Content that may end in calls of `tools` or, if they are `required`, calls alone, which satisfy the schemas.

        `parallel`: several calls; `content`: the JSON schema of a reply that calls nothing. NarrowsError where the
        tokenizer has no ｜DSML｜.
        """
        dsml = vocabulary.tokenizer.control(DSML)
        lark = tool_calls(tools, dsml, required=required, parallel=parallel, content=content)
        return cls(vocabulary, lark, "the grammar of the tools")


class GrammarState:
    """How far one reply has come in a grammar."""

    def __init__(self, grammar: Grammar, after: int | None = None) -> None:
        """At the beginning of a reply or, with `after`, before the token from behind which the grammar holds.

        Until that token, which ends the reasoning, everything may come but the reply's end.
        """
        self._vocabulary = grammar.vocabulary
        self._matcher = grammar.matcher.deep_copy()
        self._after = after
        self._mask: Tensor | None = None

    @property
    def may_end(self) -> bool:
        """Whether what has come is a whole reply."""
        return self._after is None and self._matcher.is_accepting()

    def mask(self) -> Tensor:
        """Which tokens may come next: bool [V]. The end token exactly where the reply may end.

        UsageError, with llguidance's reason, where a grammar leads nowhere or becomes too much to follow.
        """
        if self._after is not None:
            allowed = torch.ones(self._vocabulary.size, dtype=torch.bool)
            allowed[self._eos] = False
            return allowed
        if self._mask is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            self._check()
            flags = np.unpackbits(bits, bitorder="little")[: self._vocabulary.size]
            self._mask = torch.from_numpy(flags).to(torch.bool)
        return self._mask

    def advance(self, token: int) -> None:
        """Follow the reply by one token. NarrowsError for one that `mask` does not allow, UsageError as from `mask`."""
        self._check()
        if not self._allows(token):
            raise NarrowsError(f"the constraint does not allow token {token} here; draw it under the mask.")
        self._mask = None
        if self._after is not None:
            self._after = None if token == self._after else self._after
        else:
            self._matcher.consume_token(token)
            self._check()

    @property
    def _eos(self) -> int:
        return self._vocabulary.tokenizer.eos_id

    def _allows(self, token: int) -> bool:
        if token == self._eos:
            return self.may_end
        return self._after is not None or self._matcher.validate_tokens([token]) == 1

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().splitlines()[0]
            raise UsageError(f"the constraint cannot be followed any further ({reason}); simplify it.")
