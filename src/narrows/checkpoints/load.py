"""Files to a Network."""

from __future__ import annotations

from pathlib import Path

import torch

from narrows.checkpoints.checkpoint import Checkpoint, mention_absent_mtp
from narrows.checkpoints.device import usable_device
from narrows.errors import NarrowsError
from narrows.model.network import Network


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
    checkpoint = Checkpoint(directory)
    if checkpoint.mtp_absent:
        mention_absent_mtp(directory)
    network = Network(checkpoint.config, dtype=dtype, device="meta")
    try:
        network.to_empty(device=device)
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
        raise NarrowsError(
            f"{directory} needs {size / 1e9:.1f} GB on {device}, more than there is; choose a smaller precision or "
            "another device."
        ) from None
    weights = network.state_dict()
    for name in checkpoint.shapes:
        slot = checkpoint.slots[name]
        target = weights[slot.ours][slot.index]
        target.copy_(checkpoint.read(name, target.dtype))
    checkpoint.close()
    return network.eval()


def _out_of_memory(error: RuntimeError) -> bool:
    """Only some devices have an exception of their own for it; the CPU's and Apple's allocators have a message."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in said or "out of memory" in said
