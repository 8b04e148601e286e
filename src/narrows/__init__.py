"""Narrows: an open implementation of the DeepSeek-V4 system.

model = narrows.load("embedded")
print(model.generate("def fibonacci(n):").text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from narrows.engine.engine import Engine
    from narrows.engine.grammar import Grammar
    from narrows.engine.limits import Limits
    from narrows.engine.model import Completion, Model, load
    from narrows.engine.request import SamplingParameters, ThinkingBudget
    from narrows.engine.sequence import Drawn, Finished, Prefilled, Scored
    from narrows.engine.store import Prefixes
    from narrows.errors import NarrowsError, UsageError

    __version__: str

_HOMES = {
    "engine.limits": ["Limits"],
    "engine.engine": ["Engine"],
    "engine.grammar": ["Grammar"],
    "engine.model": ["Completion", "Model", "load"],
    "engine.request": ["SamplingParameters", "ThinkingBudget"],
    "engine.sequence": ["Drawn", "Finished", "Prefilled", "Scored"],
    "engine.store": ["Prefixes"],
    "errors": ["NarrowsError", "UsageError"],
}

__all__ = [
    "Completion",
    "Drawn",
    "Engine",
    "Finished",
    "Grammar",
    "Limits",
    "Model",
    "NarrowsError",
    "Prefilled",
    "Prefixes",
    "SamplingParameters",
    "Scored",
    "ThinkingBudget",
    "UsageError",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    # Lazily, because the engine imports PyTorch, and `narrows --help` should not wait for it.
    if name == "__version__":
        from importlib.metadata import version

        return version("narrows")
    for home, names in _HOMES.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f"narrows.{home}"), name)
    raise AttributeError(f"module 'narrows' has no attribute {name!r}")
