"""`narrows complete`: write what belongs at a place in a file."""

from __future__ import annotations

import os
import re
import sys
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
    before_only: Annotated[
        bool,
        typer.Option("--before-only", help="Go on from what stands before the place; do not read what follows it."),
    ] = False,
    max_tokens: MaxTokensOption = 64,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
) -> None:
    """Complete a file at a place: before COLUMN of LINE, at the end of LINE, or at the end of the file.

    The model reads the file around the place and, in the room that is left, the files beside it that it imports.
    The completion streams to standard output; the lines before it and a summary go to standard error.
    """
    from narrows.engine.request import check_request

    check_request(max_tokens, temperature, seed)
    path, prefix, suffix = split_at(place)
    from narrows.cli.output import aside, counted
    from narrows.cli.streaming import show
    from narrows.engine.model import load

    loaded = load(model, device=device, precision=precision)
    before, after = fit(loaded, prefix, "" if before_only else suffix, max_tokens)
    prompt, read = with_imports(loaded, path, prefix + suffix, before, after, max_tokens)
    generation = loaded.stream(prompt, max_tokens=max_tokens, temperature=temperature, seed=seed)
    reading = f", reading {counted(read, 'imported file')}" if read else ""
    aside(f"{path}, line {prefix.count(chr(10)) + 1}{reading}")
    shown = "".join(_lines(prefix)[-SHOWN_LINES:])
    # The completion goes on in the same line only where it appears on the same screen.
    aside(shown, end="" if sys.stdout.isatty() or not shown or shown.endswith("\n") else "\n")
    show(generation)


def split_at(place: str) -> tuple[Path, str, str]:
    """The file named by FILE[:LINE[:COLUMN]], and its text before and after that place.

    Raises UsageError for what is no file or a place outside it, NarrowsError for one that cannot be read as text.
    """
    match = re.fullmatch(r"(.+?)(?::(-?[0-9]{1,18}))?(?::(-?[0-9]{1,18}))?", place, re.DOTALL)
    if match is None:
        raise UsageError("no file is named; give FILE, FILE:LINE or FILE:LINE:COLUMN.")
    name, line, column = match.groups()
    if os.path.isfile(place):
        name, line, column = place, None, None
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); name a text file.") from None
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
    budget = _room(model, max_tokens)
    tokenizer = model.tokenizer
    after = "".join(_fitting(tokenizer, _lines(suffix), budget // 4))
    # The lines nearest to the place come first, each of them read forwards.
    before = "".join(_fitting(tokenizer, _lines(prefix)[::-1], budget - len(tokenizer.encode(after)), backwards=True))
    return before, after


def with_imports(
    model: Model, path: Path, text: str, before: str, after: str, max_tokens: int
) -> tuple[list[int], int]:
    """The prompt for what stands between `before` and `after`, and of how many files that `text` imports it holds some.

    `text`: all of the file. Imported files fill the room that is left, the first named nearest to the place.
    """
    from narrows.engine.context import context_tokens, imported_files, read_source
    from narrows.text.fim import fim_prompt

    if not before and not after:
        raise UsageError(f"{path} is empty; write a first line for the model to go on from.")
    tokenizer = model.tokenizer
    layout = model.config.fim_layout
    plain = (
        fim_prompt(tokenizer, before, after, layout=layout) if after else [tokenizer.bos_id, *tokenizer.encode(before)]
    )
    sources = (read_source(file) for file in imported_files(path, text))
    context = context_tokens(tokenizer, filter(None, sources), _room(model, max_tokens) + 4 - len(plain))
    files = context.count(tokenizer.eos_id)
    if after:
        return fim_prompt(tokenizer, before, after, context, layout), files
    return [tokenizer.bos_id, *context, *plain[1:]], files


def _room(model: Model, max_tokens: int) -> int:
    """Tokens of text that leave room for BOS, FIM's control tokens and the completion."""
    config = model.config
    room = (config.trained_context or config.max_position_embeddings) - max_tokens - 4
    if room < 1:
        raise UsageError(f"max_tokens {max_tokens} leaves no room in the model's context; ask for fewer.")
    return room


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _fitting(tokenizer: Tokenizer, lines: list[str], room: int, *, backwards: bool = False) -> list[str]:
    """As many of the first lines as fit into `room` tokens, in the order of the text; of a first that does not, a part.

    Full to within one line: tokens may reach over line ends, so that whole texts are counted, and lines one by one
    only to guess how many more may fit.
    """

    def text(count: int) -> list[str]:
        return lines[:count][::-1] if backwards else lines[:count]

    def left(count: int) -> int:
        return room - len(tokenizer.encode("".join(text(count))))

    kept, more = 0, -1
    while more:
        spare, more = left(kept), 0
        for line in lines[kept:]:
            spare -= len(tokenizer.encode(line))
            if spare < 0:
                break
            more += 1
        kept += more
    while kept and left(kept) < 0:
        kept -= 1
    while kept < len(lines) and left(kept + 1) >= 0:
        kept += 1
    if kept or not lines:
        return text(kept)
    # A character is at most four bytes, and a byte at most a token.
    part = min(room // 4, len(lines[0]))
    return [lines[0][len(lines[0]) - part :] if backwards else lines[0][:part]]
