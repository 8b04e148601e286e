"""Recipe: everything that decides what a training run computes, as TOML, checked once at the door."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from narrows.errors import NarrowsError, UsageError
from narrows.model.config import ModelConfig
from narrows.model.layer_kind import LayerKind
from narrows.model.precision import Precision

FORMAT = 1


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Stage(_Table):
    """A stretch of steps with one kind of batch. A step's gradient is the mean over `passes_per_step` packed passes.

    `sample_length` and `rows_per_pass` are rows at most, of one sample and of one pass. `attention`: CSA layers attend
    to every visible entry (`dense`) or to those that the indexer selects (`sparse`). `train`: all parameters, or the
    indexers alone. `mtp`: whether the MTP block learns too. `rounded`: the network computes with its weights as they
    will be shipped.
    """

    steps: int = Field(gt=0)
    sample_length: int = Field(ge=16)
    rows_per_pass: int = Field(gt=0)
    passes_per_step: int = Field(default=1, gt=0)
    attention: Literal["dense", "sparse"] = "dense"
    train: Literal["all", "indexers"] = "all"
    mtp: bool = True
    rounded: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rows_per_pass < self.sample_length:
            raise ValueError(
                f"rows_per_pass {self.rows_per_pass} is below sample_length {self.sample_length}: a sample must fit"
            )
        return self


class Optimiser(_Table):
    """Warm-up, constant, cosine (R §4.2). Fractions are of all steps; norms of the whole gradient."""

    learning_rate: float = Field(gt=0)
    final_learning_rate: float = Field(gt=0)
    index_learning_rate: float = Field(default=1e-3, gt=0)  # of stages that train the indexers alone
    warm_up_steps: int = Field(ge=0)
    cosine_from: float = Field(ge=0, le=1)
    weight_decay: float = Field(default=0.1, ge=0)
    largest_gradient_norm: float = Field(default=1.0, gt=0)  # longer gradients are shortened to it
    spike: float = Field(default=20.0, gt=1)  # a norm so many times its running mean skips the step


class Loss(_Table):
    """Weights of the losses beside the next token's, and how fast the routers' biases follow the load."""

    mtp: float = Field(default=0.3, ge=0)
    final_mtp: float = Field(default=0.1, ge=0)  # from the beginning of the cosine on
    balance: float = Field(default=1e-4, ge=0)
    bias_speed: float = Field(default=1e-3, ge=0)
    index: float = Field(default=1.0, ge=0)


class Recipe(_Table):
    """One training run. Paths are relative to the recipe's file.

    `dtype` is what the network holds and computes in. `fast_products`: float32 matrices may be multiplied by whatever
    the machine is fastest with, which is BF16 or TF32 where it has units for that.
    """

    format: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    corpus: str
    seed: int = Field(default=0, ge=0)
    dtype: Literal["float32", "bf16"] = "float32"
    fast_products: bool = False
    precision: Literal["bf16", "fp8", "official"] = "official"
    fim_rate: float = Field(default=0.5, ge=0, le=1)
    evaluation_tokens: int = Field(default=60_000, gt=0)
    steps_between_evaluations: int = Field(default=200, gt=0)
    seconds_between_checkpoints: float = Field(default=120, ge=0)
    model: dict[str, Any]
    optimiser: Optimiser
    loss: Loss = Loss()
    stages: tuple[Stage, ...] = Field(min_length=1, strict=False)

    @classmethod
    def from_file(cls, file: Path) -> Recipe:
        """Read a recipe; NarrowsError, naming file and field, when it cannot be read or contradicts itself."""
        try:
            raw = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            kind = UsageError if isinstance(error, FileNotFoundError) else NarrowsError
            raise kind(f"{file} cannot be read ({error.strerror}); give a recipe, a TOML file.") from None
        except ValueError as error:  # broken UTF-8 or TOML
            raise NarrowsError(f"{file} is not TOML ({error}); correct it.") from None
        try:
            recipe = cls(**raw)
        except (ValidationError, TypeError) as error:
            raise NarrowsError(f"{file}: {_first(error)}; correct the recipe.") from None
        for field in ("vocab_size", "trained_context"):
            if field in recipe.model:
                raise NarrowsError(f"{file}: model.{field} follows from the corpus and the stages; remove it.")
        config = recipe.config(vocab_size=1 << 20, source=f"{file}: model")
        if LayerKind.CSA not in config.layer_types and any(stage.train == "indexers" for stage in recipe.stages):
            raise NarrowsError(f"{file}: a stage trains the indexers, and the model has none; take one of them out.")
        if config.num_nextn_predict_layers and not any(stage.mtp for stage in recipe.stages):
            raise NarrowsError(
                f"{file}: the model has an MTP block that no stage trains; let one do it, or leave it out."
            )
        return recipe

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def trained_context(self) -> int:
        """Rows of the longest sample: how long a context the weights will have seen."""
        return max(stage.sample_length for stage in self.stages)

    def stage_at(self, step: int) -> tuple[int, Stage]:
        """Number of the stage that `step` (from 0) belongs to, and the stage."""
        for number, stage in enumerate(self.stages):
            if step < stage.steps:
                return number, stage
            step -= stage.steps
        raise IndexError(f"the recipe has {self.steps} steps, and this is {step} beyond")

    def config(self, vocab_size: int, source: str = "model") -> ModelConfig:
        """The network's configuration over a vocabulary of this size. `source` is named in errors (NarrowsError)."""
        fields = {**self.model, "vocab_size": vocab_size, "trained_context": self.trained_context}
        return ModelConfig.from_dict(fields, source)

    def shipped(self) -> Precision:
        """What the finished model is written in, and rounded stages round to."""
        return Precision(self.precision)


def _first(error: ValidationError | TypeError) -> str:
    """The first thing wrong, as `field: what`."""
    if isinstance(error, TypeError):
        return str(error)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        place = "; it belongs to [model]" if where in ModelConfig.model_fields else ""
        return f"the field {where} is not known here{place}"
    if first["type"] == "missing":
        return f"the field {where} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
