"""The safetensors files of a directory: which there are, what their headers say, and single tensors out of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from narrows.checkpoints.checksums import read_checksums, verify
from narrows.checkpoints.names import Index
from narrows.checkpoints.paths import exists, is_file, is_folder
from narrows.errors import NarrowsError, UsageError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_MAPPED_BYTES = 1 << 28


@dataclass(frozen=True)
class Header:
    """What a shard says of one tensor. `dtype` is safetensors' word for it: F32, BF16, F8_E4M3, F8_E8M0, I8, ..."""

    shard: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    """A file that must hold one JSON object; NarrowsError names it if it does not."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NarrowsError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise NarrowsError(f"{path} is not valid JSON ({error}); restore or download it again.") from None
    if not isinstance(found, dict):
        raise NarrowsError(f"{path} must hold a JSON object, not a {type(found).__name__}; restore it.")
    return found


def read_headers(directory: Path) -> list[Header]:
    """Every tensor in the directory's shards, in the files' order. Reads headers only.

    NarrowsError as from `shard_files`, or for a truncated file. Which shard holds what is for their headers to say,
    not for the index.
    """
    return [header for path in shard_files(directory) for header in _shard_headers(path)]


def shard_files(directory: Path) -> list[Path]:
    """The directory's safetensors files; NarrowsError if there is no complete set of them: none at all, or one that
    the index names but is absent."""
    single, index = directory / SINGLE, directory / INDEX
    if exists(single):
        return [single]
    if not exists(index):
        pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
        if pickles:
            raise NarrowsError(
                f"{directory} holds only pickled weights ({pickles[0]}), which can run code when opened; Narrows reads "
                "safetensors only: save the model as safetensors first."
            )
        raise NarrowsError(f"{directory} holds neither {SINGLE} nor {INDEX}; give a folder with a complete model.")
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(shard, str) for shard in where.values()):
        raise NarrowsError(f"{index} has no weight_map of tensor names to shards; restore or download it again.")
    shards = list(dict.fromkeys(where.values()))
    for shard in shards:
        if Path(shard).name != shard:
            raise NarrowsError(f"{index} names the shard {shard!r}, which is not a file beside it; correct the index.")
        if not is_file(directory / shard):
            raise NarrowsError(f"{index} names the shard {shard}, but it is absent; download it again.")
    return [directory / shard for shard in shards]


def _shard_headers(path: Path) -> list[Header]:
    with _open(path) as file:
        headers = []
        for name in file.offset_keys():
            part = file.get_slice(name)
            headers.append(Header(path, name, part.get_dtype(), tuple(part.get_shape())))
        return headers


def _open(path: Path) -> Any:
    try:
        path.open("rb").close()  # the library calls every reason why it cannot "No such file"
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise NarrowsError(
            f"{path} is damaged or incomplete ({str(error).removeprefix('Error while deserializing header: ')}); "
            "download or write it again."
        ) from None
    except OSError as error:
        raise NarrowsError(f"{path} cannot be read: {error.strerror or error}.") from None


class Shards:
    """Tensors out of a directory's files, one at a time, through a memory map.

    A shard is verified when first read, if the directory has checksums. Only one is mapped at a time, and that afresh
    after every 256 MB, so that pages already read do not count as this process's memory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._unverified = read_checksums(directory)
        self._path: Path | None = None
        self._file: Any = None
        self._read = 0

    def verify_all(self) -> None:
        """Compare every shard that has a checksum with it, now; NarrowsError names the first that differs."""
        for name in list(self._unverified):
            if name.endswith(".safetensors") and is_file(self._directory / name):
                self._verify(name)

    def _verify(self, name: str) -> None:
        if name in self._unverified:
            verify(self._directory / name, self._unverified[name])
            del self._unverified[name]  # only now: who tries a damaged shard again is told again

    def tensor(self, header: Header, index: Index = ()) -> Tensor:
        """The tensor, or the part of it, as stored. It may lie in the file's map: copy what is to be kept."""
        if header.shard != self._path or self._read > _MAPPED_BYTES:
            self._verify(header.shard.name)
            self.close()
            self._path, self._file = header.shard, _open(header.shard)
        tensor: Tensor = self._file.get_slice(header.name)[index] if index else self._file.get_tensor(header.name)
        self._read += tensor.numel() * tensor.element_size()
        return tensor

    def close(self) -> None:
        """Give the map back; the next tensor opens a new one."""
        self._path, self._file, self._read = None, None, 0


def existing_directory(path: str | Path) -> Path:
    """The path, if it is a directory; UsageError if not."""
    directory = Path(path)
    if not is_folder(directory):
        problem = "is not a folder" if exists(directory) else "does not exist"
        raise UsageError(f"{directory} {problem}; give a folder that holds a model.")
    return directory
