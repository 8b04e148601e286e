"""Narrows: an open implementation of the DeepSeek-V4 system.

model = narrows.load("embedded")
print(model.generate("def fibonacci(n):").text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from narrows.engine.core import Limits
    from narrows.engine.engine import Engine
    from narrows.engine.model import Completion, Model, load
    from narrows.engine.request import SamplingParameters
    from narrows.engine.store import Prefixes

    __version__: str

__all__ = ["Completion", "Engine", "Limits", "Model", "Prefixes", "SamplingParameters", "__version__", "load"]

_ELSEWHERE = {"Engine": "engine", "Limits": "core", "Prefixes": "store", "SamplingParameters": "request"}


def __getattr__(name: str) -> Any:
    # Lazily, because the engine imports PyTorch, and `narrows --help` should not wait for it.
    if name == "__version__":
        from importlib.metadata import version

        return version("narrows")
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(f"narrows.engine.{_ELSEWHERE.get(name, 'model')}"), name)
    raise AttributeError(f"module 'narrows' has no attribute {name!r}")
