"""How much of its budget for reasoning a reply has used: when it is spent, the token that ends it is forced."""

from __future__ import annotations

import torch
from torch import Tensor

from narrows.engine.request import ThinkingBudget


class Thinking:
    """One reply's budget."""

    def __init__(self, budget: ThinkingBudget, vocab_size: int) -> None:
        self._end, self._vocab_size = budget.end, vocab_size
        self._left: int | None = budget.tokens  # None when the reasoning is over

    def mask(self) -> Tensor | None:
        """Which tokens may come next: bool [V], the end alone; None where the budget forbids nothing."""
        if self._left != 0:
            return None
        allowed = torch.zeros(self._vocab_size, dtype=torch.bool)
        allowed[self._end] = True
        return allowed

    def advance(self, token: int) -> None:
        """Follow the reply by one token."""
        if self._left is not None:
            self._left = None if token == self._end else self._left - 1
