"""One weight as it lies in a file: plain, or quantised values beside their scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from narrows.errors import NarrowsError
from narrows.model.precision import Format
from narrows.ops.quantize import (
    dequantize_fp8,
    dequantize_mxfp4,
    fp8_scale_shape,
    mxfp4_shapes,
    quantize_fp8,
    quantize_mxfp4,
)

E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu

_FORMATS = {
    (torch.float32, None): Format.FLOAT32,
    (torch.bfloat16, None): Format.BF16,
    (torch.int64, None): Format.INT64,
    (E4M3, E8M0): Format.FP8,
    (torch.int8, E8M0): Format.MXFP4,
}
_DTYPES = {stored: dtypes for dtypes, stored in _FORMATS.items()}


@dataclass(frozen=True)
class Encoded:
    """`values` and, if they are FP8 or MXFP4, their `scale`."""

    values: Tensor
    scale: Tensor | None = None

    @property
    def format(self) -> Format | None:
        """The format in our writer's terms; None for what is only read: float16, FP8 with float32 scales."""
        return _FORMATS.get((self.values.dtype, None if self.scale is None else self.scale.dtype))

    def decode(self, dtype: torch.dtype) -> Tensor:
        """The weight itself."""
        if self.scale is None:
            return self.values.to(dtype)
        if self.values.dtype == torch.int8:
            return dequantize_mxfp4(self.values, self.scale, dtype)
        return dequantize_fp8(self.values, self.scale, dtype)


def encode(weight: Tensor, target: Format) -> Encoded:
    """Store a weight in a format. ValueError if it holds what the format cannot, such as infinities."""
    match target:
        case Format.FP8:
            return Encoded(*quantize_fp8(weight))
        case Format.MXFP4:
            return Encoded(*quantize_mxfp4(weight))
        case _:
            return Encoded(weight.to(_DTYPES[target][0]))


def encode_tensor(name: str, weight: Tensor, target: Format) -> Encoded:
    """`encode`; NarrowsError, naming the tensor, where the format cannot hold it or would hold what is not finite."""
    try:
        stored = encode(weight, target)
    except ValueError as error:
        raise NarrowsError(f"the tensor {name} cannot be stored as {target}: {error}.") from None
    if not all_finite(stored.values):
        raise NarrowsError(f"the tensor {name} holds a value that is not finite in {target}; restore it.")
    return stored


def recoded(name: str, found: Encoded, target: Format) -> Encoded:
    """The tensor in this format; one that has it already is not touched. Raises as `encode_tensor`."""
    if found.format is target:
        return found
    whole = found.values if target is Format.INT64 else found.decode(torch.float32)
    return encode_tensor(name, whole, target)


def stored_as(target: Format, shape: tuple[int, ...]) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """dtype and shape of the tensors that store a weight of this shape: its values and, if quantised, its scales.

    ValueError where the format cannot have this shape.
    """
    values, scale = _DTYPES[target]
    if scale is None:
        return [(values, shape)]
    rows, columns = shape
    if target is Format.FP8:
        return [(values, shape), (scale, fp8_scale_shape(rows, columns))]
    codes, scales = mxfp4_shapes(rows, columns)
    return [(values, codes), (scale, scales)]


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is infinite or NaN, in one pass and, for wide dtypes, without a copy."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.dtype == E4M3:  # has no infinities, and two NaNs: all bits but the sign's
        return not bool((tensor.view(torch.uint8) & 0x7F == 0x7F).any())
    if tensor.itemsize == 1:
        tensor = tensor.float()
    least, most = tensor.aminmax()
    return bool(least.isfinite() & most.isfinite())
