"""A checkpoint to a network on the CPU kernels."""

from __future__ import annotations

import secrets
from pathlib import Path

from narrows.checkpoints.memory import prefetch_bytes, usable_memory
from narrows.checkpoints.prepared import Prepared, prepare
from narrows.errors import NarrowsError, UsageError
from narrows.model.native_network import NativeNetwork, why_not
from narrows.model.precision import Precision


def load_native(directory: str | Path, precision: Precision | str) -> NativeNetwork:
    """The network that a directory describes, in `bf16`, `fp8` or `official`, its weights mapped from a file of them.

    UsageError where the kernels cannot run it; otherwise errors as from `prepare`.
    """
    return bind(prepare(directory, precision))


def bind(prepared: Prepared, *, prefetch: bool | None = None) -> NativeNetwork:
    """The network whose weights these are. UsageError where the kernels cannot run it, NarrowsError for a damaged file.

    A file larger than memory runs too: what has not been used for long leaves memory and is read again. With
    `prefetch` experts are asked for before they are used, so that many are read at once; None: if the file takes more
    than a share (`memory.FITS`) of the memory that this process may use, by its control groups or by the machine.
    """
    reason = why_not(prepared.config)
    if reason is not None:
        raise UsageError(f"the kernels cannot run this model: {reason}; use the precision float32.")
    packed = [name for name in prepared.names if prepared.is_packed(name)]
    plain = [name for name in prepared.names if not prepared.is_packed(name)]
    try:
        return NativeNetwork(
            prepared.config,
            prepared.precision,
            {name: prepared.packed(name) for name in packed},
            {name: prepared.plain(name) for name in plain},
            # The file's name says of what checkpoint it is; one without a name is like no other.
            prepared.path.stem if prepared.path else secrets.token_hex(20),
            prefetch=prefetch_bytes(prepared.bytes, usable_memory(), wanted=prefetch),
        )
    except ValueError as error:
        where = prepared.path or "the file of prepared weights"
        raise NarrowsError(f"{where} is damaged ({error}); delete it, and it is made anew.") from None
