"""`narrows generate`: continue a text."""

from __future__ import annotations

import io
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
from narrows.errors import UsageError


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads standard input.")],
    model: ModelOption = "embedded",
    max_tokens: MaxTokensOption = 64,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
) -> None:
    """Continue a text, streaming it to standard output."""
    from narrows.engine.request import check_request

    check_request(max_tokens, temperature, seed)
    text = _prompt(prompt)
    from narrows.cli.streaming import mention_context, show
    from narrows.engine.model import load

    loaded = load(model, device=device, precision=precision)
    generation = loaded.stream(text, max_tokens=max_tokens, temperature=temperature, seed=seed)
    mention_context(loaded, generation.prompt_tokens + max_tokens)
    show(generation, loaded)


def _prompt(prompt: str) -> str:
    """The text itself, from wherever it comes; UsageError if it is empty or not UTF-8."""
    try:
        if prompt == "-":
            prompt = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8").read()
        prompt.encode()  # bytes of an argument that are not UTF-8 come as halves of characters
    except UnicodeError as error:
        place = f"{'byte' if isinstance(error, UnicodeDecodeError) else 'character'} {getattr(error, 'start', 0)}"
        raise UsageError(f"the prompt is not UTF-8 text ({place}); convert it first.") from None
    if not prompt:
        raise UsageError("the prompt is empty; give it at least one character of text.")
    return prompt
