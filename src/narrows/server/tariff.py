"""What the served models cost: their names, and the names in the price book under which they are billed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import Any

from narrows.economics.prices import OTHERWISE, Entry, Price, PriceBook


class Tariff:
    """Prices of the models of one server."""

    def __init__(self, book: PriceBook, models: Iterable[str]) -> None:
        self.book, self._models = book, tuple(models)

    def entry(self, model: str, on: date) -> Entry:
        """What a served model is billed at on that day, and under which name."""
        return self.book.entry(model if model in self.book.names else OTHERWISE, on)

    def price(self, model: str, on: date) -> Price:
        """The same without its source."""
        return self.entry(model, on).price

    def told(self, on: date) -> dict[str, Any]:
        """All prices of that day as JSON: of the models here, and of those elsewhere that the book knows, to compare
        with. Picodollars for a token."""
        here = [(model, self.entry(model, on), True) for model in self._models]
        elsewhere = [name for name in self.book.names if name not in (*self._models, OTHERWISE)]
        known = [(name, entry, False) for name in elsewhere if (entry := self.book.known(name, on)) is not None]
        return {
            "on": on.isoformat(),
            "models": [
                {
                    "model": model,
                    "served": served,
                    "priced_as": entry.model,
                    "since": entry.since.isoformat(),
                    "source": entry.source,
                    "picodollars": {kind: getattr(entry.price, kind) for kind in ("hit", "miss", "output")},
                    "priority": str(entry.price.priority),
                }
                for model, entry, served in (*here, *known)
            ],
        }
