"""Requests: one row each, reserved at its worst case, and settled or released at its end.

All that changes a key's money locks the key first, so that what is read here holds until the transaction ends.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Executable, RowMapping, bindparam, select

from narrows.economics.money import shown
from narrows.economics.prices import Tier, Tokens
from narrows.errors import NarrowsError, UsageError
from narrows.ledger.checks import LARGEST, check_count, check_money, check_seconds, check_text
from narrows.ledger.errors import AlreadyDone, OverBudget, StillRunning
from narrows.ledger.keys import Key, find_key, unknown
from narrows.ledger.tables import requests, spending

# Statements that every request needs, made once: to make them takes longer than to run them.
_named = requests.c.id == bindparam("id_")
_of_month = (spending.c.key_id == bindparam("key_id_")) & (spending.c.month == bindparam("month_"))
_FIND = select(requests).where(_named)
_FIND_OF_KEY = select(requests).where(_named & (requests.c.key_id == bindparam("key_id_")))
_FIND_HELD = select(requests).where(
    (requests.c.key_id == bindparam("key_id_"))
    & (requests.c.idempotency == bindparam("idempotency_"))
    & (requests.c.state != "released")
)
_INSERT = requests.insert()
_CHANGE = requests.update().where(_named)
_SPENT = select(spending.c.settled, spending.c.reserved).where(_of_month)
_INSERT_SPENT = spending.insert()
_CHANGE_SPENT = spending.update().where(_of_month)

State = Literal["open", "settled", "released"]

Outcome = Literal["done", "cut", "cancelled", "error", "lost"]
"""done: all was sent. cut: the stream ended early. cancelled: the client left. error: we failed. lost: the server was
killed while the request ran."""


@dataclass(frozen=True)
class Order:
    """What a request asks for. `worst_case` is picodollars; `fingerprint` stands for all that an idempotency key must
    not be used with twice, such as a hash of the body."""

    request_id: str
    model: str
    endpoint: str
    worst_case: int
    protocol: str = "openai"
    tier: Tier = "default"
    idempotency: str | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        """UsageError, naming the field, for what no column holds."""
        for field, most in (("request_id", 200), ("model", 200), ("endpoint", 200), ("protocol", 32)):
            check_text(field, getattr(self, field), most)
        for field, name in (("idempotency", "the idempotency key"), ("fingerprint", "the fingerprint")):
            if getattr(self, field) is not None:
                check_text(name, getattr(self, field), 255)
        if self.tier not in get_args(Tier):
            raise UsageError(f"tier is {self.tier!r}; choose {' or '.join(get_args(Tier))}.")
        check_money("worst_case", self.worst_case)


@dataclass(frozen=True)
class Reservation:
    """Money set aside for a request until it is settled or released."""

    request_id: str
    key_id: str
    worst_case: int


@dataclass(frozen=True)
class Usage:
    """What a request took, at its end. `cost` is picodollars; `reasoning` tokens are among `tokens.output`; seconds are
    since it came in, of a clock that never jumps."""

    tokens: Tokens
    cost: int
    reasoning: int = 0
    outcome: Literal["done", "cut", "cancelled", "error"] = "done"
    first_token_seconds: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        """UsageError, naming the field, for what no column holds."""
        check_money("cost", self.cost)
        check_count("reasoning", self.reasoning, most=self.tokens.output)
        for field in ("hit", "miss", "output"):
            check_count(f"{field} tokens", getattr(self.tokens, field))
        for field in ("first_token_seconds", "seconds"):
            check_seconds(field, getattr(self, field))
        if self.outcome not in get_args(Outcome):
            raise UsageError(f"outcome is {self.outcome!r}; choose from {', '.join(get_args(Outcome))}.")


@dataclass(frozen=True)
class Row:
    """A request as it is stored; `cost` and `reserved` are picodollars. `day` (UTC) is that of `started`, and its month
    is the one that pays."""

    id: str
    key_id: str
    model: str
    endpoint: str
    protocol: str
    tier: Tier
    state: State
    outcome: Outcome | None
    hit: int
    miss: int
    output: int
    reasoning: int
    cost: int
    reserved: int
    started: datetime
    ended: datetime | None
    day: date
    first_token_seconds: float | None
    seconds: float | None
    idempotency: str | None
    fingerprint: str | None
    instance: str

    @property
    def reservation(self) -> Reservation:
        """With which it is settled or released."""
        return Reservation(self.id, self.key_id, self.reserved)


@dataclass(frozen=True)
class Spending:
    """A key's month: picodollars charged, and those that requests under way may still take."""

    month: date
    settled: int = 0
    reserved: int = 0


def reserve(connection: Connection, now: datetime, key_id: str, order: Order, instance: str) -> Reservation:
    """An open row for the order, if the key's month has room for its worst case. Errors as Ledger.reserve."""
    key = _locked(connection, key_id)
    if order.idempotency is not None:
        _check_first(connection, key_id, order.idempotency, order.fingerprint)
    key.check(now)
    if find_request(connection, order.request_id) is not None:
        raise UsageError(f"there is a request {order.request_id} already; give every request an id of its own.")
    day = now.astimezone(UTC).date()
    _spend(connection, key, day, reserved=order.worst_case)
    values = asdict(order) | {"id": order.request_id, "reserved": order.worst_case, "key_id": key_id}
    del values["request_id"], values["worst_case"]
    counts = dict.fromkeys(("hit", "miss", "output", "reasoning", "cost"), 0)
    new = {"state": "open", "started": now, "day": day, "instance": instance}
    connection.execute(_INSERT, values | counts | new)
    return Reservation(order.request_id, key_id, order.worst_case)


