"""The ledger's tables. Money is whole picodollars, times are UTC; `migrations/` makes them what they are here."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Date,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    TypeDecorator,
    text,
)

REVISION = "0001"
"""The newest of the migrations, whose tables these are."""

VERSION_TABLE = "ledger_version"


class Moment(TypeDecorator[datetime]):
    """A time with its zone, UTC; SQLite, which knows no zones, keeps it without."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return dialect.type_descriptor(DateTime(timezone=dialect.name != "sqlite"))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData()

keys = Table(
    "ledger_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("digest", LargeBinary, nullable=False),  # SHA-256 of the secret
    Column("scopes", String(200), nullable=False),  # words with spaces between them
    Column("created", Moment, nullable=False),
    Column("expires", Moment),
    Column("revoked", Moment),
    Column("budget", BigInteger),  # a calendar month's
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", BigInteger),
    Column("concurrency", Integer),
)

# What a key's requests of a month have cost, and what those under way may cost: the sums of the rows in `requests`,
# kept beside them because a reservation must not read a month of rows.
spending = Table(
    "ledger_spending",
    metadata,
    Column("key_id", String(32), ForeignKey("ledger_keys.id"), primary_key=True),
    Column("month", Date, primary_key=True),  # its first day
    Column("settled", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
)

requests = Table(
    "ledger_requests",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("key_id", String(32), ForeignKey("ledger_keys.id"), nullable=False),
    Column("model", String(200), nullable=False),
    Column("endpoint", String(200), nullable=False),
    Column("protocol", String(32), nullable=False),
    Column("tier", String(32), nullable=False),
    Column("state", String(16), nullable=False),  # open, settled (charged) or released (not charged)
    Column("outcome", String(16)),
    Column("hit", BigInteger, nullable=False),
    Column("miss", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("reasoning", BigInteger, nullable=False),
    Column("cost", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
    Column("started", Moment, nullable=False),
    Column("ended", Moment),
    Column("day", Date, nullable=False),  # of `started`, whose month it is charged to
    Column("first_token_seconds", Float),
    Column("seconds", Float),
    Column("idempotency", String(255)),
    Column("fingerprint", String(255)),  # of what was asked for under the idempotency key
    Column("instance", String(32), nullable=False),  # the server that has it
)

Index("ledger_requests_by_day", requests.c.day, requests.c.key_id)
Index("ledger_requests_by_key", requests.c.key_id, requests.c.started)

_open = text("state = 'open'")
Index("ledger_requests_open", requests.c.instance, sqlite_where=_open, postgresql_where=_open)

# A request that was not charged leaves its idempotency key to the next attempt.
_held = text("state <> 'released'")
Index(
    "ledger_requests_once",
    requests.c.key_id,
    requests.c.idempotency,
    unique=True,
    sqlite_where=_held,
    postgresql_where=_held,
)
