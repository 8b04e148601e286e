"""Keys, usage and prices over HTTP: one's own to everybody, all of them to whoever has the scope "admin"."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import UTC, date, datetime
from fractions import Fraction
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request
from pydantic import AwareDatetime, BeforeValidator, Field

from narrows.economics.money import picodollars, plain
from narrows.economics.overview import MOST_CONTEXT, MOST_TOKENS, overview
from narrows.errors import NarrowsError
from narrows.ledger.errors import UnknownKey
from narrows.ledger.keys import Key, Scope
from narrows.ledger.requests import Row, Spending, month_of
from narrows.ledger.usage import Group, Sum, total
from narrows.server.body import Body, Route, Short
from narrows.server.errors import ApiError
from narrows.server.ledger_accounts import KeyAccount, LedgerAccounts, refuse
from narrows.server.schema import body_errors, errors
from narrows.server.service import Service
from narrows.server.visit import Visit

_Got = TypeVar("_Got")

_Limit = Annotated[int, Field(ge=1, lt=2**31)]
# Of a row, what nobody outside needs, and what is told under another name.
_INNER = {"key_id", "fingerprint", "instance", "reserved", "day"}
_LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrency")


def _day(given: str) -> date:
    """A day as it is written: pydantic reads numbers as well, as seconds since 1970."""
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", given):
        raise ValueError("a day is written YYYY-MM-DD")
    return date.fromisoformat(given)


def _moment(given: Any) -> datetime:
    """The same of a time."""
    if not isinstance(given, str):
        raise ValueError("a time is text such as 2030-01-31T12:00:00Z")
    return datetime.fromisoformat(given)


_Day = Annotated[date, BeforeValidator(_day)]
_Moment = Annotated[AwareDatetime, BeforeValidator(_moment)]


class NewKey(Body):
    """POST /api/keys. `budget`: dollars a calendar month, as text."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    scopes: Annotated[list[Scope], Field(min_length=1)] = Field(default=["inference"])
    expires: _Moment | None = None
    budget: Short | None = None
    requests_per_minute: _Limit | None = None
    tokens_per_minute: _Limit | None = None
    concurrency: _Limit | None = None


class ChangedKey(Body):
    """PATCH /api/keys/ID. `budget`: dollars a calendar month, as text; null for no limit."""

    budget: Short | None


