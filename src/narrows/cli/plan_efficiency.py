"""`narrows plan efficiency`: what a token costs against the context, beside a predecessor's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from narrows.cli.configs import config_of
from narrows.cli.plan_shared import LETTERS, JsonOption

if TYPE_CHECKING:
    from rich.table import Table

    from narrows.economics.work import AnyConfig, Product


def efficiency(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Presets, folders or config.json. [default: both published V4 models]"),
    ] = None,
    against: Annotated[str, typer.Option(metavar="MODEL", help="What they are compared with.")] = "deepseek-v3.2",
    context: Annotated[str, typer.Option(metavar="N", help="The longest context: tokens, or 128K, 1M.")] = "1M",
    explain: Annotated[
        bool, typer.Option("--explain", help="Also show where every operation at the longest context comes from.")
    ] = False,
    as_json: JsonOption = False,
    plot: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", readable=False, help="Draw both curves: PNG, SVG or PDF; may be repeated."),
    ] = None,
) -> None:
    """Operations a decoded token and bytes of history against the context, beside a predecessor's.

    Operations are equivalents of FP8: one in BF16 counts twice, one in FP4 half.
    """
    from narrows.cli.output import aside
    from narrows.cli.tables import print_tables
    from narrows.economics.efficiency import contexts_up_to, curve
    from narrows.economics.picture import check_picture
    from narrows.economics.plot import plot_efficiency
    from narrows.economics.units import tokens
    from narrows.economics.work import decode_work

    most = tokens(context, "--context")
    for file in plot or []:
        check_picture(file)
    names = dict.fromkeys([against, *(models or ["deepseek-v4-pro", "deepseek-v4-flash"])])
    configs = {name: config_of(name) for name in names}
    contexts = contexts_up_to(most)
    curves = {name: curve(config, contexts) for name, config in configs.items()}
    works = {name: decode_work(config, most) for name, config in configs.items()}
    if as_json:
        told: dict[str, Any] = {
            name: [
                {"context": cost.context, "fp8_equivalent_flops": float(cost.flops), "history_bytes": cost.bytes}
                for cost in costs
            ]
            for name, costs in curves.items()
        }
        explained = {name: [*_lines(configs[name], most, work)] for name, work in works.items()}
        print(
            json.dumps({"against": against, "models": told} | ({"explained": explained} if explain else {}), indent=2)
        )
    else:
        print_tables(
            _compared("GFLOPs a token (FP8-equivalent)", against, curves, lambda cost: float(cost.flops) / 1e9),
            _compared("GB of history", against, curves, lambda cost: cost.bytes / 1e9),
            *([_explained(name, most, work) for name, work in works.items()] if explain else []),
            *([_kept(name, config, most) for name, config in configs.items()] if explain else []),
        )
        if explain:
            aside(LETTERS)
    for file in plot or []:
        dense = contexts_up_to(most, least=1024, each=8)
        plot_efficiency({name: curve(config, dense) for name, config in configs.items()}, file)
        aside(f"{file}: drawn, both against the context")


def _compared(title: str, against: str, curves: Any, of: Any) -> Table:
    from narrows.cli.tables import table

    others = [name for name in curves if name != against]
    shares = [column for name in others for column in (name, "share")]
    made = table(title, "context", against, *shares, left=0)
    for place, base in enumerate(curves[against]):
        cells = [cell for name in others for cell in _beside(of(curves[name][place]), of(base))]
        made.add_row(f"{base.context:,}", _short(of(base)), *cells)
    return made


def _beside(value: float, base: float) -> tuple[str, str]:
    return _short(value), f"{value / base:.1%}"


def _short(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:,.3g}"


def _explained(name: str, context: int, work: Any) -> Table:
    from narrows.cli.tables import table

    title = f"{name}: one token behind {context - 1:,} others"
    made = table(title, "component", "product", "GFLOPs", "in", "GFLOPs as FP8", "multiply-adds", left=2)
    for product in work:
        made.add_row(
            product.component,
            product.name,
            f"{product.flops / 1e9:,.4g}",
            product.kind,
            f"{float(product.equivalent) / 1e9:,.4g}",
            product.terms,
        )
    return made


def _kept(name: str, config: AnyConfig, context: int) -> Table:
    from narrows.cli.tables import table
    from narrows.economics.storage import kept

    made = table(f"{name}: what is kept of {context:,} tokens", "part", "GB", "terms", left=1)
    made.columns[-1].justify = "left"
    for part in kept(config, context):
        made.add_row(part.component, f"{part.bytes / 1e9:,.4g}", part.terms)
    return made


def _lines(config: AnyConfig, context: int, work: Iterable[Product]) -> Iterator[dict[str, Any]]:
    """The same for programs."""
    from narrows.economics.storage import kept

    for product in work:
        place = {"component": product.component, "product": product.name}
        yield place | {"flops": product.flops, "in": product.kind, "terms": product.terms}
    for part in kept(config, context):
        yield {"component": part.component, "bytes": part.bytes, "terms": part.terms}
