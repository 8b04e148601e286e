"""`narrows inspect`: what a model weighs, counted without its weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from narrows.cli.output import visible
from narrows.cli.tables import print_tables, table
from narrows.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from narrows.model.config import ModelConfig
    from narrows.model.count import Count

_CONTEXTS = (4096, 131_072, 1_048_576)


def inspect(
    model: Annotated[
        str, typer.Argument(metavar="PATH|PRESET", help="A model's folder, a config.json, 'embedded' or a preset.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Count layers, parameters and bytes of a model, from its configuration alone."""
    config = _v4_config(model)
    from narrows.model.count import count

    counted = count(config)
    if as_json:
        print(json.dumps(_as_json(config, counted), indent=2))
        return
    print(visible(model, one_line=True))
    print_tables(_layers(config, counted), _parameters(counted), _checkpoints(counted), _caches(config, counted))


def _v4_config(model: str) -> ModelConfig:
    from narrows.cli.configs import config_of
    from narrows.model.config import ModelConfig

    config = config_of(model)
    if not isinstance(config, ModelConfig):
        raise UsageError(
            f"{model} is V4's predecessor; narrows plan efficiency {model} --explain counts its operations."
        )
    return config


def _layers(config: ModelConfig, counted: Count) -> Table:
    shown = table("layers", "kind", "layers", "tokens per entry")
    for kind, layers in counted.layers.items():
        ratio = config.compress_ratio(kind)
        shown.add_row(kind.replace("_", " "), str(layers), str(ratio) if ratio else "-")
    shown.add_row("of them hash-routed", str(counted.hash_layers), "")
    shown.add_row("MTP block", str(config.num_nextn_predict_layers), "")
    return shown


def _parameters(counted: Count) -> Table:
    shown = table("parameters", "part", "count", "share")
    for part, size in counted.parts.items():
        shown.add_row(part, f"{size:,}", f"{size / counted.total:.2%}")
    shown.add_section()
    shown.add_row("total", f"{counted.total:,}", billions(counted.total), style="bold")
    shown.add_row("active per token", f"{counted.active:,}", billions(counted.active), style="bold")
    if counted.total_with_mtp > counted.total:
        shown.add_row("total with MTP", f"{counted.total_with_mtp:,}", billions(counted.total_with_mtp))
    return shown


def _checkpoints(counted: Count) -> Table:
    shown = table("checkpoint, MTP block included", "precision", "bytes", "")
    for precision in counted.cache:
        size = counted.checkpoint_bytes.get(precision)
        if size is None:
            shown.add_row(precision, "-", "its blocks do not fit these sizes")
        else:
            shown.add_row(precision, f"{size:,}", short(size))
    return shown


def _caches(config: ModelConfig, counted: Count) -> Table:
    contexts = [tokens for tokens in _CONTEXTS if tokens <= config.max_position_embeddings]
    named = [f"at {tokens // 1024}K" for tokens in contexts]
    shown = table("cache of one request", "precision", "bytes per token", "+ fixed", *named)
    for precision, cache in counted.cache.items():
        total = (short(cache.at(tokens)) for tokens in contexts)
        shown.add_row(precision, f"{float(cache.per_token):,.0f}", short(cache.fixed), *total)
    return shown


def billions(parameters: int) -> str:
    """A count of parameters as the field writes it: 284.33B, or millions below one billion."""
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.2f}M"


def short(size: float) -> str:
    """Bytes in the largest decimal unit that they reach."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size:.0f} B"


def _as_json(config: ModelConfig, counted: Count) -> dict[str, Any]:
    return {
        "config": config.to_dict(),
        "layers": {str(kind): layers for kind, layers in counted.layers.items()},
        "hash_layers": counted.hash_layers,
        "parameters": {
            "parts": counted.parts,
            "total": counted.total,
            "active": counted.active,
            "total_with_mtp": counted.total_with_mtp,
        },
        "checkpoint_bytes": {str(precision): size for precision, size in counted.checkpoint_bytes.items()},
        "cache_bytes": {
            str(precision): {"per_token": float(cache.per_token), "fixed": cache.fixed}
            for precision, cache in counted.cache.items()
        },
    }