def settle(connection: Connection, now: datetime, reservation: Reservation, usage: Usage) -> Row:
    """The row, charged. Errors as Ledger.settle."""
    key = _locked(connection, reservation.key_id)
    row = _known(connection, reservation)
    if row.state == "settled":
        return row
    if usage.cost > row.reserved:
        raise NarrowsError(
            f"request {row.id} would cost {shown(usage.cost)}, more than the {shown(row.reserved)} that it reserved as "
            "its worst case; reserve enough."
        )
    if row.state == "released" and row.idempotency is not None:  # its server was thought gone, and it was tried again
        _check_first(connection, row.key_id, row.idempotency, row.fingerprint)
    held = row.reserved if row.state == "open" else 0
    _spend(connection, key, row.day, settled=usage.cost, reserved=-held)
    values = asdict(usage) | asdict(usage.tokens) | {"state": "settled", "ended": now}
    del values["tokens"]
    connection.execute(_CHANGE, {"id_": row.id, **values})
    return _known(connection, reservation)


def release(connection: Connection, now: datetime, reservation: Reservation, outcome: Outcome) -> Row:
    """The row, not charged unless it was before."""
    key = _locked(connection, reservation.key_id)
    row = _known(connection, reservation)
    if row.state == "open":
        _spend(connection, key, row.day, reserved=-row.reserved)
        connection.execute(_CHANGE, {"id_": row.id, "state": "released", "outcome": outcome, "ended": now})
    return _known(connection, reservation)


def open_requests(connection: Connection) -> list[Row]:
    """All that have not ended, in the order in which their keys are to be locked."""
    query = select(requests).where(requests.c.state == "open").order_by(requests.c.key_id, requests.c.id)
    return [_row(found) for found in connection.execute(query).mappings()]


def list_requests(
    connection: Connection,
    key_id: str | None,
    since: date | None,
    until: date | None,
    limit: int,
    before: Row | None,
) -> list[Row]:
    """The latest first; `before`: those that come behind this one."""
    started, name = requests.c.started, requests.c.id
    query = select(requests).order_by(started.desc(), name.desc()).limit(limit)
    if key_id is not None:
        query = query.where(requests.c.key_id == key_id)
    if since is not None:
        query = query.where(requests.c.day >= since)
    if until is not None:
        query = query.where(requests.c.day <= until)
    if before is not None:
        query = query.where((started < before.started) | ((started == before.started) & (name < before.id)))
    return [_row(found) for found in connection.execute(query).mappings()]


def find_request(connection: Connection, request_id: str) -> Row | None:
    """The row of this id."""
    return _one(connection, _FIND, id_=request_id)


def spendings(connection: Connection, month: date) -> dict[str, Spending]:
    """Of that month, by key; keys that spent nothing may be absent."""
    found = connection.execute(select(spending).where(spending.c.month == month)).mappings()
    return {row["key_id"]: Spending(month, row["settled"], row["reserved"]) for row in found}


def month_of(day: date) -> date:
    """Its first day."""
    return day.replace(day=1)


def _locked(connection: Connection, key_id: str) -> Key:
    key = find_key(connection, key_id, lock=True)
    if key is None:
        raise unknown(key_id)
    return key


def _known(connection: Connection, reservation: Reservation) -> Row:
    row = _one(connection, _FIND_OF_KEY, id_=reservation.request_id, key_id_=reservation.key_id)
    if row is None:
        raise UsageError(f"the ledger has no request {reservation.request_id} of this key; reserve before settling.")
    return row


def _check_first(connection: Connection, key_id: str, idempotency: str, fingerprint: str | None) -> None:
    """AlreadyDone or StillRunning where a request of this idempotency key was charged or may be."""
    row = _one(connection, _FIND_HELD, key_id_=key_id, idempotency_=idempotency)
    if row is None:
        return
    if row.fingerprint != fingerprint:
        raise UsageError(
            f"the idempotency key {idempotency!r} was used for another request; take a new one for each request."
        )
    raise StillRunning(row) if row.state == "open" else AlreadyDone(row)


def _spend(connection: Connection, key: Key, day: date, settled: int = 0, reserved: int = 0) -> None:
    """Add to what the key's month has charged and reserved. OverBudget where the sum grows beyond the budget."""
    month = month_of(day)
    here = {"key_id_": key.id, "month_": month}
    found = connection.execute(_SPENT, here).one_or_none()
    before = Spending(month, *found) if found else Spending(month)
    after = Spending(month, before.settled + settled, before.reserved + reserved)
    limit = LARGEST if key.budget is None else key.budget
    if settled + reserved > 0 and after.settled + after.reserved > limit:
        following = date(month.year + month.month // 12, month.month % 12 + 1, 1)
        raise OverBudget(
            f"the API key {key.id}… has {shown(limit)} a month, of which {shown(before.settled)} is spent and "
            f"{shown(before.reserved)} reserved by requests under way; this one may cost {shown(settled + reserved)}. "
            f"Ask for fewer tokens, wait until {following}, or have the budget raised."
        )
    assert after.settled >= 0
    assert after.reserved >= 0
    values = {"settled": after.settled, "reserved": after.reserved}
    if found:
        connection.execute(_CHANGE_SPENT, here | values)
    else:
        connection.execute(_INSERT_SPENT, {"key_id": key.id, "month": month, **values})


def _one(connection: Connection, query: Executable, **values: str) -> Row | None:
    found = connection.execute(query, values).mappings().one_or_none()
    return None if found is None else _row(found)


def _row(found: RowMapping) -> Row:
    values: dict[str, Any] = dict(found)
    return Row(**values)
