"""`narrows complete`: write what belongs at a place in a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from narrows.cli.options import (
    DeviceOption,
    MaxTokensOption,
    ModelOption,
    PrecisionOption,
    SeedOption,
    TemperatureOption,
)
from narrows.errors import NarrowsError, UsageError

if TYPE_CHECKING:
    from narrows.engine.model import Model
    from narrows.text.tokenizer import Tokenizer

# Lines before the cursor that are shown above the completion.
SHOWN_LINES = 6


def complete(
    place: Annotated[str, typer.Argument(metavar="FILE[:LINE[:COLUMN]]", help="Where to write; lines count from 1.")],
    model: ModelOption = "embedded",
    max_tokens: MaxTokensOption = 64,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
) -> None:
    """Complete a file at a place: before COLUMN of LINE, at the end of LINE, or at the end of the file.

    The completion streams to standard output; the lines before it and a summary go to standard error.
    """
    from rich.console import Console

    from narrows.cli.streaming import show
    from narrows.engine.model import load

    path, prefix, suffix = split_at(place)
    loaded = load(model, device=device, precision=precision)
    prompt, rest = fit(loaded, prefix, suffix, max_tokens)
    console = Console(stderr=True)
    console.print(f"{path}, line {prefix.count(chr(10)) + 1}", style="dim", highlight=False)
    shown = "".join(prefix.splitlines(keepends=True)[-SHOWN_LINES:])
    console.print(shown, style="dim", end="", highlight=False, markup=False, soft_wrap=True)
    show(loaded.stream(prompt, suffix=rest, max_tokens=max_tokens, temperature=temperature, seed=seed))


def split_at(place: str) -> tuple[Path, str, str]:
    """The file named by FILE[:LINE[:COLUMN]], and its text before and after that place.

    Raises UsageError for a place outside the file, NarrowsError for a file that cannot be read as text.
    """
    match = re.fullmatch(r"(.+?)(?::(\d+))?(?::(\d+))?", place, re.DOTALL)
    if match is None:
        raise UsageError("no file is named; give FILE, FILE:LINE or FILE:LINE:COLUMN.")
    name, line, column = match.groups()
    if Path(place).is_file():
        name, line, column = place, None, None
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NarrowsError(f"{path} cannot be read ({error.strerror}); name a text file.") from None
    except UnicodeDecodeError as error:
        raise NarrowsError(f"{path} is not UTF-8 text (byte {error.start}); convert it first.") from None
    if line is None:
        return path, text, ""
    lines = text.split("\n")
    if not 1 <= int(line) <= len(lines):
        raise UsageError(f"{path} ends at line {len(lines)}; there is no line {line}.")
    length = len(lines[int(line) - 1])
    if column is not None and not 1 <= int(column) <= length + 1:
        raise UsageError(f"line {line} of {path} has {length} characters; there is no column {column}.")
    start = sum(len(earlier) + 1 for earlier in lines[: int(line) - 1])
    at = start + (length if column is None else int(column) - 1)
    return path, text[:at], text[at:]


def fit(model: Model, prefix: str, suffix: str, max_tokens: int) -> tuple[str, str]:
    """The end of `prefix` and the beginning of `suffix` that fit the context the model was trained for.

    Three quarters of it go to the prefix, unless the suffix needs less than its quarter. Cut at line ends.
    """
    config = model.config
    budget = (config.trained_context or config.max_position_embeddings) - max_tokens - 4
    if budget < 1:
        raise UsageError(f"max_tokens {max_tokens} leaves no room in the model's context; ask for fewer.")
    tokenizer = model.tokenizer
    after = _begin(tokenizer, suffix, budget // 4)
    # Read backwards, the end of the prefix is a beginning too.
    before = _begin(tokenizer, prefix[::-1], budget - len(tokenizer.encode(after)))[::-1]
    return before, after


def _begin(tokenizer: Tokenizer, text: str, room: int) -> str:
    """The lines at the beginning of `text` that fit into `room` tokens; of a first line that does not, what fits."""
    kept, left = 0, room
    for match in re.finditer(r"\n|\Z", text):
        left -= len(tokenizer.encode(text[kept : match.end()]))
        if left < 0:
            break
        kept = match.end()
    # A character is at most four bytes, and a byte at most a token.
    return text[: kept or room // 4]
