"""Files to a Network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from narrows.checkpoints.checkpoint import Checkpoint, mention_absent_mtp
from narrows.checkpoints.device import usable_device
from narrows.checkpoints.encoding import recoded
from narrows.errors import NarrowsError
from narrows.model.network import Network
from narrows.model.precision import Precision, weight_format


def load_network(
    directory: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Network:
    """The network that a directory describes, in evaluation mode, its matrices in `dtype`.

    Reads the official layout (float32, BF16, FP8 and MXFP4, scales E8M0 or float32) and what transformers writes,
    one file or many. Everything is checked before weights are allocated; then one tensor at a time is dequantised
    into its place, so that memory stays under the network's own plus one shard's. A checkpoint without MTP weights
    gives a network without an MTP block, and a warning if its config.json has one.

    UsageError if there is no such directory or no such device; NarrowsError, naming file, field or tensor, if what
    the directory holds is not a whole, undamaged model or does not fit into memory.
    """
    device = usable_device(device)
    return _loaded(Checkpoint(directory), dtype, device, Checkpoint.read)


def load_reference(directory: str | Path, precision: Precision | str, *, device: torch.device | str = "cpu") -> Network:
    """What a directory is in a precision, for others to be measured against: a float32 network whose weights are
    rounded as the precision stores them, whose history is in the precision's cache, and whose large products read
    their inputs in BF16 (`Network.round_inputs`), unless the precision is float32.

    Takes whatever `load_network` does, and raises as it does; NarrowsError too where a weight cannot be stored so.
    """
    precision = Precision(precision)

    def read(checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> Tensor:
        return recoded(name, checkpoint.encoded(name), weight_format(name, precision)).decode(dtype)

    device = usable_device(device)
    network = _loaded(Checkpoint(directory), torch.float32, device, read)
    network.cache = precision
    if precision is not Precision.FLOAT32:
        network.round_inputs()
    return network


def _loaded(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    read: Callable[[Checkpoint, str, torch.dtype], Tensor],
) -> Network:
    if checkpoint.mtp_absent:
        mention_absent_mtp(checkpoint.directory)
    network = Network(checkpoint.config, dtype=dtype, device="meta")
    try:
        network.to_empty(device=device)
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
        raise NarrowsError(
            f"{checkpoint.directory} needs {size / 1e9:.1f} GB on {device}, more than there is; choose a smaller "
            "precision or another device."
        ) from None
    weights = network.state_dict()
    for name in checkpoint.shapes:
        slot = checkpoint.slots[name]
        target = weights[slot.ours][slot.index]
        target.copy_(read(checkpoint, name, target.dtype))
    checkpoint.close()
    return network.eval()


def _out_of_memory(error: RuntimeError) -> bool:
    """Only some devices have an exception of their own for it; the CPU's and Apple's allocators have a message."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in said or "out of memory" in said
