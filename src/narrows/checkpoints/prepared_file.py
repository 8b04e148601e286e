"""The file of prepared weights: a checked header, and behind it every tensor's bytes, mapped as they lie.

First `_HEAD`: magic, version, the header's bytes, the file's, when it was made, and the SHA-256 of these numbers and
the header. Then the header: JSON with the precision, the configuration, and of every tensor what it is and where its
parts begin, counted from the data. The data begin at a multiple of 4,096; at multiples of 64 all parts begin, and the
data end. Last the SHA-256 of all before it, in 64 bytes.

To read all data at every start would take longer than a start should. So a finished file's time of change is set to
when it was made: only one with another time, which somebody wrote into or copied, is read and compared with its sum.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import time
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from narrows.errors import NarrowsError
from narrows.model.config import ModelConfig
from narrows.model.precision import Precision
from narrows.ops.packed import Packed, PackedFormat, packed_sizes

VERSION = 2
"""Of the layout of the file and of the packed weights: an older file is made anew."""

_MAGIC = b"narrows prepared"
_HEAD = struct.Struct("<16sIQQQ32s")
_PAGE, _PART = 4096, 64
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int32": torch.int32}


@dataclass(frozen=True)
class PackedWeight:
    """A matrix [rows, columns] as `ops.packed` lays it out; its parts are values and scales."""

    format: PackedFormat
    rows: int
    columns: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of every part. ValueError where the format cannot have this shape."""
        return packed_sizes(self.format, self.rows, self.columns)


@dataclass(frozen=True)
class PlainTensor:
    """A tensor of this dtype (bfloat16, float32 or int32) and shape, in one part."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of its one part."""
        return (prod(self.shape) * _DTYPES[self.dtype].itemsize,)


class Contents:
    """What a file holds, and where. `bytes`: its size; `names`: of all tensors, in the file's order."""

    def __init__(
        self, config: ModelConfig, precision: Precision, tensors: Mapping[str, PackedWeight | PlainTensor]
    ) -> None:
        self.config, self.precision, self.tensors = config, precision, dict(tensors)
        self.starts: dict[str, tuple[int, ...]] = {}
        end = 0
        for name, tensor in self.tensors.items():
            starts = []
            for size in tensor.sizes:
                starts.append(end)
                end += size + -size % _PART
            self.starts[name] = tuple(starts)
        described = {
            name: {"kind": "packed" if isinstance(tensor, PackedWeight) else "plain", **vars(tensor), "starts": starts}
            for (name, tensor), starts in zip(self.tensors.items(), self.starts.values(), strict=True)
        }
        header = {"precision": precision, "config": config.to_dict(), "tensors": described}
        self._header = json.dumps(header, separators=(",", ":")).encode()
        self.bytes = _data_start(len(self._header)) + end + _PART

    @classmethod
    def parse(cls, header: bytes) -> Contents:
        """Of a header that is known to be undamaged. ValueError, KeyError or NarrowsError for one of other contents
        than this code's."""
        found = json.loads(header)
        tensors = {name: _described(tensor) for name, tensor in found["tensors"].items()}
        contents = cls(ModelConfig.from_dict(found["config"]), Precision(found["precision"]), tensors)
        if contents._header != header:
            raise ValueError("its header says something else than the configuration and the tensors that it names")
        return contents

    def head(self, made: int) -> bytes:
        """All that stands before the data, of a file made at this time, in seconds."""
        numbers = _numbers(len(self._header), self.bytes, made)
        head = numbers + hashlib.sha256(numbers + self._header).digest() + self._header
        return head.ljust(_data_start(len(self._header)), b"\0")


def write(file: BinaryIO, contents: Contents, tensors: Iterable[Packed | Tensor]) -> None:
    """Write the whole file from where `file` stands; `tensors` are those of `contents.names`, in this order.

    ValueError if one is not what the contents say; OSError as the system has it.
    """
    made = int(time.time()) & ~1  # even seconds: the finest that every file system keeps
    running = hashlib.sha256()

    def put(content: bytes | memoryview) -> None:
        file.write(content)
        running.update(content)

    put(contents.head(made))
    for (name, expected), tensor in zip(contents.tensors.items(), tensors, strict=True):
        parts = (tensor.values, tensor.scales) if isinstance(tensor, Packed) else (tensor,)
        for part, size in zip(parts, expected.sizes, strict=True):
            content = part.contiguous().view(-1).view(torch.uint8)
            if len(content) != size:
                raise ValueError(f"{name}: {len(content)} bytes are not the {size} that were planned")
            put(content.numpy().data)
            put(bytes(-size % _PART))
    file.write(_sum(running.digest()))
    file.flush()
    _set_time(file, made)


