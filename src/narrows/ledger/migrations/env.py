"""Alembic runs the migrations from here, on the connection and in the transaction that `migrate` hands over."""

from alembic import context

from narrows.ledger.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
