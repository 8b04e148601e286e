"""The ledger behind the server: every token priced, every limit kept, every refusal the protocol's own."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from narrows.economics.money import plain
from narrows.economics.prices import PriceBook, Tokens
from narrows.ledger.ledger import Ledger
from narrows.server.ledger_accounts import LedgerAccounts
from narrows.server.tariff import Tariff
from tests.server.scripted import ENDLESS, Scripted, live, reply, wait_for
from tests.server.test_door import ask

BOOK = PriceBook.load()
PRICE = BOOK.price("self-hosted", datetime.now(UTC).date())
HELLO: Any = {"model": "scripted", "messages": [{"role": "user", "content": "Hello"}]}


class House:
    """A live server with a ledger of its own, and a client for any key."""

    def __init__(self, folder: Path) -> None:
        self.script = Scripted(replies=[reply("So.</think>", "Hello there.")], reused=2)
        self.file = folder / "ledger.db"
        self.now: datetime | None = None
        self.ledger = Ledger.open(self.file, patience=0.3, clock=lambda: self.now or datetime.now(UTC))
        self.accounts = LedgerAccounts(self.ledger, Tariff(BOOK, ["scripted"]))

    @contextmanager
    def open(self) -> Iterator[House]:
        with self.ledger, self.accounts, live(self.script, accounts=self.accounts) as self.server:
            yield self

    def client(self, secret: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.server.url}/v1", api_key=secret, max_retries=0)

    def key(self, name: str = "someone", **limits: Any) -> str:
        return self.ledger.create_key(name, **limits)[1]

    def get(self, path: str, secret: str, method: str = "GET", body: Any = None) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
        return ask(self.server, method, path, body, headers)[:2]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House(tmp_path).open() as house:
        yield house


def test_what_a_client_reads_is_what_the_ledger_holds(house: House) -> None:
    secret = house.key()
    whole = house.client(secret).chat.completions.with_raw_response.create(**HELLO)
    usage = whole.parse().usage
    streamed = house.client(secret).chat.completions.create(
        **HELLO, stream=True, stream_options={"include_usage": True}, service_tier="priority"
    )
    *_, last = streamed
    messages = anthropic.Anthropic(base_url=house.server.url, api_key=secret, max_retries=0).messages
    message = messages.create(**HELLO, max_tokens=100, thinking={"type": "enabled", "budget_tokens": 1024})
    third, second, first = house.ledger.requests()
    assert whole.headers["x-request-id"] == first.id
    for row, told, times in ((first, usage, 1), (second, last.usage, 2)):
        assert (row.hit, row.miss) == (2, told.prompt_tokens - 2)
        assert (row.output, row.reasoning) == (
            told.completion_tokens,
            told.completion_tokens_details.reasoning_tokens,
        )
        assert row.cost == PRICE.cost(Tokens(row.hit, row.miss, row.output)) * times
        assert told.cost == plain(row.cost)
        assert row.outcome == "done"
        assert row.seconds >= row.first_token_seconds > 0
    assert second.tier == "priority"
    assert (third.protocol, third.endpoint, third.output) == ("anthropic", "/v1/messages", message.usage.output_tokens)
    assert message.usage.cost == plain(third.cost)  # type: ignore[attr-defined]
    spent = house.ledger.spending()[first.key_id]
    assert (spent.settled, spent.reserved) == (first.cost + second.cost + third.cost, 0)


def test_a_key_that_is_no_good_is_told_why(house: House) -> None:
    secret = house.key(expires=datetime.now(UTC) + timedelta(days=1))
    client = house.client(secret)
    client.models.list()
    house.now = datetime.now(UTC) + timedelta(days=2)  # a clock that jumps
    with pytest.raises(openai.AuthenticationError, match="expired on"):
        client.models.list()
    house.now = None
    client.models.list()
    house.ledger.revoke(secret[4:14])
    with pytest.raises(openai.AuthenticationError, match="was revoked on"):
        client.models.list()
    with pytest.raises(openai.AuthenticationError, match="not known here"):
        house.client("nrw_wrong").models.list()


def test_over_budget_is_402_and_the_rest_of_it_can_be_used(house: House) -> None:
    house.script.replies = [ENDLESS]
    client = house.client(house.key(budget=PRICE.output * 15 + PRICE.miss * 20))
    with pytest.raises(openai.APIStatusError, match=r"has \$.* a month, of which .* Ask for fewer tokens") as refused:
        client.chat.completions.create(**HELLO, max_tokens=100)
    assert refused.value.status_code == 402
    assert refused.value.code == "insufficient_quota"
    client.chat.completions.create(**HELLO, max_tokens=10)
    with pytest.raises(openai.APIStatusError, match="is spent"):
        client.chat.completions.create(**HELLO, max_tokens=10)
    assert [row.outcome for row in house.ledger.requests()] == ["done"]


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        ({"requests_per_minute": 1}, "as many requests as it may in a minute"),
        ({"tokens_per_minute": 150}, "has 150 tokens a minute"),
    ],
)
def test_over_rate_is_429_with_the_seconds_to_wait(house: House, limit: dict[str, int], sentence: str) -> None:
    house.script.replies = [ENDLESS]
    client = house.client(house.key(**limit))
    client.chat.completions.create(**HELLO, max_tokens=100)
    with pytest.raises(openai.RateLimitError, match=sentence) as refused:
        client.chat.completions.create(**HELLO, max_tokens=100)
    assert 50 <= int(refused.value.response.headers["retry-after"]) <= 60


def test_as_many_at_once_as_a_key_may(house: House) -> None:
    house.script.replies, house.script.pause = [ENDLESS], 0.01
    client = house.client(house.key(concurrency=1))
    with client.chat.completions.create(**HELLO, stream=True) as stream:
        _some(stream)
        with pytest.raises(openai.RateLimitError, match="at once"):
            client.chat.completions.create(**HELLO)
    wait_for(lambda: house.ledger.requests()[0].outcome == "cut")
    house.script.replies = [reply("</think>ok")]
    client.chat.completions.create(**HELLO)


def test_an_idempotency_key_is_charged_once(house: House) -> None:
    client = house.client(house.key())
    named = {"extra_headers": {"Idempotency-Key": "mine"}}
    client.chat.completions.create(**HELLO, **named)
    with pytest.raises(openai.ConflictError, match="was done already, and is not charged again"):
        client.chat.completions.create(**HELLO, **named)
    with pytest.raises(openai.BadRequestError, match="was used for another request"):
        client.chat.completions.create(**HELLO, max_tokens=5, **named)
    house.script.replies, house.script.pause = [ENDLESS], 0.01
    other = {"extra_headers": {"Idempotency-Key": "other"}}
    with client.chat.completions.create(**HELLO, stream=True, **other) as stream:
        _some(stream)
        with pytest.raises(openai.ConflictError, match="is still running"):
            client.chat.completions.create(**HELLO, stream=True, **other)
    with pytest.raises(openai.BadRequestError, match="printable"):
        client.chat.completions.create(**HELLO, extra_headers={"Idempotency-Key": "k" * 256})
    wait_for(lambda: house.ledger.requests()[0].outcome == "cut")
    assert [row.idempotency for row in house.ledger.requests()] == ["other", "mine"]


def test_of_many_requests_under_one_name_one_is_charged(house: House) -> None:
    house.script.pause = 0.002
    client, answers = house.client(house.key()), []

    def attempt() -> None:
        try:
            answers.append(client.chat.completions.create(**HELLO, extra_headers={"Idempotency-Key": "one"}))
        except openai.ConflictError as error:
            answers.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(not isinstance(answer, Exception) for answer in answers) == 1
    assert [row.state for row in house.ledger.requests()] == ["settled"]


def _some(stream: Any) -> None:
    """Read until there is something to charge: the first chunk says who speaks."""
    for _ in range(3):
        next(stream)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Somebody else writes the ledger, and does not end."""
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def test_a_locked_ledger_takes_no_requests_and_says_so(house: House) -> None:
    client = house.client(house.key())
    with locked(house.file):
        with pytest.raises(
            openai.InternalServerError, match="ledger cannot be used now, and nothing was charged"
        ) as told:
            client.chat.completions.create(**HELLO)
        assert told.value.status_code == 503
        assert told.value.response.headers["retry-after"] == "1"
        assert str(house.file) not in str(told.value)
        anthropic_client = anthropic.Anthropic(base_url=house.server.url, api_key=client.api_key, max_retries=0)
        with pytest.raises(anthropic.APIStatusError, match="ledger cannot be used now"):
            anthropic_client.messages.create(**HELLO, max_tokens=10)
    assert house.ledger.requests() == []
    client.chat.completions.create(**HELLO)