class Prepared:
    """A file of prepared weights, mapped: tensors are views of it, whose pages are read when somebody looks at them.

    They must not be written to: the map is read-only. `path` is None where the file has no name and ends with this
    process.
    """

    def __init__(self, file: BinaryIO, path: Path | None) -> None:
        """ValueError, saying how, if the file is damaged or none of this version's; OSError if it cannot be read;
        NarrowsError if it cannot be mapped."""
        self.path = path
        self._contents, data_start, made = _read_head(file)
        self.config, self.precision = self._contents.config, self._contents.precision
        self.bytes = self._contents.bytes
        try:
            mapped = mmap.mmap(file.fileno(), self.bytes, access=mmap.ACCESS_READ)
        except OSError as error:
            raise NarrowsError(
                f"{path or 'The file of prepared weights'} cannot be mapped ({error.strerror or error}): it needs "
                f"{self.bytes:,} bytes of address space; raise the limit (ulimit -v), or choose a smaller precision."
            ) from None
        if os.fstat(file.fileno()).st_mtime_ns != made * 10**9:
            with memoryview(mapped) as whole:
                if _sum(hashlib.sha256(whole[:-_PART]).digest()) != whole[-_PART:]:
                    raise ValueError("it was changed, and its data are not what was written")
            _set_time(file, made)
        with warnings.catch_warnings():
            # PyTorch has no tensors that cannot be written to, and says so. A private writable map would count
            # against the memory that the system may promise, and be refused for a file larger than that.
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            self._data = torch.frombuffer(mapped, dtype=torch.uint8)[data_start:]

    def __repr__(self) -> str:
        return f"Prepared({self.precision}, {len(self.names)} tensors, {self.bytes:,} bytes, {self.path})"

    @property
    def names(self) -> tuple[str, ...]:
        """Of all tensors: the network's own, but that every expert's matrices are named apart (`experts.7.w1`)."""
        return tuple(self._contents.tensors)

    @property
    def mtp(self) -> bool:
        """Whether there is an MTP block."""
        return self.config.num_nextn_predict_layers > 0

    def is_packed(self, name: str) -> bool:
        """Whether the tensor of this name is a packed weight. KeyError if there is none."""
        return isinstance(self._contents.tensors[name], PackedWeight)

    def packed(self, name: str) -> Packed:
        """The packed weight of this name. KeyError if there is none."""
        weight = self._contents.tensors[name]
        if not isinstance(weight, PackedWeight):
            raise KeyError(f"{name} is not packed")
        values, scales = self._parts(name)
        return Packed(weight.format, weight.rows, weight.columns, values, scales)

    def plain(self, name: str) -> Tensor:
        """The plain tensor of this name: bfloat16 embeddings, int32 tables, all else float32. KeyError if there is
        none."""
        tensor = self._contents.tensors[name]
        if not isinstance(tensor, PlainTensor):
            raise KeyError(f"{name} is packed")
        (values,) = self._parts(name)
        return values.view(_DTYPES[tensor.dtype]).view(tensor.shape)

    def _parts(self, name: str) -> list[Tensor]:
        contents = self._contents
        sizes = contents.tensors[name].sizes
        return [self._data[start : start + size] for start, size in zip(contents.starts[name], sizes, strict=True)]


def _read_head(file: BinaryIO) -> tuple[Contents, int, int]:
    """The contents, where the data begin, and when the file was made; ValueError if the header or the file's length is
    not what was written."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or not head.startswith(_MAGIC):
        raise ValueError("it does not begin as such a file does")
    _, version, header_bytes, file_bytes, made, digest = _HEAD.unpack(head)
    if version != VERSION:
        raise ValueError(f"it has version {version}, not {VERSION}")
    if file_bytes != size:
        raise ValueError(f"it has {size:,} bytes")
    header = file.read(min(header_bytes, size))
    if hashlib.sha256(head[: -len(digest)] + header).digest() != digest:
        raise ValueError("its checksum is not that of its header")
    try:
        contents = Contents.parse(header)
    except (KeyError, TypeError, NarrowsError) as error:
        raise ValueError(f"its header is of another version: {error}") from None
    if contents.bytes != size:
        raise ValueError(f"it has {size:,} bytes, not {contents.bytes:,}")
    return contents, _data_start(header_bytes), made


def _described(found: dict[str, Any]) -> PackedWeight | PlainTensor:
    kind = {"packed": PackedWeight, "plain": PlainTensor}[found["kind"]]
    values = {field.name: found[field.name] for field in fields(kind)}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _numbers(header_bytes: int, file_bytes: int, made: int) -> bytes:
    """`_HEAD` without the checksum."""
    return _HEAD.pack(_MAGIC, VERSION, header_bytes, file_bytes, made, b"")[:-32]


def _sum(digest: bytes) -> bytes:
    """What stands at the file's end."""
    return digest.ljust(_PART, b"\0")


def _set_time(file: BinaryIO, made: int) -> None:
    """As the time of change. Where another's file or the file system does not allow it, the next to come compares."""
    with suppress(OSError):
        os.utime(file.fileno(), (time.time(), made))


def _data_start(header_bytes: int) -> int:
    end = _HEAD.size + header_bytes
    return end + -end % _PAGE
