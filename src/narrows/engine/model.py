"""`narrows.load` and the Model it returns: text in, text out."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from narrows.checkpoints.checkpoint import read_config
from narrows.checkpoints.checksums import verify_listed
from narrows.checkpoints.device import usable_device
from narrows.checkpoints.hub import fetch
from narrows.checkpoints.load import load_network, load_reference
from narrows.checkpoints.native import load_native
from narrows.checkpoints.prepared import own_precision
from narrows.engine.engine import Engine
from narrows.engine.limits import Limits
from narrows.engine.paged_history import block_tokens
from narrows.engine.prefill import new_history, prefill
from narrows.engine.request import SamplingParameters, check_prompt, check_request
from narrows.engine.sequence import Drawn, Event, Finished, Prefilled
from narrows.engine.store import Prefixes
from narrows.errors import UsageError
from narrows.model.config import ModelConfig
from narrows.model.forward import Forward
from narrows.model.native_network import why_not
from narrows.model.precision import Precision
from narrows.ops import native
from narrows.text.fim import fim_prompt
from narrows.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]

_log = logging.getLogger("narrows")

PRECISIONS = ("float32", "bf16", "fp8", "official")


@dataclass(frozen=True)
class Completion:
    """What a generation came to. `token_ids` leave out the end token; `finish_reason` is "stop" where it came.

    Other control tokens are among the ids but not in `text`, in which nobody could tell them from their spelling.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason


