"""A network packed for the CPU kernels, and the network in PyTorch that it must agree with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from narrows.model import attention, indexer, moe
from narrows.model.linear import Linear
from narrows.model.native_network import NativeNetwork
from narrows.model.network import Network
from narrows.model.precision import Format, Precision, weight_format
from narrows.ops.experts import swiglu
from narrows.ops.index_topk import index_topk
from narrows.ops.linear import grouped_linear
from narrows.ops.packed import Packed, pack, unpack
from narrows.ops.pages import Pages
from narrows.ops.quantize import quantize_fp8, quantize_mxfp4
from narrows.ops.row_format import RowFormat


@torch.no_grad()
def pack_network(network: Network, precision: Precision) -> NativeNetwork:
    """The same weights for the kernels; `network`'s become what that precision makes of them."""
    matrices: dict[str, Packed] = {}
    arrays: dict[str, Tensor] = {}

    def matrix(name: str, weight: Tensor, stored: Format) -> None:
        match stored:
            case Format.FP8:
                matrices[name] = pack(*quantize_fp8(weight))
            case Format.MXFP4:
                matrices[name] = pack(*quantize_mxfp4(weight))
            case _:
                matrices[name] = pack(weight.bfloat16())
        weight.copy_(unpack(matrices[name]))

    for name, tensor in network.state_dict().items():
        stored = weight_format(name, precision)
        if name == "embed.weight":
            arrays[name] = tensor.bfloat16()
            tensor.copy_(arrays[name])
        elif name.endswith("tid2eid"):
            arrays[name] = tensor.int()
        elif name.endswith("experts.w13"):
            width = tensor.shape[1] // 2
            for expert, both in enumerate(tensor):
                matrix(name.replace("w13", f"{expert}.w1"), both[:width], stored)
                matrix(name.replace("w13", f"{expert}.w3"), both[width:], stored)
        elif name.endswith("experts.w2"):
            for expert, weight in enumerate(tensor):
                matrix(name.replace("w2", f"{expert}.w2"), weight, stored)
        elif tensor.dim() == 2 and not name.endswith((".fn", ".ape")):
            matrix(name, tensor, stored)
        else:
            arrays[name] = tensor.float().contiguous()
    for name, tensor in network.state_dict().items():
        if name.endswith((".fn", ".ape")):
            arrays[name] = tensor.float().contiguous()
    return NativeNetwork(network.config, precision, matrices, arrays)


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


@contextmanager
def rounded_inputs(network: Network) -> Iterator[None]:
    """Within, products take their inputs in BF16, but those of router, compressors and hyper-connections."""

    def experts(x: Tensor, weights: Tensor, chosen: Tensor, w13: Tensor, w2: Tensor, limit: float) -> Tensor:
        out = torch.zeros_like(x)
        for expert in range(w13.shape[0]):
            row, choice = (chosen == expert).nonzero(as_tuple=True)
            gate, up = (rounded(x)[row] @ w13[expert].mT).chunk(2, dim=-1)
            inner = rounded(swiglu(gate.contiguous(), up.contiguous(), limit))
            out.index_add_(0, row, (inner @ w2[expert].mT) * weights[row, choice, None])
        return out

    def search(queries: Tensor, weights: Tensor, keys: Pages, *rest: Any, **options: Any) -> Tensor:
        """Queries are rounded as the scores take them: behind the turn, if there is one."""
        turned = replace(keys, format=None if keys.format is None else _Turned(keys.format))
        return index_topk(rounded(keys.queries(queries)), weights, turned, *rest, **options)

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))
        for module in network.modules()
        if isinstance(module, Linear)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "grouped_linear", lambda x, weight, groups: grouped_linear(rounded(x), weight, groups))
        patch.setattr(moe, "experts", experts)
        patch.setattr(indexer, "index_topk", search)
        yield
    for hook in hooks:
        hook.remove()


class _Turned:
    """A format whose queries are turned already."""

    def __init__(self, format: RowFormat) -> None:
        self._format = format

    def queries(self, queries: Tensor) -> Tensor:
        return queries

    def __getattr__(self, name: str) -> Any:
        return getattr(self._format, name)
