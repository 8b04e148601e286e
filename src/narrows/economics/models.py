"""Configurations by name: the published models, and the one that they are compared with."""

from __future__ import annotations

from difflib import get_close_matches

from narrows.economics.work import AnyConfig
from narrows.errors import UsageError
from narrows.model.presets import PRESETS
from narrows.model.v32.config import V32

PREDECESSOR = "deepseek-v3.2"

CONFIGS: dict[str, AnyConfig] = {**PRESETS, PREDECESSOR: V32}


def known(name: str) -> str | None:
    """The full name that a name, or its end, means: v4-pro. None where none or several do."""
    if name in CONFIGS:
        return name
    ending = [model for model in CONFIGS if name and model.endswith(f"-{name}")]
    return ending[0] if len(ending) == 1 else None


def unknown(name: str) -> UsageError:
    """That it is no name, with the nearest that are."""
    near = get_close_matches(name, CONFIGS, n=len(CONFIGS), cutoff=0)
    return UsageError(f"{name} is neither a path nor a preset; presets, the nearest first: {', '.join(near)}.")
