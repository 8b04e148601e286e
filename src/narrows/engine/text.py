"""A sequence's tokens as text: whole characters, no control tokens, nothing behind a stop string."""

from __future__ import annotations

from narrows.engine.stops import StopStrings
from narrows.text.tokenizer import Detokenizer, Tokenizer


class TextStream:
    """Pieces of text as they become safe to show. Without a tokenizer there is no text."""

    def __init__(self, tokenizer: Tokenizer | None, stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer)
        self._stops = StopStrings(stop)

    @property
    def stopped(self) -> bool:
        """A stop string came: there will be no more text."""
        return self._stops.finished

    def push(self, token: int) -> str:
        """The next token -> what may be shown now."""
        if self._tokenizer is None or self._detokenizer is None:
            return ""
        control = self._tokenizer.is_control(token)
        return self._stops.push(self._detokenizer.finish() if control else self._detokenizer.push(token))

    def finish(self) -> str:
        """The end -> what was held back and is no part of a stop string."""
        if self._detokenizer is None or self.stopped:
            return ""
        return self._stops.push(self._detokenizer.finish()) + self._stops.finish()
