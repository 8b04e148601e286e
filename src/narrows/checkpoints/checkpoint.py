"""A directory's weights under their official names, checked against its config.json before any is read."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from narrows.checkpoints.encoding import Encoded, all_finite
from narrows.checkpoints.match import match, slots
from narrows.checkpoints.names import to_official
from narrows.checkpoints.paths import exists, is_file
from narrows.checkpoints.shards import Header, Shards, existing_directory, read_headers, read_json
from narrows.errors import NarrowsError
from narrows.model.config import ModelConfig
from narrows.model.network import Network

_log = logging.getLogger(__name__)


def read_config(directory: str | Path) -> ModelConfig:
    """The ModelConfig of a directory's config.json, or of the path itself if it is a file.

    UsageError if there is no such path; NarrowsError, naming file and field, if the file is absent, no JSON or
    contradicts itself.
    """
    path = Path(directory)
    if not is_file(path):
        path = existing_directory(path) / "config.json"
        if not exists(path):
            raise NarrowsError(
                f"{path.absolute()} is absent; it says what kind of model this is: restore or download it."
            )
    return ModelConfig.from_dict(read_json(path), source=str(path))


def mention_absent_mtp(directory: str | Path) -> None:
    """Log that a directory's config.json counts MTP weights that its files do not have."""
    _log.warning("%s has no MTP weights (mtp.*), though its config.json counts them; going on without.", directory)


class Checkpoint:
    """Weights on disk, of any layout and precision that this package reads; opened, they are known to be complete.

    Opening reads config.json and the shards' headers. NarrowsError names the file or tensor if one is missing, of the
    wrong shape or dtype, not of this model, or there twice. `config` has no MTP block where the files have none (as
    those that transformers writes), whatever config.json says; `mtp_absent` tells.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = existing_directory(directory)
        config = read_config(self.directory)
        self._shards = Shards(self.directory)
        headers = read_headers(self.directory)
        self.mtp_absent = config.num_nextn_predict_layers > 0 and not any(
            to_official(header.name).startswith("mtp.") for header in headers
        )
        self.config = config.model_copy(update={"num_nextn_predict_layers": 0}) if self.mtp_absent else config
        self.slots = slots(Network(self.config, device="meta"))
        try:
            stored = match(self.directory, headers, self.slots)
        except NarrowsError:
            # A flipped bit in a header looks like a tensor of another name: say that it is damage, where we can know.
            self._shards.verify_all()
            raise
        shard_order = {shard: number for number, shard in enumerate(dict.fromkeys(h.shard for h in headers))}
        order = sorted(self.slots, key=lambda name: shard_order[stored[name].values.shard])
        self._stored = {name: stored[name] for name in order}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Official name -> shape of the weight, shard by shard, within each in the network's order."""
        return {name: self.slots[name].shape for name in self._stored}

    def encoded(self, name: str) -> Encoded:
        """The tensor of this official name as stored, possibly in the file's memory map.

        NarrowsError if its shard is damaged, if it or its scales hold what is not finite, or if a table of experts
        names one that does not exist.
        """
        stored = self._stored[name]
        values = self._shards.tensor(stored.values, stored.index)
        scale = None if stored.scale is None else self._shards.tensor(stored.scale, stored.scale_index)
        if scale is not None and stored.scale is not None and not all_finite(scale):
            raise _not_finite(stored.scale)
        if not all_finite(values):
            raise _not_finite(stored.values)
        if self.slots[name].integer and not bool(((values >= 0) & (values < self.config.n_routed_experts)).all()):
            raise NarrowsError(
                f"{stored.values.shard}: the table {stored.values.name} names an expert outside "
                f"n_routed_experts {self.config.n_routed_experts}; restore the file."
            )
        return Encoded(values, scale)

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """The tensor of this official name, dequantised; tables stay int64. Raises as `encoded`, and NarrowsError if
        a value is too large for the dtype."""
        encoded = self.encoded(name)
        if self.slots[name].integer:
            return encoded.values.to(torch.int64)
        weight = encoded.decode(dtype)
        if not all_finite(weight):
            raise _not_finite(self._stored[name].values, f" in {str(dtype).removeprefix('torch.')}")
        return weight

    def close(self) -> None:
        """Close the files."""
        self._shards.close()


def _not_finite(header: Header, where: str = "") -> NarrowsError:
    return NarrowsError(
        f"{header.shard}: the tensor {header.name} holds a value that is not finite{where}; restore the file."
    )
