"""Weights to a directory: which tensor in which format in which shard, config.json, checksums."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import torch

from narrows.checkpoints.checksums import digest, write_checksums
from narrows.checkpoints.directory import check_new, new_directory
from narrows.checkpoints.encoding import Encoded, encode_tensor, recoded, stored_as
from narrows.checkpoints.names import scale_name, to_transformers
from narrows.checkpoints.paths import exists, is_folder
from narrows.checkpoints.shard_writer import Planned, ShardWriter
from narrows.checkpoints.shards import INDEX, SINGLE
from narrows.errors import UsageError
from narrows.model.config import ModelConfig
from narrows.model.precision import Format, Precision, weight_format

SHARD_BYTES = 5_000_000_000
COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md", "LICENSE", "encoding")


class Layout(StrEnum):
    """Whose names the tensors get. transformers reads both; its own has no MTP block and no quantised precision."""

    OFFICIAL = "official"
    TRANSFORMERS = "transformers"


class Source(Protocol):
    """Where weights come from: a Checkpoint or a Network."""

    config: ModelConfig

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Official name -> shape, in the order in which they are best read."""

    def encoded(self, name: str) -> Encoded:
        """One tensor."""


@dataclass(frozen=True)
class Written:
    """What was written. `worst_error`: the largest ‖stored − weight‖ / ‖weight‖ of a tensor, and which one's it is."""

    bytes: int
    shards: int
    worst_error: float
    worst_tensor: str | None


@dataclass(frozen=True)
class _Weight:
    """One weight and the one or two tensors that will store it."""

    name: str
    format: Format
    tensors: tuple[Planned, ...]

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)


class Plan:
    """What a source becomes in this precision and layout, known before anything is read or written.

    UsageError if the precision cannot hold the model or the layout not the precision.
    """

    def __init__(
        self, source: Source, precision: Precision, layout: Layout = Layout.OFFICIAL, shard_bytes: int = SHARD_BYTES
    ) -> None:
        if layout is Layout.TRANSFORMERS and precision not in (Precision.FLOAT32, Precision.BF16):
            raise UsageError(
                f"the transformers layout has no {precision} precision; choose float32 or bf16, or the official "
                "layout, which transformers reads as well."
            )
        self.precision, self.layout = precision, layout
        self.config = source.config
        if layout is Layout.TRANSFORMERS:
            self.config = self.config.model_copy(update={"num_nextn_predict_layers": 0})
        weights = [
            _planned(name, shape, precision, layout)
            for name, shape in source.shapes.items()
            if layout is Layout.OFFICIAL or not name.startswith("mtp.")
        ]
        self.shards = list(_shards(weights, shard_bytes))
        self.bytes = sum(weight.bytes for weight in weights)

    def file_name(self, shard: int) -> str:
        """The name of the shard of this number, from 0."""
        return SINGLE if len(self.shards) == 1 else f"model-{shard + 1:05}-of-{len(self.shards):05}.safetensors"


def write_checkpoint(
    source: Source,
    plan: Plan,
    destination: str | Path,
    *,
    companions: str | Path | None = None,
    progress: Callable[[int], None] = lambda written: None,
) -> Written:
    """Write `source` as planned into the new directory `destination`; complete or absent, even if killed.

    One tensor at a time is in memory. `companions`: a directory whose tokenizer files and the like are copied along.
    `progress` is called with the bytes of every weight written. UsageError if the destination exists or what is above
    it is no folder; NarrowsError if the disk is full or forbids it, or a weight cannot be stored in its format.
    """
    destination = Path(destination)
    check_new(destination, plan.bytes)
    errors: dict[str, float] = {}
    with new_directory(destination) as folder:
        if companions is not None:
            _copy_companions(Path(companions), folder)
        (folder / "config.json").write_text(json.dumps(_config_json(plan), indent=2) + "\n", encoding="utf-8")
        checksums = {name: digest(folder / name) for name in ("tokenizer.json",) if exists(folder / name)}
        for number, weights in enumerate(plan.shards):
            file_name = plan.file_name(number)
            with ShardWriter(folder / file_name, [tensor for weight in weights for tensor in weight.tensors]) as shard:
                for weight in weights:
                    stored, errors[weight.name] = _stored(source, weight)
                    shard.write(stored.values)
                    if stored.scale is not None:
                        shard.write(stored.scale)
                    progress(weight.bytes)
            checksums[file_name] = shard.digest()
        if len(plan.shards) > 1:
            (folder / INDEX).write_text(json.dumps(_index(plan), indent=2) + "\n", encoding="utf-8")
        write_checksums(folder, checksums)
    worst = max(errors, key=lambda name: errors[name])
    return Written(plan.bytes, len(plan.shards), errors[worst], worst if errors[worst] > 0 else None)


def _planned(name: str, shape: tuple[int, ...], precision: Precision, layout: Layout) -> _Weight:
    target = weight_format(name, precision)
    in_file = name if layout is Layout.OFFICIAL else to_transformers(name)
    try:
        tensors = stored_as(target, shape)
    except ValueError as error:
        raise UsageError(f"{name} cannot be stored in the precision {precision}: {error}; choose another.") from None
    names = (in_file, scale_name(in_file))[: len(tensors)]
    return _Weight(name, target, tuple(Planned(n, *tensor) for n, tensor in zip(names, tensors, strict=True)))


def _shards(weights: list[_Weight], shard_bytes: int) -> Iterator[list[_Weight]]:
    """Cut the list where a shard would grow beyond its size; in a shard, wide dtypes come first."""
    shard: list[_Weight] = []
    size = 0
    for weight in weights:
        if shard and size + weight.bytes > shard_bytes:
            yield _wide_first(shard)
            shard, size = [], 0
        shard.append(weight)
        size += weight.bytes
    yield _wide_first(shard)


def _wide_first(shard: list[_Weight]) -> list[_Weight]:
    return sorted(shard, key=lambda weight: -weight.tensors[0].dtype.itemsize)


def _stored(source: Source, weight: _Weight) -> tuple[Encoded, float]:
    """The weight in its format, and the relative error that this cost."""
    found = source.encoded(weight.name)
    if found.format is weight.format or weight.format is Format.INT64:
        return recoded(weight.name, found, weight.format), 0.0
    exact = found.decode(torch.float32)
    stored = encode_tensor(weight.name, exact, weight.format)
    size = float(torch.linalg.vector_norm(exact, dtype=torch.float64))
    rounded_off = float(torch.linalg.vector_norm(stored.decode(torch.float32) - exact, dtype=torch.float64))
    return stored, rounded_off / size if size else 0.0


def _config_json(plan: Plan) -> dict[str, Any]:
    config = plan.config.to_dict()
    config["torch_dtype"] = "float32" if plan.precision is Precision.FLOAT32 else "bfloat16"
    if plan.precision in (Precision.FP8, Precision.OFFICIAL):
        config["expert_dtype"] = "fp4" if plan.precision is Precision.OFFICIAL else "fp8"
        config["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "scale_fmt": "ue8m0",
            "weight_block_size": [128, 128],
        }
    return config


def _index(plan: Plan) -> dict[str, Any]:
    where = {
        tensor.name: plan.file_name(number)
        for number, weights in enumerate(plan.shards)
        for weight in weights
        for tensor in weight.tensors
    }
    return {"metadata": {"total_size": plan.bytes}, "weight_map": where}


def _copy_companions(source: Path, folder: Path) -> None:
    for name in COMPANIONS:
        if is_folder(source / name):
            shutil.copytree(source / name, folder / name)
        elif exists(source / name):
            shutil.copy2(source / name, folder / name)
