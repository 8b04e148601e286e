"""`narrows.load` and the Model it returns: text in, text out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from narrows.checkpoints.hub import fetch
from narrows.checkpoints.load import load_network
from narrows.engine.generate import generate, new_history, prefill
from narrows.errors import UsageError
from narrows.model.config import ModelConfig
from narrows.model.network import Network
from narrows.text.fim import fim_prompt
from narrows.text.tokenizer import Detokenizer, Tokenizer

FinishReason = Literal["stop", "length"]

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Completion:
    """What a generation came to. `token_ids` leave out the end token; `finish_reason` is "stop" where it came."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason


class Generation:
    """A generation under way: iterating yields pieces of text as they become whole characters."""

    def __init__(self, token_ids: Iterator[int], tokenizer: Tokenizer, eos_id: int) -> None:
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason = "length"
        self._pieces = self._run(token_ids, tokenizer, eos_id)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def _run(self, token_ids: Iterator[int], tokenizer: Tokenizer, eos_id: int) -> Iterator[str]:
        detokenizer = Detokenizer(tokenizer)
        for token in token_ids:
            if token == eos_id:
                self.finish_reason = "stop"
                break
            self.token_ids.append(token)
            if piece := detokenizer.push(token):
                yield piece
        if piece := detokenizer.finish():
            yield piece


class Model:
    """A network with its tokenizer."""

    def __init__(self, network: Network, tokenizer: Tokenizer) -> None:
        self.network, self.tokenizer = network, tokenizer

    @property
    def config(self) -> ModelConfig:
        return self.network.config

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Next-token logits after every token: float32 [len(token_ids), vocab]. One teacher-forced pass.

        Raises UsageError for no tokens, too many, or one outside the vocabulary.
        """
        self._check(token_ids)
        history = new_history(self.network)
        chunks = prefill(self.network, history, token_ids)
        return torch.cat([self.network.logits(streams).float() for streams in chunks])

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        suffix: str | None = None,
        max_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Generation:
        """Continue `prompt`; iterate over the result for pieces of text as they come.

        A string prompt starts a new text (BOS is put before it) and, with `suffix`, asks for what stands between the
        two. Token ids are taken as they are. Temperature 0 is greedy. Raises UsageError for an empty prompt, one
        longer than the model's positions, or numbers out of range.
        """
        if max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}; ask for at least 1.")
        if not 0 <= temperature < float("inf"):
            raise UsageError(f"temperature is {temperature}; choose 0 (greedy) or more.")
        token_ids = self._prompt_ids(prompt, suffix)
        self._check(token_ids)
        tokens = generate(self.network, token_ids, max_tokens=max_tokens, temperature=temperature, seed=seed)
        return Generation(tokens, self.tokenizer, self.config.eos_token_id)

    def generate(
        self,
        prompt: str | Sequence[int],
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

    def _prompt_ids(self, prompt: str | Sequence[int], suffix: str | None) -> Sequence[int]:
        if not isinstance(prompt, str):
            if suffix is not None:
                raise UsageError("a suffix goes with a prompt of text, not of token ids; encode both as one prompt.")
            return prompt
        if suffix:
            return fim_prompt(self.tokenizer, prompt, suffix)
        return [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)] if prompt else []

    def _check(self, token_ids: Sequence[int]) -> None:
        limit = self.config.max_position_embeddings
        if not token_ids:
            raise UsageError("the prompt is empty; give it at least one token of text.")
        if len(token_ids) > limit:
            raise UsageError(f"the prompt has {len(token_ids)} tokens but the model {limit} positions; shorten it.")
        for token in token_ids:
            if not 0 <= token < self.config.vocab_size:
                raise UsageError(f"token id {token} lies outside the vocabulary of {self.config.vocab_size}.")


def load(source: str | Path = "embedded", *, device: str = "cpu", precision: str | None = None) -> Model:
    """Load a model: "embedded" (the one that ships with the package), a directory, or a hub id ("owner/name").

    `precision`: "float32" or "bf16", what the network computes in; None chooses float32 on a CPU, bf16 elsewhere.
    Quantised checkpoints are dequantised. Raises NarrowsError for what is missing or broken in the files.
    """
    if precision is None:
        precision = "float32" if torch.device(device).type == "cpu" else "bf16"
    if precision not in DTYPES:
        raise UsageError(f"precision {precision!r} is not one that a model computes in; choose {' or '.join(DTYPES)}.")
    directory = embedded_directory() if source == "embedded" else fetch(source)
    network = load_network(directory, dtype=DTYPES[precision], device=device)
    tokenizer = Tokenizer.from_directory(directory)
    tokenizer.check_fits(network.config, str(directory))
    return Model(network.eval(), tokenizer)


def embedded_directory() -> Path:
    """Where the embedded model's files lie."""
    return Path(str(files("narrows") / "embedded"))
