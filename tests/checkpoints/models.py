"""Small models on disk, and what lies in them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from narrows.checkpoints.save import save_network
from narrows.model.config import ModelConfig
from narrows.model.network import Network, positions_of
from narrows.model.presets import TINY
from narrows.model.segments import Segment
from tests.parity.configurations import randomised

# TINY in sizes that all formats fit, with FP8 tiles that end inside a matrix and MXFP4 rows of several blocks.
ODD = TINY.model_copy(update={"hidden_size": 160, "moe_intermediate_size": 96, "q_lora_rank": 48, "o_lora_rank": 72})
# transformers wants dimensions of its FP8 matrices to be at most 128 or multiples of it.
TILED = TINY.model_copy(update={"hidden_size": 256, "moe_intermediate_size": 128, "q_lora_rank": 128})


def make_network(config: ModelConfig = TINY, seed: int = 0) -> Network:
    """float32, nothing at its neutral value."""
    return randomised(Network(config), torch.Generator().manual_seed(seed)).eval()


def write(directory: Path, config: ModelConfig = TINY, **options: Any) -> Network:
    """`make_network` and `save_network` in one; returns the network."""
    network = make_network(config)
    save_network(network, directory, **options)
    return network


@torch.no_grad()
def logits(network: Network, length: int = 150) -> tuple[Tensor, Tensor]:
    """Random tokens [T] and the network's logits [T, vocab]."""
    tokens = torch.randint(network.config.vocab_size, (length,), generator=torch.Generator().manual_seed(1))
    segments = [Segment(length)]
    return tokens, network.logits(network(tokens, positions_of(segments), segments))


def assert_same_weights(ours: Network, theirs: Network) -> None:
    """Equal names, dtypes and bits."""
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    for name, tensor in mine.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor in the directory's shards."""
    found: dict[str, Tensor] = {}
    for shard in sorted(directory.glob("*.safetensors")):
        found |= load_file(shard)
    return found


def edit_tensors(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Rewrite the single shard of a directory, as foreign tools write: with no checksums beside it."""
    shard = directory / "model.safetensors"
    found = {name: tensor.clone() for name, tensor in load_file(shard).items()}
    change(found)
    save_file(found, shard, metadata={"format": "pt"})
    (directory / "SHA256SUMS").unlink(missing_ok=True)


def edit_json(path: Path, **changes: Any) -> None:
    """Set fields of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def flip_bit(path: Path, position: int) -> None:
    """Flip the lowest bit of the byte at this place; negative places count from the end."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
