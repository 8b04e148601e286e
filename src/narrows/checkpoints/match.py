"""Which tensor of the files is which of the network's, and whether it can be: names, shapes, dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from narrows.checkpoints.names import Index, official_parts, scale_name, to_official
from narrows.checkpoints.shards import Header
from narrows.errors import NarrowsError
from narrows.model.network import Network
from narrows.ops.quantize import FP8_TILE, fp8_scale_shape, mxfp4_shapes

_PLAIN, _INTEGERS = ("F32", "BF16", "F16", "F64"), ("I64", "I32")
_FP8, _MXFP4 = "F8_E4M3", "I8"
_SCALES = {_FP8: ("F8_E8M0", "F32"), _MXFP4: ("F8_E8M0",)}


@dataclass(frozen=True)
class Slot:
    """Where one official tensor of this `shape` lives in our network: in which parameter or buffer, and where in it."""

    ours: str
    whole: tuple[int, ...]
    index: Index
    shape: tuple[int, ...]
    integer: bool


@dataclass(frozen=True)
class Stored:
    """Where one official tensor lies in the files: its values and, if quantised, its scales."""

    values: Header
    index: Index = ()
    scale: Header | None = None
    scale_index: Index = ()


def slots(network: Network) -> dict[str, Slot]:
    """Official name -> slot, for every parameter and buffer of the network (which may be on the meta device)."""
    found = {}
    for ours, tensor in network.state_dict().items():
        for official, index in official_parts(ours, tensor.shape):
            part = tensor[index] if index else tensor
            found[official] = Slot(ours, tuple(tensor.shape), index, tuple(part.shape), not tensor.is_floating_point())
    return found


def match(directory: Path, headers: Sequence[Header], slots: Mapping[str, Slot]) -> dict[str, Stored]:
    """Official name -> where it is stored, in the headers' order: every slot's tensors, and nothing else there.

    NarrowsError names the tensor if one is missing, there twice, not the model's, or of the wrong shape or dtype.
    """
    by_name: dict[str, Header] = {}
    for header in headers:
        _refuse_twice(to_official(header.name), by_name, header)
        by_name[to_official(header.name)] = header
    stacks: dict[str, list[str]] = {}
    for name, slot in slots.items():
        if slot.index:
            stacks.setdefault(slot.ours, []).append(name)
    stored: dict[str, Stored] = {}
    owner: dict[str, Header] = {}
    used = set()
    for name, header in by_name.items():
        parts = [name] if name in slots else stacks.get(name, [])
        if not parts:
            continue
        first = slots[parts[0]]
        scale = by_name.get(scale_name(name)) if header.dtype in _SCALES else None
        _check(header, scale, first.shape if name in slots else first.whole, first.integer)
        used |= {name} if scale is None else {name, scale_name(name)}
        for part in parts:
            _refuse_twice(part, owner, header)
            owner[part] = header
            index = () if name in slots else slots[part].index
            stored[part] = Stored(header, index, scale, _scale_index(header, index))
    missing = [name for name in slots if name not in stored]
    if missing:
        raise NarrowsError(
            f"{directory} lacks the tensor {_some(missing)}; restore the shard that held it, or correct config.json."
        )
    unexpected = [header for name, header in by_name.items() if name not in used]
    if unexpected:
        raise NarrowsError(
            f"{unexpected[0].shard} holds the tensor {_some([header.name for header in unexpected])}, which the model "
            "that config.json describes does not have; correct config.json or remove it."
        )
    return stored


def _refuse_twice(name: str, known: Mapping[str, Header], header: Header) -> None:
    if name in known:
        first = known[name]
        raise NarrowsError(
            f"{header.shard}: the tensor {header.name} is there twice, the other time as {first.name} in "
            f"{first.shard.name}; remove one."
        )


def _check(header: Header, scale: Header | None, shape: tuple[int, ...], integer: bool) -> None:
    """dtypes and shapes of a tensor and its scales fit a weight of this shape, or NarrowsError."""
    allowed = _INTEGERS if integer else _PLAIN if len(shape) == 1 else (*_PLAIN, *_SCALES)
    if header.dtype not in allowed:
        raise NarrowsError(
            f"{header.shard}: the tensor {header.name} has dtype {header.dtype}; here only {', '.join(allowed)} can be."
        )
    if header.dtype not in _SCALES:
        _check_shape(header, shape)
        return
    *stack, rows, columns = shape
    if header.dtype == _FP8:
        codes, scales = (rows, columns), fp8_scale_shape(rows, columns)
    else:
        try:
            codes, scales = mxfp4_shapes(rows, columns)
        except ValueError as error:
            raise NarrowsError(f"{header.shard}: the tensor {header.name} cannot be {header.dtype}: {error}.") from None
    _check_shape(header, (*stack, *codes))
    if scale is None:
        raise NarrowsError(
            f"{header.shard}: the tensor {header.name} is {header.dtype} but its scales, "
            f"{scale_name(to_official(header.name))}, are missing; restore them."
        )
    if scale.dtype not in _SCALES[header.dtype]:
        raise NarrowsError(
            f"{scale.shard}: the scales {scale.name} have dtype {scale.dtype}; of a tensor in {header.dtype} they are "
            f"{' or '.join(_SCALES[header.dtype])}."
        )
    _check_shape(scale, (*stack, *scales))
    if stack and header.dtype == _FP8 and rows % (2 * FP8_TILE) and to_official(header.name).endswith(".w13"):
        raise NarrowsError(
            f"{header.shard}: the tensor {header.name} has FP8 tiles that reach over gate and up rows, which cannot be "
            "told apart; store the experts one by one."
        )


def _check_shape(header: Header, shape: tuple[int, ...]) -> None:
    if header.shape != shape:
        raise NarrowsError(
            f"{header.shard}: the tensor {header.name} has shape {list(header.shape)}, but config.json asks for "
            f"{list(shape)}; restore the one that belongs to it."
        )


def _scale_index(header: Header, index: Index) -> Index:
    """The scales of a part of a stack: MXFP4 has them for every row, FP8 for every 128."""
    step = FP8_TILE if header.dtype == _FP8 else 1
    return tuple(slice(i.start // step, -(-i.stop // step)) if isinstance(i, slice) else i for i in index)


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"
