"""Configurations by name, as commands are given them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from narrows.economics.work import AnyConfig


def config_of(name: str) -> AnyConfig:
    """A configuration by a preset's name or its end, or a path. UsageError, naming the nearest presets."""
    from narrows.checkpoints.checkpoint import read_config
    from narrows.checkpoints.hub import local
    from narrows.checkpoints.paths import exists
    from narrows.economics.models import CONFIGS, known, unknown

    full = known(name)
    if full is not None:
        return CONFIGS[full]
    path = local(name)
    if not exists(path):
        raise unknown(name)
    return read_config(path)
