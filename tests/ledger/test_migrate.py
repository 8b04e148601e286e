"""Migrations make the tables that the code works with, from nothing, once, whoever else is at it."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

import narrows.ledger.migrate
from narrows.errors import NarrowsError
from narrows.ledger.database import Database
from narrows.ledger.ledger import Ledger
from narrows.ledger.tables import REVISION, VERSION_TABLE, metadata
from tests.ledger import worker


def test_the_tables_are_those_of_the_code(url: str) -> None:
    for _ in range(2):
        Ledger.open(url).close()
    database = Database(url, 5)
    with database.reading() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "compare_type": True, "compare_server_default": True}
        )
        assert context.get_current_heads() == (REVISION,)
        assert compare_metadata(context, metadata) == []
    database.close()


def test_the_code_knows_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(narrows.ledger.migrate.__file__).with_name("migrations")))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [REVISION]


def test_a_second_opening_keeps_what_is_there(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(url) as ledger:
        key, _ = ledger.create_key("one")
    monkeypatch.setattr("narrows.ledger.migrate._upgrade", lambda *_: pytest.fail("a migration ran twice"))
    with Ledger.open(url) as ledger:
        assert ledger.keys() == [key]


def test_many_processes_open_a_new_database_at_once(url: str) -> None:
    started = [worker.start(worker.only_open, url) for _ in range(6)]
    said = [worker.lines(reader) for _, reader in started]
    for process, _ in started:
        process.join()
    assert said == [[["keys", "0"]]] * 6
    assert {process.exitcode for process, _ in started} == {0}


def test_a_database_of_a_newer_version_is_left_alone(url: str) -> None:
    Ledger.open(url).close()
    database = Database(url, 5)
    with database.writing() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    database.close()
    with pytest.raises(NarrowsError, match="was written by a newer version of narrows; install that"):
        Ledger.open(url)
