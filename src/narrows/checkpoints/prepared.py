"""A checkpoint as the CPU kernels read it: made once for a precision, kept in the cache folder, mapped from then on."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from narrows.checkpoints.cache_folder import VARIABLE, cache_folder
from narrows.checkpoints.checkpoint import Checkpoint, mention_absent_mtp, read_config
from narrows.checkpoints.checksums import read_checksums
from narrows.checkpoints.directory import FULL, flush
from narrows.checkpoints.encoding import recoded
from narrows.checkpoints.names import to_official
from narrows.checkpoints.prepared_file import VERSION, Contents, PackedWeight, PlainTensor, Prepared, write
from narrows.checkpoints.prepared_folder import SUFFIX, NoFolderError, claimed, hold, make_room
from narrows.checkpoints.shards import existing_directory, read_headers, shard_files
from narrows.errors import NarrowsError, UsageError
from narrows.model.precision import Format, Precision, weight_format
from narrows.ops.packed import Packed, PackedFormat, pack, packed_sizes

__all__ = ["Prepared", "own_precision", "prepare"]

PRECISIONS = (Precision.BF16, Precision.FP8, Precision.OFFICIAL)
"""Those that weights are prepared in."""

_PACKED: dict[Format, PackedFormat] = {Format.BF16: "bf16", Format.FP8: "fp8", Format.MXFP4: "mxfp4"}
_EMBEDDING = "embed.weight"
_log = logging.getLogger(__name__)


def prepare(directory: str | Path, precision: Precision | str) -> Prepared:
    """The weights of a checkpoint's directory in this precision, out of the cache folder, where they are made if they
    are not there yet, or damaged: cut, or changed since they were made (`prepared_file` says how that is noticed).
    What the disk itself loses shows nowhere.

    Matrices are packed in the precision's format, but for the embeddings, which are bfloat16; tables of experts are
    int32, all else is float32, rounded as the precision stores it. What the checkpoint has in its format already keeps
    its bits. One tensor at a time is in memory. Processes that want the same file wait for the one that makes it, which
    deletes others that are not used any more (`make_room`). Where the cache folder cannot be written to, a file that
    ends with this process takes its place, and a warning says so.

    UsageError if there is no such directory, or the precision is float32 or cannot hold the model; NarrowsError as
    from `Checkpoint` and its tensors, with the bytes needed where the disk has no room, or where the file is there but
    cannot be read or mapped.
    """
    directory, precision = existing_directory(directory), Precision(precision)
    if precision not in PRECISIONS:
        raise UsageError(f"weights are not prepared in {precision}; choose {', '.join(PRECISIONS)}.")
    config = read_config(directory)
    try:
        path = _folder() / f"{_identity(directory, precision)}{SUFFIX}"
        found = _opened(path) or _made(directory, precision, path)
    except NoFolderError as error:
        _log.warning("%s; weights are prepared for this process alone, in %s.", error, tempfile.gettempdir())
        found = _made(directory, precision, None)
    if config.num_nextn_predict_layers and not found.mtp:
        mention_absent_mtp(directory)
    return found


def own_precision(directory: str | Path) -> Precision:
    """The smallest precision in which the experts' and attention's matrices of a directory need no new rounding.

    `float32` if one of them is wider than BF16; `fp8` and `official` only if all are stored as these have them. FP8
    with float32 scales counts as FP8. Reads the shards' headers; raises as these do.
    """
    found: dict[Format, set[str]] = {Format.FP8: set(), Format.MXFP4: set()}
    for header in read_headers(existing_directory(directory)):
        name = to_official(header.name)
        official = weight_format(name, Precision.OFFICIAL)
        if official in found and not name.endswith(".scale"):
            found[official].add(header.dtype)
    experts, others = found[Format.MXFP4], found[Format.FP8]
    if others == {"F8_E4M3"} and experts == {"I8"}:
        return Precision.OFFICIAL
    if others == {"F8_E4M3"} and experts == {"F8_E4M3"}:
        return Precision.FP8
    return Precision.FLOAT32 if (experts | others) & {"F32", "F64", "F16"} else Precision.BF16


def _folder() -> Path:
    try:
        return cache_folder("prepared")
    except RuntimeError as error:  # nobody knows a home
        raise NoFolderError(f"there is no cache folder ({error})") from None


def _identity(directory: Path, precision: Precision) -> str:
    """What decides a prepared file's content. Of a shard its size and time of change too: nobody reads it here, and the
    checksum may be that of another, whose place it took."""
    checksums = read_checksums(directory)
    decides: list[Any] = [VERSION, precision]
    try:
        decides.append(hashlib.sha256((directory / "config.json").read_bytes()).hexdigest())
        for shard in shard_files(directory):
            status = shard.stat()
            decides.append((shard.name, status.st_size, status.st_mtime_ns, checksums.get(shard.name)))
    except OSError as error:
        raise NarrowsError(f"{error.filename} cannot be read: {error.strerror}.") from None
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:40]


def _opened(path: Path) -> Prepared | None:
    """None if there is no such file, or a damaged one. One that cannot be read may be whole: that is a NarrowsError, or
    `NoFolderError` if it is the folder that cannot be looked into."""
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if not os.access(path.parent, os.X_OK):
            raise NoFolderError(f"{path.parent} cannot be opened ({error.strerror})") from None
        raise _unreadable(path, error) from None
    with file:
        hold(file)
        try:
            return _mapped(file, path)
        except ValueError as error:
            _log.warning("%s cannot be used (%s); it is made anew.", path, error)
            return None


def _mapped(file: BinaryIO, path: Path | None) -> Prepared:
    """As `Prepared`, but for OSErrors, which become NarrowsErrors."""
    try:
        return Prepared(file, path)
    except OSError as error:
        raise _unreadable(path or Path(tempfile.gettempdir()), error) from None


def _unreadable(path: Path, error: OSError) -> NarrowsError:
    return NarrowsError(
        f"{path}: the prepared weights cannot be read ({error.strerror or error}); mend that, or set {VARIABLE} to a "
        "folder elsewhere."
    )


def _made(directory: Path, precision: Precision, path: Path | None) -> Prepared:
    """Make the file, under `path` or, if that is None, without a name. `NoFolderError` if it cannot even be begun."""
    checkpoint = Checkpoint(directory)
    contents = Contents(checkpoint.config, precision, dict(_planned(checkpoint, precision)))
    try:
        if path is None:
            with tempfile.TemporaryFile(prefix="narrows-") as file:
                _fill(file, Path(tempfile.gettempdir()), checkpoint, contents)
                return _mapped(file, None)
        with claimed(path) as file:
            found = _opened(path)  # by whoever held it until now
            if found is not None:
                return found
            make_room(path.parent, contents.bytes)
            _fill(file, path.parent, checkpoint, contents)
            if path.stem != _identity(directory, precision):
                raise NarrowsError(f"{directory} was changed while it was read; try again.")
            os.replace(file.name, path)
            flush(path.parent)
            return _mapped(file, path)
    except OSError as error:
        raise _explained(path or Path(tempfile.gettempdir()), contents.bytes, error) from None
    finally:
        checkpoint.close()


def _fill(file: BinaryIO, folder: Path, checkpoint: Checkpoint, contents: Contents) -> None:
    """Write the whole file to the disk."""
    if shutil.disk_usage(folder).free < contents.bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write(file, contents, (_tensor(checkpoint, name, contents.precision) for name in checkpoint.shapes))
    file.flush()
    os.fsync(file.fileno())


def _planned(checkpoint: Checkpoint, precision: Precision) -> Iterator[tuple[str, PackedWeight | PlainTensor]]:
    """Every tensor's own name and what becomes of it, in the order in which the checkpoint is best read."""
    for name, shape in checkpoint.shapes.items():
        slot = checkpoint.slots[name]
        if not _is_packed(checkpoint, name):
            dtype = "int32" if slot.integer else "bfloat16" if name == _EMBEDDING else "float32"
            yield slot.ours, PlainTensor(dtype, shape)
            continue
        weight = PackedWeight(_PACKED[weight_format(name, precision)], *shape)
        try:
            packed_sizes(weight.format, *shape)
        except ValueError as error:
            raise UsageError(
                f"{name} cannot be stored in the precision {precision}: {error}; choose another."
            ) from None
        yield name.removesuffix(".weight") if slot.index else slot.ours, weight


def _tensor(checkpoint: Checkpoint, name: str, precision: Precision) -> Packed | Tensor:
    stored = recoded(name, checkpoint.encoded(name), weight_format(name, precision))
    if _is_packed(checkpoint, name):
        return pack(stored.values, stored.scale)
    if checkpoint.slots[name].integer:
        return stored.values.to(torch.int32)
    return stored.values if name == _EMBEDDING else stored.decode(torch.float32)


def _is_packed(checkpoint: Checkpoint, name: str) -> bool:
    """Whether it is the matrix of a linear product: mHC's and the biases by position are no `.weight`."""
    return len(checkpoint.shapes[name]) == 2 and name.endswith(".weight") and name != _EMBEDDING


def _explained(where: Path, needed: int, error: OSError) -> NarrowsError:
    if error.errno in FULL:
        why = "but the disk has no room for them; make some"
    elif error.errno == errno.EFBIG:
        why = "more than a file may have here; raise the limit (ulimit -f)"
    else:
        why = f"and writing them failed ({error.strerror or error}); mend that"
    return NarrowsError(
        f"{where} needs {needed:,} bytes for the prepared weights, {why}, or set {VARIABLE} to a folder elsewhere."
    )