def test_what_cannot_be_written_at_the_end_is_released_later_and_never_acknowledged(house: House) -> None:
    client = house.client(house.key())
    house.script.pause = 0.02
    with client.chat.completions.create(**HELLO, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = iter(stream)
        next(chunks)
        with locked(house.file):
            with pytest.raises(openai.APIError, match="nothing was charged"):
                list(chunks)
            assert house.ledger.requests()[0].state == "open"
    wait_for(lambda: house.ledger.requests()[0].state == "released")
    (spent,) = house.ledger.spending().values()
    assert (spent.settled, spent.reserved) == (0, 0)


def test_a_cut_stream_is_charged_even_if_the_ledger_was_locked_then(house: House) -> None:
    client = house.client(house.key())
    house.script.replies, house.script.pause = [ENDLESS], 0.01
    with client.chat.completions.create(**HELLO, stream=True) as stream:
        chunks = iter(stream)
        _some(chunks)
        with locked(house.file):
            stream.close()
            assert house.script.ended.wait(10)
            wait_for(lambda: house.accounts._late)
    wait_for(lambda: house.ledger.requests()[0].state == "settled")
    (row,) = house.ledger.requests()
    assert row.outcome == "cut"
    assert row.output >= 1
    assert row.cost == PRICE.cost(Tokens(row.hit, row.miss, row.output))


def test_prices_are_told_to_compare_with(house: House) -> None:
    status, told = house.get("/api/prices", house.key())
    assert status == 200
    models = {model["model"]: model for model in told["models"]}
    assert models["scripted"]["served"]
    assert models["scripted"]["priced_as"] == "self-hosted"
    for name in ("deepseek-v4-pro", "deepseek-v4-flash", "claude-opus-4.8"):
        price = BOOK.price(name, datetime.now(UTC).date())
        assert models[name]["picodollars"] == {"hit": price.hit, "miss": price.miss, "output": price.output}
        assert not models[name]["served"]


def test_a_key_sees_its_own_usage_and_an_admin_all(house: House) -> None:
    one, two, admin = house.key("one"), house.key("two", budget=10**12), house.key("boss", scopes=["admin"])
    for secret in (one, one, two):
        house.client(secret).chat.completions.create(**HELLO)
    status, own = house.get("/api/usage?by=key&by=day", one)
    assert status == 200
    (row,) = own["rows"]
    assert (row["name"], row["requests"], row["key"]) == ("one", 2, one[4:14])
    assert row["day"] == datetime.now(UTC).date().isoformat()
    everything = house.get("/api/usage?by=model", admin)[1]
    assert [row["requests"] for row in everything["rows"]] == [3]
    assert everything["total"]["cost"] == plain(sum(row.cost for row in house.ledger.requests()))
    assert len(house.get("/api/requests", one)[1]["rows"]) == 2
    assert len(house.get("/api/requests?limit=1", admin)[1]["rows"]) == 1
    assert house.get(f"/api/requests?key={two[4:14]}", one)[0] == 403
    assert len(house.get(f"/api/requests?key={two[4:14]}", admin)[1]["rows"]) == 1
    key = house.get("/api/key", two)[1]
    assert (key["name"], key["budget"], key["spent"]) == ("two", "1.00", plain(house.ledger.requests()[0].cost))
    assert house.get("/api/usage?by=colour", one)[0] == 400
    for day in ("2026-02-30", "-3.1e-304", "1760000000", "20260101", "2026-W01-1", ""):
        assert house.get(f"/api/usage?from={day}", one)[0] == 400
    assert house.get("/api/usage?from=2026-02-03&to=2026-02-01", one)[0] == 400


def test_keys_are_made_changed_and_revoked_over_http_by_admins_alone(house: House) -> None:
    admin, other = house.key("boss", scopes=["admin"]), house.key("other")
    for method, path, body in (
        ("GET", "/api/keys", None),
        ("POST", "/api/keys", '{"name": "new"}'),
        ("PATCH", f"/api/keys/{other[4:14]}", '{"budget": null}'),
        ("DELETE", f"/api/keys/{other[4:14]}", None),
    ):
        status, told = house.get(path, other, method, body)
        assert (status, told["error"]["type"]) == (403, "permission_error"), path
    wanted = '{"name": "new", "budget": "0.50", "requests_per_minute": 7, "expires": "2100-01-01T00:00:00Z"}'
    status, made = house.get("/api/keys", admin, "POST", wanted)
    assert status == 201
    house.client(made["secret"]).chat.completions.create(**HELLO)
    assert (made["budget"], made["requests_per_minute"], made["scopes"]) == ("0.50", 7, ["inference"])
    changed = house.get(f"/api/keys/{made['id']}", admin, "PATCH", '{"budget": "0"}')[1]
    assert changed["budget"] == "0.00"
    with pytest.raises(openai.APIStatusError, match="budget"):
        house.client(made["secret"]).chat.completions.create(**HELLO)
    revoked = house.get(f"/api/keys/{made['id']}", admin, "DELETE")[1]
    assert revoked["state"] == "revoked"
    assert house.get("/api/key", made["secret"])[0] == 401
    names = [key["name"] for key in house.get("/api/keys", admin)[1]["keys"]]
    assert names == ["boss", "other", "new"]
    assert all(made["secret"] not in str(key) for key in house.get("/api/keys", admin)[1]["keys"])


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ('{"name": ""}', "name"),
        ('{"name": "x", "budget": 5}', "budget"),
        ('{"name": "x", "budget": "-1"}', "budget"),
        ('{"name": "x", "budget": "a lot"}', "budget"),
        ('{"name": "x", "scopes": ["root"]}', "scopes"),
        ('{"name": "x", "scopes": []}', "scopes"),
        ('{"name": "x", "expires": "2001-01-01T00:00:00Z"}', "expires"),
        ('{"name": "x", "expires": "tomorrow"}', "expires"),
        ('{"name": "x", "expires": 4102444800}', "expires"),
        ('{"name": "x", "expires": "4102444800"}', "expires"),
        ('{"name": "x", "expires": "9999-12-31T23:59:59-23:59"}', "expires"),
        ('{"name": "x", "concurrency": 0}', "concurrency"),
        ("[]", "object"),
    ],
)
def test_a_key_that_cannot_be_is_not_made(house: House, body: str, word: str) -> None:
    admin = house.key("boss", scopes=["admin"])
    status, told = house.get("/api/keys", admin, "POST", body)
    assert status == 400
    assert word in told["error"]["message"]
    assert len(house.ledger.keys()) == 1
    assert house.get("/api/keys/nobody", admin, "DELETE")[0] == 404
