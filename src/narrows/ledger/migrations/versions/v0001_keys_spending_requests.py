"""The first tables: keys, spending, requests."""

import sqlalchemy as sa
from alembic import op

from narrows.ledger.tables import Moment

revision = "0001"
down_revision = None


def upgrade() -> None:
    """From an empty database."""
    op.create_table(
        "ledger_keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("scopes", sa.String(200), nullable=False),
        sa.Column("created", Moment, nullable=False),
        sa.Column("expires", Moment),
        sa.Column("revoked", Moment),
        sa.Column("budget", sa.BigInteger),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("tokens_per_minute", sa.BigInteger),
        sa.Column("concurrency", sa.Integer),
    )
    op.create_table(
        "ledger_spending",
        sa.Column("key_id", sa.String(32), sa.ForeignKey("ledger_keys.id"), primary_key=True),
        sa.Column("month", sa.Date, primary_key=True),
        sa.Column("settled", sa.BigInteger, nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "ledger_requests",
        sa.Column("id", sa.String(200), primary_key=True),
        sa.Column("key_id", sa.String(32), sa.ForeignKey("ledger_keys.id"), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("endpoint", sa.String(200), nullable=False),
        sa.Column("protocol", sa.String(32), nullable=False),
        sa.Column("tier", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("outcome", sa.String(16)),
        sa.Column("hit", sa.BigInteger, nullable=False),
        sa.Column("miss", sa.BigInteger, nullable=False),
        sa.Column("output", sa.BigInteger, nullable=False),
        sa.Column("reasoning", sa.BigInteger, nullable=False),
        sa.Column("cost", sa.BigInteger, nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False),
        sa.Column("started", Moment, nullable=False),
        sa.Column("ended", Moment),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("first_token_seconds", sa.Float),
        sa.Column("seconds", sa.Float),
        sa.Column("idempotency", sa.String(255)),
        sa.Column("fingerprint", sa.String(255)),
        sa.Column("instance", sa.String(32), nullable=False),
    )
    is_open, held = sa.text("state = 'open'"), sa.text("state <> 'released'")
    op.create_index("ledger_requests_by_day", "ledger_requests", ["day", "key_id"])
    op.create_index("ledger_requests_by_key", "ledger_requests", ["key_id", "started"])
    op.create_index(
        "ledger_requests_open", "ledger_requests", ["instance"], sqlite_where=is_open, postgresql_where=is_open
    )
    op.create_index(
        "ledger_requests_once",
        "ledger_requests",
        ["key_id", "idempotency"],
        unique=True,
        sqlite_where=held,
        postgresql_where=held,
    )
