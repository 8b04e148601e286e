"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

ModelOption = Annotated[str, typer.Option("--model", "-m", help="'embedded', a directory, or a hub id (owner/name).")]
MaxTokensOption = Annotated[int, typer.Option(help="The most tokens to write.")]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy; higher is more varied.")]
SeedOption = Annotated[int, typer.Option(help="The same seed gives the same text.")]
DeviceOption = Annotated[str, typer.Option(help="A PyTorch device: cpu, cuda, mps, ...")]
PrecisionOption = Annotated[
    str | None, typer.Option(help="What to compute in: float32 or bf16. [default: float32 on a CPU, bf16 elsewhere]")
]