def router(accounts: LedgerAccounts) -> APIRouter:
    """The routes over this ledger. What they do is short, and done in threads."""
    routes = APIRouter(prefix="/api", tags=["Administration"], route_class=Route)
    ledger = accounts.ledger

    @routes.get("/prices", responses=errors())
    def prices() -> dict[str, Any]:
        """What models cost today, here and elsewhere: picodollars for a token of each kind."""
        return accounts.tariff.told(accounts.today())

    @routes.get("/plan", responses=errors(400))
    def plan(
        context: Annotated[int, Query(ge=1, le=MOST_CONTEXT)] = MOST_CONTEXT,
        cached: Annotated[float, Query(ge=0, le=1)] = 0.5,
        tokens: Annotated[int, Query(ge=1, le=MOST_TOKENS)] = 100_000_000,
        written: Annotated[float, Query(ge=0, le=1)] = 0.1,
    ) -> dict[str, Any]:
        """What tokens of such a context take of the published models, and what so many a month cost at the prices of
        today: the share `written` of them written and, of the others, the share `cached` known."""
        book, today = accounts.tariff.book, accounts.today()
        parts = {"cached": Fraction(str(cached)), "written": Fraction(str(written))}
        return overview(book, today, context=context, tokens=tokens, **parts)

    @routes.get("/key", responses=errors())
    def own_key(request: Request) -> dict[str, Any]:
        """The key that asks, and its month."""
        key = _owner(request).key
        spent = _from(ledger.spending)
        return _told(key, spent, accounts.today())

    @routes.get("/usage", responses=errors(400, 403))
    def usage(
        request: Request,
        by: Annotated[Sequence[Group], Query()] = ("key",),
        since: Annotated[_Day | None, Query(alias="from")] = None,
        until: Annotated[_Day | None, Query(alias="to")] = None,
        key: Annotated[str | None, Query(max_length=64)] = None,
    ) -> dict[str, Any]:
        """Sums over requests that have ended, by any of key, model and day (UTC), both days included."""
        groups = tuple(dict.fromkeys(by))
        rows = _from(lambda: ledger.usage(groups, since=since, until=until, key_id=_whose(request, key)))
        return {"by": groups, "rows": [_sum(row, groups) for row in rows], "total": _sum(total(rows), ())}

    @routes.get("/requests", responses=errors(400, 403))
    def requests(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        since: Annotated[_Day | None, Query(alias="from")] = None,
        until: Annotated[_Day | None, Query(alias="to")] = None,
        key: Annotated[str | None, Query(max_length=64)] = None,
    ) -> dict[str, Any]:
        """The latest requests, those under way too."""
        whose = _whose(request, key)
        rows = _from(lambda: ledger.requests(key_id=whose, since=since, until=until, limit=limit))
        return {"rows": [_row(row) for row in rows]}

    @routes.get("/keys", responses=errors(403))
    def keys(request: Request) -> dict[str, Any]:
        """All keys that were ever made, oldest first."""
        _check_admin(request)
        spent = _from(ledger.spending)
        return {"keys": [_told(key, spent, accounts.today()) for key in _from(ledger.keys)]}

    @routes.post("/keys", status_code=201, responses=body_errors(403))
    def create(request: Request, body: NewKey) -> dict[str, Any]:
        """Make a key. Its secret is in this answer and nowhere else."""
        _check_admin(request)
        limits = {name: getattr(body, name) for name in _LIMITS}
        key, secret = _from(
            lambda: ledger.create_key(
                body.name, scopes=body.scopes, expires=body.expires, budget=_amount(body.budget), **limits
            )
        )
        return {**_told(key, {}, accounts.today()), "secret": secret}

    @routes.patch("/keys/{key_id}", responses=body_errors(403, 404))
    def change(request: Request, key_id: str, body: ChangedKey) -> dict[str, Any]:
        """Give a key another budget, which holds for this month already."""
        _check_admin(request)
        key = _from(lambda: ledger.set_budget(key_id, _amount(body.budget)))
        return _told(key, _from(ledger.spending), accounts.today())

    @routes.delete("/keys/{key_id}", responses=errors(403, 404))
    def revoke(request: Request, key_id: str) -> dict[str, Any]:
        """Refuse a key from now on; what it has used stays."""
        _check_admin(request)
        key = _from(lambda: ledger.revoke(key_id))
        return _told(key, _from(ledger.spending), accounts.today())

    return routes


def _owner(request: Request) -> KeyAccount:
    owner = Visit.of(request.scope).owner
    assert isinstance(owner, KeyAccount)
    return owner


def _check_admin(request: Request) -> None:
    Service.of(request).check_scope(request, "admin")


def _whose(request: Request, key_id: str | None) -> str | None:
    """Of whose requests is told: one's own, or with the scope "admin" those of any key or of all."""
    owner = _owner(request)
    if owner.may("admin"):
        return key_id
    if key_id not in (None, owner.id):
        raise ApiError(403, "this key sees its own usage alone; use one with the scope 'admin' for that of others.")
    return owner.id


def _from(ask: Callable[[], _Got]) -> _Got:
    """What the ledger answers, or says is wrong."""
    try:
        return ask()
    except UnknownKey as error:
        raise ApiError(404, str(error)) from None
    except NarrowsError as error:
        refuse(error)


def _amount(dollars: str | None) -> int | None:
    return None if dollars is None else picodollars(dollars, "budget")


def _told(key: Key, spent: dict[str, Spending], today: date) -> dict[str, Any]:
    month = spent.get(key.id, Spending(month_of(today)))
    return {
        "id": key.id,
        "name": key.name,
        "scopes": key.scopes,
        "state": key.state(datetime.now(UTC)),
        "created": key.created,
        "expires": key.expires,
        "budget": None if key.budget is None else plain(key.budget),
        "month": month.month,
        "spent": plain(month.settled),
        "reserved": plain(month.reserved),
        **{name: getattr(key, name) for name in _LIMITS},
    }


def _sum(row: Sum, groups: Sequence[Group]) -> dict[str, Any]:
    named: dict[str, dict[str, Any]] = {
        "key": {"key": row.key_id, "name": row.key_name},
        "model": {"model": row.model},
        "day": {"day": row.day},
    }
    told: dict[str, Any] = {}
    for group in groups:
        told |= named[group]
    counts = ("requests", "hit", "miss", "output", "reasoning")
    return told | {name: getattr(row, name) for name in counts} | {"cost": plain(row.cost)}


def _row(row: Row) -> dict[str, Any]:
    told = {field.name: getattr(row, field.name) for field in fields(row) if field.name not in _INNER}
    return told | {"key": row.key_id, "cost": plain(row.cost)}
