"""A Network to files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from narrows.checkpoints.encoding import Encoded
from narrows.checkpoints.match import slots
from narrows.checkpoints.write import SHARD_BYTES, Layout, Plan, Written, write_checkpoint
from narrows.model.network import Network
from narrows.model.precision import Precision


class NetworkSource:
    """A network's weights under their official names; they are read when asked for, not copied."""

    def __init__(self, network: Network) -> None:
        self.config = network.config
        self._slots = slots(network)
        self._weights = network.state_dict()

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Official name -> shape, in the network's order."""
        return {name: slot.shape for name, slot in self._slots.items()}

    def encoded(self, name: str) -> Encoded:
        """The tensor of this official name."""
        slot = self._slots[name]
        return Encoded(self._weights[slot.ours][slot.index])


def save_network(
    network: Network,
    destination: str | Path,
    *,
    precision: Precision | str = Precision.BF16,
    layout: Layout | str = Layout.OFFICIAL,
    shard_bytes: int = SHARD_BYTES,
    companions: str | Path | None = None,
) -> Written:
    """Write the network into the new directory `destination`, which is complete or absent afterwards.

    `companions`: a directory whose tokenizer files and the like are copied along. Raises as `write_checkpoint`.
    """
    source = NetworkSource(network)
    plan = Plan(source, Precision(precision), Layout(layout), shard_bytes)
    return write_checkpoint(source, plan, destination, companions=companions)
