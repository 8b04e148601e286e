"""A network packed for the CPU kernels, and the network in PyTorch that it must agree with."""

from __future__ import annotations

import torch
from torch import Tensor

from narrows.model.native_network import NativeNetwork
from narrows.model.network import Network
from narrows.model.precision import Format, Precision, weight_format
from narrows.ops.packed import Packed, pack, unpack
from narrows.ops.quantize import quantize_fp8, quantize_mxfp4


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
