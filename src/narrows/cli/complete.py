"""`narrows complete`: write what belongs at a place in a file."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
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
    from narrows.engine.store import Prefixes
    from narrows.text.tokenizer import Tokenizer

# Lines before the cursor that are shown above the completion.
SHOWN_LINES = 6

# The farthest source is cut to a multiple of this part of the context, so that what prompts begin with, and can reuse,
# stays when the file at work grows a little.
_STEPS = 16

# Tokens of a context that hold a character on either side of a place.
_LEAST = 16


def complete(
    place: Annotated[str, typer.Argument(metavar="FILE[:LINE[:COLUMN]]", help="Where to write; lines count from 1.")],
    model: ModelOption = "embedded",
    before_only: Annotated[
        bool,
        typer.Option("--before-only", help="Go on from what stands before the place; do not read what follows it."),
    ] = False,
    context: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            readable=False,  # that is checked here, in our own words
            help="Read the sources in this folder too, before the file, the nearest last.",
        ),
    ] = None,
    context_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="With --context: the most tokens of prompt and completion, instead of what the model was trained for.",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            readable=False,
            help="With --context: where what was read is kept for the next time. [default: prefixes in "
            "$NARROWS_CACHE, or narrows/prefixes in $XDG_CACHE_HOME or ~/.cache]",
        ),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="With --context: keep nothing, use nothing kept.")
    ] = False,
    max_tokens: MaxTokensOption = 64,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
) -> None:
    """Complete a file at a place: before COLUMN of LINE, at the end of LINE, or at the end of the file.

    The model reads the file around the place and, in the room that is left, the files beside it that it imports; with
    --context, then the other sources of a folder. The completion streams to standard output; the lines before it and
    a summary go to standard error.
    """
    from narrows.engine.request import check_request

    check_request(max_tokens, temperature, seed)
    _check_context(context, context_tokens, cache, no_cache)
    path, prefix, suffix = split_at(place)
    if not prefix and (before_only or not suffix):
        what = f"nothing stands before that place in {path}" if suffix else f"{path} is empty"
        raise UsageError(f"{what}; write a first line for the model to go on from.")
    from narrows.cli.output import aside, counted
    from narrows.cli.streaming import mention_context, show
    from narrows.engine.context import sources_around
    from narrows.engine.model import load

    others = [] if context is None else sources_around(path, context)
    loaded = load(model, device=device, precision=precision)
    if context is not None:
        loaded = _with_cache(loaded, context_tokens, None if no_cache else kept_prefixes(cache))
    before, after = fit(loaded, prefix, "" if before_only else suffix, max_tokens, context_tokens)
    prompt, read = with_imports(loaded, path, prefix + suffix, before, after, max_tokens, context_tokens, others)
    generation = loaded.stream(prompt, max_tokens=max_tokens, temperature=temperature, seed=seed)
    reading = f", reading {counted(read, 'imported file' if context is None else 'other file')}" if read else ""
    aside(f"{path}, line {prefix.count(chr(10)) + 1}{reading}")
    if context is not None and not others:
        aside(f"{context} holds no other sources; going on without.")
    elif others and not read:
        aside(f"{context} adds nothing: {path} leaves no room (--context-tokens N makes more), or its sources no text.")
    mention_context(loaded, len(prompt) + max_tokens)
    show(generation, loaded, "".join(_lines(prefix)[-SHOWN_LINES:]))


def split_at(place: str) -> tuple[Path, str, str]:
    """The file named by FILE[:LINE[:COLUMN]], and its text before and after that place.

    Raises UsageError for what is no file of text or a place outside it, NarrowsError for one that cannot be read.
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
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}); convert it first.") from None
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


