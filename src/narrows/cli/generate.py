"""`narrows generate`: continue a text."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from narrows.cli.options import (
    DeviceOption,
    MaxTokensOption,
    ModelOption,
    PrecisionOption,
    SeedOption,
    TemperatureOption,
)


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from standard input.")],
    model: ModelOption = "embedded",
    max_tokens: MaxTokensOption = 64,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
) -> None:
    """Continue a text, streaming it to standard output."""
    from narrows.cli.streaming import show
    from narrows.engine.model import load

    text = sys.stdin.read() if prompt == "-" else prompt
    loaded = load(model, device=device, precision=precision)
    show(loaded.stream(text, max_tokens=max_tokens, temperature=temperature, seed=seed))