class Generation:
    """A generation under way: iterating yields pieces of text as they become whole characters.

    It begins when it is first asked for one, and ends when nobody asks any more. `prefilled` counts the tokens of the
    prompt that are in the history, `reused` those of them that were known from before; `on_prefill`, if set, is called
    with the first whenever it grows.
    """

    def __init__(self, events: Iterator[Event], prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.prefilled = self.reused = 0
        self.on_prefill: Callable[[int], None] | None = None
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason = "length"
        self._pieces = self._run(events)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __repr__(self) -> str:
        return f"Generation({len(self.token_ids)} tokens so far)"

    def _run(self, events: Iterator[Event]) -> Iterator[str]:
        for event in events:
            if isinstance(event, Drawn):
                self.token_ids.append(event.token)
            elif isinstance(event, Prefilled):
                self.prefilled, self.reused = event.tokens, event.reused
                if self.on_prefill is not None:
                    self.on_prefill(event.tokens)
                continue
            elif isinstance(event, Finished):
                if event.error is not None:
                    raise event.error
                if event.reason == "stop":
                    self.finish_reason = "stop"
            if event.piece:
                yield event.piece


class Model:
    """A network with its tokenizer, and an engine that runs what is asked of them."""

    def __init__(
        self,
        network: Forward,
        tokenizer: Tokenizer,
        limits: Limits | None = None,
        prefixes: Prefixes | None = None,
    ) -> None:
        """`limits` of the engine: if none are given, a quarter of the memory that is free and four requests at once.
        `prefixes`: where known ones outlive the process."""
        self.network, self.tokenizer = network, tokenizer
        self._limits, self._prefixes = limits, prefixes
        self._engine: Engine | None = None

    def __repr__(self) -> str:
        network = self.network
        computes_in = network.cache or str(network.dtype).removeprefix("torch.")
        return f"Model({network.parameter_count:,} parameters, {computes_in} on {network.device})"

    @property
    def config(self) -> ModelConfig:
        return self.network.config

    @property
    def engine(self) -> Engine:
        """Made when it is first needed, in a forked process once more; ends with the model."""
        if self._engine is None or self._engine.process != os.getpid():
            limits = self._limits or Limits(memory=free_memory() // 4, slots=4)
            self._engine = Engine(self.network, self.tokenizer, limits, self._prefixes)
            weakref.finalize(self, self._engine.close)
        return self._engine

    def history_bytes(self, tokens: int) -> int:
        """Memory that the history of so many tokens takes in the engine."""
        stats = self.engine.stats()
        return stats["slot_bytes"] + -(-tokens // block_tokens(self.config)) * stats["block_bytes"]

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int] | Tensor) -> Tensor:
        """Next-token logits after every token: float32 [len(token_ids), vocab]. One teacher-forced pass.

        Raises UsageError for no tokens, too many, or one outside the vocabulary.
        """
        checked = self._checked(token_ids)
        chunks = prefill(self.network, new_history(self.network, len(checked)), checked)
        return torch.cat([self.network.logits(streams).float() for streams in chunks])

    def stream(
        self,
        prompt: str | Sequence[int] | Tensor,
        *,
        suffix: str | None = None,
        max_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Generation:
        """Continue `prompt`; iterate over the result for pieces of text as they come.

        A string prompt starts a new text (BOS is put before it) and, with `suffix`, asks for what stands between the
        two. Token ids, in a list or a flat tensor, are taken as they are. Temperature 0 is greedy. Raises UsageError
        for an empty prompt, one longer than the model's positions, or numbers out of range.
        """
        check_request(max_tokens, temperature, seed)
        token_ids = self._checked(self._prompt_ids(prompt, suffix))
        parameters = SamplingParameters(max_tokens=max_tokens, temperature=temperature, seed=seed)
        return Generation(self._events(token_ids, parameters), len(token_ids))

    def generate(
        self,
        prompt: str | Sequence[int] | Tensor,
        *,
        suffix: str | None = None,
        max_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Completion:
        """`stream`, run to its end."""
        generation = self.stream(prompt, suffix=suffix, max_tokens=max_tokens, temperature=temperature, seed=seed)
        text = "".join(generation)
        return Completion(text, generation.token_ids, generation.finish_reason)

    def _events(self, token_ids: Sequence[int], parameters: SamplingParameters) -> Iterator[Event]:
        handle = self.engine.submit(token_ids, parameters)
        try:
            yield from handle
        finally:
            handle.cancel()

    def _prompt_ids(self, prompt: str | Sequence[int] | Tensor, suffix: Any) -> Sequence[int] | Tensor:
        if not isinstance(suffix, str | None):
            raise UsageError(f"the suffix is {suffix!r}; give text, or none.")
        if not isinstance(prompt, str):
            if suffix is not None:
                raise UsageError("a suffix goes with a prompt of text, not of token ids; encode both as one prompt.")
            return prompt
        if suffix:
            return fim_prompt(self.tokenizer, prompt, suffix, layout=self.config.fim_layout)
        return [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)] if prompt else []

    def _checked(self, given: Any) -> tuple[int, ...]:
        """The ids of a list or another sequence, a tensor or an array, as plain numbers, or UsageError."""
        token_ids = given.tolist() if hasattr(given, "tolist") else given
        if not isinstance(token_ids, Sequence) or isinstance(token_ids, str | bytes | bytearray):
            raise UsageError(f"{type(given).__name__} holds no token ids; give text, a flat list or a flat tensor.")
        return check_prompt(token_ids, self.config.vocab_size, self.config.max_position_embeddings)


def load(
    source: str | Path = "embedded",
    *,
    device: str = "cpu",
    precision: str | None = None,
    prefixes: Prefixes | None = None,
) -> Model:
    """Load a model: "embedded" (the one that ships with the package), a directory, or a hub id ("owner/name").

    `precision`: "float32", "bf16", "fp8" or "official", in which the weights are held and computed with
    (`model/precision.py`); None: on a CPU the checkpoint's own, elsewhere bf16. On a CPU, what is not float32 runs on
    the kernels of native/, from a file that is prepared once; elsewhere there are float32 and bf16, to which quantised
    checkpoints are dequantised. `prefixes`: where known ones outlive the process. Raises UsageError for a device that
    is not there or a precision that it has not, NarrowsError for what is missing or broken in the files.
    """
    place = usable_device(device)
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is not one that a model computes in; choose {_listed(PRECISIONS)}.")
    directory = fetch(source)
    tokenizer = Tokenizer.from_directory(directory)
    verify_listed(directory, "tokenizer.json")
    config = read_config(directory)
    tokenizer.check_fits(config, str(directory))  # before any weight is read: that can take minutes
    return Model(_network(directory, config, precision, place), tokenizer, prefixes=prefixes)


def _network(directory: Path, config: ModelConfig, precision: str | None, device: torch.device) -> Forward:
    if device.type != "cpu":
        if precision not in (None, "float32", "bf16"):
            raise UsageError(f"precision {precision} is for CPUs; on {device} choose float32 or bf16.")
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        return load_network(directory, dtype=dtype, device=device)
    wanted = own_precision(directory) if precision is None else Precision(precision)
    if wanted is Precision.FLOAT32:  # which is PyTorch's, with kernels for some of its ops
        _say_once(native.why_none())
        return load_network(directory)
    reason = why_not(config)
    if reason is None:
        return load_native(directory, wanted)
    _say_once(reason)
    return load_reference(directory, wanted)


@cache
def _say_once(reason: str | None) -> None:
    """Why the references do what kernels would, if they do; once a process."""
    if reason is not None:
        _log.warning("The kernels cannot run this model (%s): PyTorch does, and slower.", reason)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def free_memory() -> int:
    """Bytes of this machine's memory that nobody uses; 4 GiB where it does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 4 << 30
