"""Known prefixes on disk: what a request can resume from after a restart.

A file holds what lies between two places where a request can resume: the blocks from one snapshot to the next, and the
state at its end. Its name is the hash of everything that decides its content (the model's identity and all tokens up
to its end), so that two processes can only ever write the same bytes under one name, and a file of another model is
never asked for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from narrows.engine.paged_history import Contents, State
from narrows.errors import NarrowsError
from narrows.model.forward import Forward
from narrows.model.history import Key
from narrows.model.precision import Precision, cache_formats
from narrows.ops import native

_MAGIC = b"narrows prefix 1\n"
_SUFFIX = ".prefix"
_log = logging.getLogger("narrows")


@dataclass(frozen=True)
class Prefixes:
    """Where known prefixes are kept: at most `most_bytes` in `directory`."""

    directory: str | Path
    most_bytes: int = 4 << 30

    def open(self, network: Forward, block_tokens: int, cache: Precision | None = None) -> PrefixStore:
        """The store for this network and cache. NarrowsError when there can be no such directory."""
        return PrefixStore(Path(self.directory), identity_of(network, cache), block_tokens, self.most_bytes)


def identity_of(network: Forward, cache: Precision | None = None) -> str:
    """What decides a history beside its tokens: configuration, weights, the precisions, and who computes: which kernels
    of which version, since another order of a sum is another history."""
    running = hashlib.sha256(json.dumps(network.config.to_dict(), sort_keys=True).encode())
    kernels = native.kernels
    running.update(f"{kernels.instruction_set()} {kernels.VERSION}".encode() if native.available() else b"reference")
    running.update(repr(cache_formats(network.config, network.dtype, cache or network.cache)).encode())
    running.update(network.fingerprint().encode())
    return running.hexdigest()


@dataclass(frozen=True)
class Piece:
    """What one file holds: the blocks behind `start` tokens, and the state at their end."""

    start: int
    contents: Contents
    state: State


class PrefixStore:
    """Files in `directory`, together at most `most_bytes`; the least recently used go first.

    `identity` names whatever makes histories differ for equal tokens: model, precision, ops. What is damaged is
    reported once, deleted and taken for absent; what cannot be written is reported and left.
    """

    def __init__(self, directory: Path, identity: str, block_tokens: int, most_bytes: int) -> None:
        """NarrowsError when there can be no such directory."""
        self._directory, self._identity, self._block = directory, identity, block_tokens
        self._most_bytes = most_bytes
        self._may_write = True
        try:
            directory.mkdir(parents=True, exist_ok=True)
            names = [file.name for file in directory.iterdir()]
        except OSError as error:
            raise NarrowsError(f"{directory} is no place for a cache ({error.strerror}); name another.") from None
        self._known = {name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)}

    def names(self, tokens: Sequence[int]) -> list[str]:
        """Of every full block of `tokens`, the name of the file that would end there."""
        running = hashlib.sha256(self._identity.encode())
        found = []
        for block in np.asarray(tokens, "<i8")[: len(tokens) // self._block * self._block].reshape(-1, self._block):
            running.update(block.tobytes())
            found.append(running.copy().hexdigest())
        return found

    def missing(self, tokens: Sequence[int]) -> int | None:
        """Where a piece that ends at the last of `tokens` must begin: behind the longest kept beginning. None where
        it is kept already, or nothing more can be."""
        *before, name = self.names(tokens)
        if name in self._known or not self._may_write:
            return None
        kept = [count for count, earlier in enumerate(before, start=1) if earlier in self._known]
        return kept[-1] * self._block if kept else 0

    def put(self, tokens: Sequence[int], piece: Piece) -> None:
        """Keep a piece that ends at the last of `tokens` and begins where `missing` says."""
        name = self.names(tokens)[-1]
        tensors = {f"recent.{_joined(key)}": rows.contiguous() for key, rows in piece.state.recent.items()}
        tensors |= {f"entries.{_joined(key)}": rows.contiguous() for key, rows in piece.contents.entries.items()}
        tensors["extent"] = torch.tensor([piece.start, piece.state.length])
        payload = save_tensors(tensors)
        body = _MAGIC + hashlib.sha256(payload).digest() + payload
        temporary = self._directory / f"{name}.{os.getpid()}.{secrets.token_hex(4)}.unfinished"
        try:
            self._make_room(len(body))
            temporary.write_bytes(body)
            os.replace(temporary, self._path(name))
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            if isinstance(error, FileNotFoundError) and self._directory.is_dir():
                return  # another process made room for itself
            self._may_write = False
            _log.warning("%s takes no more prefixes (%s); the engine goes on without.", self._directory, error.strerror)
            return
        self._known.add(name)

    def get(self, tokens: Sequence[int], longer_than: int = 0) -> list[Piece]:
        """The pieces, from the first token on, of the longest kept beginning of `tokens` that is a whole number of
        blocks and longer than `longer_than`; none if there is none."""
        names = self.names(tokens)
        for count in range(len(names), longer_than // self._block, -1):
            if names[count - 1] in self._known or self._path(names[count - 1]).exists():
                pieces = self._chain(names[:count])
                if pieces:
                    return pieces
        return []

    def _chain(self, names: Sequence[str]) -> list[Piece]:
        """The piece that ends with the last of these blocks and those before it; none where one is missing."""
        pieces: list[Piece] = []
        used = []
        end = len(names)
        while end:
            piece = self._read(names[end - 1])
            if piece is None or piece.state.length != end * self._block or piece.start % self._block:
                return []
            used.append(names[end - 1])
            pieces.append(piece)
            end = piece.start // self._block
        for name in used:  # the first piece last: the others are worth nothing without it
            with suppress(OSError):
                os.utime(self._path(name))
        return pieces[::-1]

    def _read(self, name: str) -> Piece | None:
        path = self._path(name)
        try:
            body = path.read_bytes()
        except OSError:
            self._known.discard(name)
            return None
        head = len(_MAGIC) + 32
        try:
            if not body.startswith(_MAGIC) or hashlib.sha256(body[head:]).digest() != body[len(_MAGIC) : head]:
                raise ValueError("its checksum is not that of its content")
            tensors = load_tensors(body[head:])
            start, length = tensors.pop("extent").tolist()
            recent = {_key(n): t for n, t in tensors.items() if n.startswith("recent.")}
            entries = {_key(n): t for n, t in tensors.items() if n.startswith("entries.")}
        except (ValueError, KeyError, SafetensorError) as error:
            _log.warning("%s is damaged (%s); it is deleted, and its text computed again.", path, error)
            self._known.discard(name)
            with suppress(OSError):
                path.unlink()
            return None
        return Piece(start, Contents(entries), State(length, recent))

    def _make_room(self, more: int) -> None:
        """Delete what was used longest ago, and what a killed process left, until `more` bytes fit."""
        files: list[tuple[float, int, Path]] = []
        for file in self._directory.iterdir():
            with suppress(OSError):
                if file.name.endswith((_SUFFIX, ".unfinished")):
                    status = file.stat()
                    files.append((status.st_mtime, status.st_size, file))
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if total + more <= self._most_bytes:
                return
            with suppress(OSError):
                file.unlink()
            self._known.discard(file.name.removesuffix(_SUFFIX))
            total -= size

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}{_SUFFIX}"


def _joined(key: Key) -> str:
    return f"{key[0]}.{key[1]}"


def _key(name: str) -> Key:
    _, layer, part = name.split(".")
    return int(layer), part
