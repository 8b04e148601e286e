"""`narrows keys`: who may use the server."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from narrows.cli.options import LedgerOption, help_without_command
from narrows.errors import UsageError

if TYPE_CHECKING:
    from narrows.ledger.keys import Key

keys = typer.Typer(help="Make, list, change and revoke the API keys of the server.", rich_markup_mode=None)


@keys.callback(invoke_without_command=True)
def _keys(context: typer.Context) -> None:
    """Make, list, change and revoke the API keys of the server."""
    help_without_command(context)


@keys.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is; shown in lists.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCOPE", help="inference, metrics or admin; may be given several times. [default: inference]"
        ),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help="A date (UTC) such as 2027-01-31, or from now: 12h, 30d.")
    ] = None,
    most: Annotated[
        str | None, typer.Option("--budget", metavar="DOLLARS", help="The most to spend in a calendar month (UTC).")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(metavar="N", help="The most requests in a minute.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(metavar="N", help="The most tokens in a minute.")] = None,
    concurrency: Annotated[int | None, typer.Option(metavar="N", help="The most requests at once.")] = None,
    ledger: LedgerOption = None,
) -> None:
    """Make a key. Its secret is printed once, alone on standard output, and kept nowhere."""
    from narrows.cli.output import aside
    from narrows.economics.money import picodollars, shown
    from narrows.ledger.ledger import Ledger

    until = _moment(expires) if expires is not None else None
    limit = picodollars(most, "the budget") if most is not None else None
    with Ledger.open(ledger) as opened:
        key, secret = opened.create_key(
            name,
            scopes=scope or ["inference"],  # type: ignore[arg-type]  # checked there
            expires=until,
            budget=limit,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            concurrency=concurrency,
        )
        print(secret)
        limits = f", {shown(key.budget)} a month" if key.budget is not None else ""
        ends = f", until {key.expires:%Y-%m-%d %H:%M} UTC" if key.expires else ""
        aside(
            f"key {key.id} for {key.name}: {' and '.join(key.scopes)}{limits}{ends}, in {opened.where}. Copy its "
            "secret now: it is not shown again."
        )


@keys.command(name="list")
def list_keys(ledger: LedgerOption = None) -> None:
    """List all keys with what they may spend and have spent this month; secrets are not stored."""
    from narrows.cli.output import aside
    from narrows.cli.tables import print_tables, table
    from narrows.economics.money import shown
    from narrows.ledger.ledger import Ledger
    from narrows.ledger.requests import Spending

    now = datetime.now(UTC)
    with Ledger.open(ledger, create=False) as opened:
        found, spent = opened.keys(), opened.spending()
        where = opened.where
    if not found:
        aside(f"{where} has no keys; narrows keys create NAME makes one.")
        return
    columns = ("id", "name", "state", "scopes", "created", "expires")
    limits = ("requests/min", "tokens/min", "at once")
    money = ("budget a month", "spent", "reserved")
    made = table("keys", *columns, *limits, *money, left=len(columns))
    for key in found:
        month = spent.get(key.id, Spending(now.date()))
        made.add_row(
            key.id,
            key.name,
            key.state(now),
            " ".join(key.scopes),
            f"{key.created:%Y-%m-%d}",
            f"{key.expires:%Y-%m-%d %H:%M}" if key.expires else "-",
            *("-" if most is None else f"{most:,}" for most in _limits(key)),
            "-" if key.budget is None else shown(key.budget),
            shown(month.settled),
            shown(month.reserved),
        )
    print_tables(made)


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As narrows keys list shows it.")],
    ledger: LedgerOption = None,
) -> None:
    """Refuse a key from now on. What it has used stays in the ledger."""
    from narrows.ledger.ledger import Ledger

    with Ledger.open(ledger, create=False) as opened:
        key = opened.revoke(key_id)
    print(f"key {key.id} for {key.name} is revoked since {key.revoked:%Y-%m-%d %H:%M} UTC")


@keys.command()
def budget(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As narrows keys list shows it.")],
    amount: Annotated[str, typer.Argument(metavar="DOLLARS", help="The most to spend in a calendar month, or none.")],
    ledger: LedgerOption = None,
) -> None:
    """Give a key another budget, which holds for this month already."""
    from narrows.economics.money import picodollars, shown
    from narrows.ledger.ledger import Ledger

    most = None if amount == "none" else picodollars(amount, "the budget")
    with Ledger.open(ledger, create=False) as opened:
        key = opened.set_budget(key_id, most)
    print(f"key {key.id} for {key.name} may spend {'any amount' if key.budget is None else shown(key.budget)} a month")


def _limits(key: Key) -> tuple[int | None, int | None, int | None]:
    return key.requests_per_minute, key.tokens_per_minute, key.concurrency


def _moment(text: str) -> datetime:
    """A date's beginning, or so long from now. UsageError for neither."""
    if found := re.fullmatch(r"(\d{1,5})([hd])", text):
        return datetime.now(UTC) + timedelta(hours=int(found[1]) * (24 if found[2] == "d" else 1))
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise UsageError(f"--expires is {text!r}; give a date such as 2027-01-31, or 12h or 30d from now.") from None
