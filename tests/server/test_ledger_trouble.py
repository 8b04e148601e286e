"""A ledger that fails beneath a server: the protocol's own error, and no request lost, charged twice or left open."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from sqlalchemy import event

from narrows.economics.money import picodollars, plain
from tests.server.scripted import ENDLESS, wait_for
from tests.server.test_accounts import HELLO, House, locked

UNAVAILABLE = "ledger cannot be used now, and nothing was charged; try again a little later."


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House(tmp_path).open() as house:
        yield house


@contextmanager
def full(house: House) -> Iterator[None]:
    """Not a page more than there are, which is what a full disk comes to."""
    pages = 1
    engine = house.ledger._database.engine

    def limit(connection: Any, _: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(engine, "connect", limit)
    engine.dispose()
    try:
        yield
    finally:
        event.remove(engine, "connect", limit)
        engine.dispose()


def settled(house: House) -> list[int]:
    """What the rows were charged, newest first; the sums of the ledger, in both ways, are theirs, and none is open."""
    rows = house.ledger.requests(limit=1000)
    assert {row.state for row in rows} <= {"settled", "released"}
    costs = [row.cost for row in rows if row.state == "settled"]
    assert sum(one.settled for one in house.ledger.spending().values()) == sum(costs)
    assert sum(one.reserved for one in house.ledger.spending().values()) == 0
    assert sum(one.cost for one in house.ledger.usage(("key",))) == sum(costs)
    return costs


def ask(house: House, secret: str, answers: list[Any], **options: Any) -> None:
    """Ask and note the cost that was told, or the refusal."""
    try:
        answer: Any = house.client(secret).chat.completions.create(**HELLO, **options)
        answers.append(picodollars(answer.usage.cost, "cost"))
    except openai.APIStatusError as error:
        answers.append(error)


def test_a_full_ledger_takes_no_requests_and_goes_on_when_there_is_room(house: House) -> None:
    secret = house.key()
    answers: list[Any] = []
    with full(house):
        for number in range(200):  # until the pages that there are have no room
            ask(house, secret, answers, extra_headers={"Idempotency-Key": f"{number} " + "k" * 200})
            if isinstance(answers[-1], Exception):
                break
        refused = answers.pop()
        assert isinstance(refused, openai.InternalServerError), "it never was full"
        assert refused.status_code == 503
        assert UNAVAILABLE in str(refused)
        client = anthropic.Anthropic(base_url=house.server.url, api_key=secret, max_retries=0)
        with pytest.raises(anthropic.APIStatusError, match="ledger cannot be used now") as told:
            client.messages.create(**HELLO, max_tokens=10, extra_headers={"Idempotency-Key": "k" * 255})
        assert told.value.status_code == 529
    ask(house, secret, answers)
    wait_for(lambda: all(row.state != "open" for row in house.ledger.requests(limit=1000)))
    assert settled(house) == answers[::-1]


def test_what_was_told_is_charged_once_while_the_ledger_comes_and_goes(house: House) -> None:
    secret, answers, over = house.key(), [], threading.Event()

    def ask_on(client: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            ask(house, secret, answers, extra_headers={"Idempotency-Key": f"{client}-{number}"})

    clients = [threading.Thread(target=ask_on, args=[number]) for number in range(4)]
    for client in clients:
        client.start()
    for _ in range(3):
        with locked(house.file):
            refusals = sum(isinstance(one, Exception) for one in answers)
            wait_for(lambda: sum(isinstance(one, Exception) for one in answers) > refusals)  # noqa: B023
        told = len(answers)
        wait_for(lambda: any(isinstance(one, int) for one in answers[told:]))  # noqa: B023
    over.set()
    for client in clients:
        client.join()
    wait_for(lambda: all(row.state != "open" for row in house.ledger.requests(limit=1000)))
    assert {one.status_code for one in answers if isinstance(one, Exception)} == {503}
    assert sorted(settled(house)) == sorted(one for one in answers if isinstance(one, int))


def test_a_key_that_expires_meanwhile_has_its_answer_and_no_more(house: House) -> None:
    house.script.replies, house.script.pause = [ENDLESS], 0.005
    secret = house.key(expires=datetime.now(UTC) + timedelta(hours=1))
    options: Any = {"max_tokens": 20, "stream": True, "stream_options": {"include_usage": True}}
    with house.client(secret).chat.completions.create(**HELLO, **options) as stream:
        chunks = iter(stream)
        next(chunks)
        house.now = datetime.now(UTC) + timedelta(hours=2)
        *_, last = chunks
    with pytest.raises(openai.AuthenticationError, match="expired on"):
        house.client(secret).models.list()
    assert [plain(cost) for cost in settled(house)] == [last.usage.cost]


@pytest.mark.parametrize("jump", [timedelta(days=40), timedelta(days=-40), timedelta(days=-10_000)])
def test_a_clock_that_jumps_charges_the_month_in_which_a_request_began(house: House, jump: timedelta) -> None:
    house.script.replies, house.script.pause = [ENDLESS], 0.005
    secret = house.key(budget=10**12)
    began = house.now = datetime.now(UTC)
    options: Any = {"max_tokens": 20, "stream": True, "stream_options": {"include_usage": True}}
    with house.client(secret).chat.completions.create(**HELLO, **options) as stream:
        chunks = iter(stream)
        next(chunks)
        house.now = began + jump
        *_, last = chunks
    (row,) = house.ledger.requests()
    assert row.day == began.date()
    assert 0 < row.first_token_seconds <= row.seconds < 60  # type: ignore[operator]
    house.now = began
    (spent,) = house.ledger.spending().values()
    assert spent.month == date(began.year, began.month, 1)
    assert settled(house) == [picodollars(last.usage.cost, "cost")]


def test_a_ledger_that_is_broken_says_so_and_no_more(house: House) -> None:
    client = house.client(house.key())
    client.chat.completions.create(**HELLO)
    with sqlite3.connect(house.file) as other:
        other.execute("ALTER TABLE ledger_requests RENAME TO elsewhere")
    with pytest.raises(openai.InternalServerError, match="ledger cannot be used now") as refused:
        client.chat.completions.create(**HELLO)
    assert refused.value.status_code == 503
    with sqlite3.connect(house.file) as other:
        other.execute("ALTER TABLE elsewhere RENAME TO ledger_requests")
    client.chat.completions.create(**HELLO)
    assert len(settled(house)) == 2