def fit(model: Model, prefix: str, suffix: str, max_tokens: int, context_tokens: int | None = None) -> tuple[str, str]:
    """The end of `prefix` and the beginning of `suffix` that fit the context the model was trained for.

    `context_tokens`: a context of so many instead. Three quarters of it go to the prefix, unless the suffix needs less
    than its quarter. Cut at line ends.
    """
    budget = _room(model, max_tokens, context_tokens)
    tokenizer = model.tokenizer
    after = "".join(_fitting(tokenizer, _lines(suffix), budget // 4))
    # The lines nearest to the place come first, each of them read forwards.
    before = "".join(_fitting(tokenizer, _lines(prefix)[::-1], budget - len(tokenizer.encode(after)), backwards=True))
    return before, after


def with_imports(
    model: Model,
    path: Path,
    text: str,
    before: str,
    after: str,
    max_tokens: int,
    context_tokens: int | None = None,
    others: Sequence[Path] = (),
) -> tuple[list[int], int]:
    """The prompt for what stands between `before` and `after`, and of how many other files it holds some.

    `text`: all of the file. In the room that is left stand the files that it imports, the first named nearest to the
    place, and before them `others`, the first of them nearest.
    """
    from narrows.engine import context
    from narrows.text.fim import fim_prompt

    tokenizer = model.tokenizer
    layout = model.config.fim_layout
    plain = (
        fim_prompt(tokenizer, before, after, layout=layout) if after else [tokenizer.bos_id, *tokenizer.encode(before)]
    )
    room = _room(model, max_tokens, context_tokens) + 4 - len(plain)
    step = _context(model, context_tokens) // _STEPS if others else 1
    files = context.texts_of([*context.imported_files(path, text), *others], path)
    read = context.context_tokens(tokenizer, files, room, step)
    count = read.count(tokenizer.eos_id)
    if after:
        return fim_prompt(tokenizer, before, after, read, layout), count
    return [tokenizer.bos_id, *read, *plain[1:]], count


def kept_prefixes(cache: Path | None) -> Prefixes | None:
    """Where known prefixes are kept between runs; None, and a word on standard error, where they cannot be."""
    from narrows.checkpoints.cache_folder import cache_folder
    from narrows.cli.output import aside
    from narrows.engine.store import Prefixes

    try:
        directory = cache or cache_folder("prefixes")
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # for nobody else: it tells what was read
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), directory)
    except (OSError, RuntimeError) as error:  # the latter where nobody knows a home
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        aside(f"what is read is not kept ({why}); name another place with --cache DIR, or none with --no-cache.")
        return None
    return Prefixes(directory)


def _check_context(context: Path | None, context_tokens: int | None, cache: Path | None, no_cache: bool) -> None:
    """UsageError where options of --context stand without it, or contradict each other."""
    given = {"--context-tokens": context_tokens is not None, "--cache": cache is not None, "--no-cache": no_cache}
    for name, is_given in given.items():
        if is_given and context is None:
            raise UsageError(f"{name} goes with --context; name the folder to read, or leave it out.")
    if cache is not None and no_cache:
        raise UsageError("--cache and --no-cache contradict each other; give one of them.")
    if context_tokens is not None and context_tokens < 1:
        raise UsageError(f"--context-tokens is {context_tokens}; ask for at least 1.")


def _with_cache(model: Model, context_tokens: int | None, prefixes: Prefixes | None) -> Model:
    """The model for one long prompt: it keeps what it read, as it goes, at places where another prompt can go on."""
    from narrows.engine.limits import Limits
    from narrows.engine.model import Model, free_memory

    between = max(512, _context(model, context_tokens) // 32)
    limits = Limits(memory=free_memory() // 4, slots=1, snapshot_every=between)
    return Model(model.network, model.tokenizer, limits, prefixes)


def _context(model: Model, context_tokens: int | None) -> int:
    """Tokens of prompt and completion: as many as are asked for, or as the model was trained for."""
    positions = model.config.max_position_embeddings
    if context_tokens is not None and context_tokens > positions:
        raise UsageError(
            f"--context-tokens is {context_tokens} but the model has {positions} positions; ask for fewer."
        )
    return context_tokens or model.config.trained_context or positions


def _room(model: Model, max_tokens: int, context_tokens: int | None) -> int:
    """Tokens of text that leave room for BOS, FIM's control tokens and the completion."""
    context = _context(model, context_tokens)
    room = context - max_tokens - 4
    if room < _LEAST:
        raise UsageError(f"max_tokens {max_tokens} leaves no room in a context of {context:,} tokens; ask for fewer.")
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
