"""Keys: what opens, what does not and why, and that no secret is kept."""

from __future__ import annotations

import string
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from narrows.errors import UsageError
from narrows.ledger.errors import KeyRefused
from narrows.ledger.ledger import Ledger
from tests.ledger.conftest import Clock, reserve


def refused(ledger: Ledger, secret: Any, scope: Any = None) -> KeyRefused:
    with pytest.raises(KeyRefused) as refusal:
        ledger.authenticate(secret, scope)
    assert not isinstance(secret, str) or len(secret) < 11 or secret not in str(refusal.value)
    return refusal.value


def test_a_secret_opens_its_own_key_only(ledger: Ledger, clock: Clock) -> None:
    made = [ledger.create_key(name, budget=budget) for name, budget in (("one", None), ("one", 5), ("twö ✓", 0))]
    for key, secret in made:
        assert ledger.authenticate(secret) == key
        assert key.created == clock.now
    assert sorted(ledger.keys(), key=lambda key: key.id) == sorted((key for key, _ in made), key=lambda key: key.id)
    assert len({secret for _, secret in made}) == len({key.id for key, _ in made}) == 3


def test_everything_but_the_whole_secret_is_unknown(ledger: Ledger) -> None:
    _, secret = ledger.create_key("one")
    other = next(letter for letter in string.ascii_letters if letter != secret[-1])
    wrong = [
        secret[:-1] + other,
        secret[:20] + other + secret[20:-1],
        secret[:-1],
        secret + "a",
        secret + "\n",
        f" {secret}",
        secret.swapcase(),
        secret.removeprefix("nrw_"),
        "nrw_" + "0" * 43,
        "",
        "é" * 47,
        "\udcff" * 47,
        "\0",
        "x" * 10**6,
        None,
        secret.encode(),
    ]
    for one in wrong:
        refusal = refused(ledger, one)
        assert refusal.reason == "unknown"
        assert "is not known here; look whether it is whole" in str(refusal)


def test_expired_and_revoked_keys_say_so(ledger: Ledger, clock: Clock) -> None:
    key, secret = ledger.create_key("short", expires=clock.now + timedelta(seconds=1))
    assert ledger.authenticate(secret).state(clock.now) == "active"
    clock.add(seconds=1)
    refusal = refused(ledger, secret)
    assert refusal.reason == "expired"
    assert str(refusal) == f"the API key {key.id}… expired on 2026-06-01; ask for another."
    with pytest.raises(KeyRefused, match="expired"):  # it was known before, and asks now
        reserve(ledger, key, "late")
    first, secret = ledger.create_key("gone")
    revoked = ledger.revoke(first.id)
    clock.add(days=3)
    assert ledger.revoke(first.id) == revoked
    refusal = refused(ledger, secret)
    assert (refusal.reason, revoked.state(clock.now)) == ("revoked", "revoked")
    assert str(refusal) == f"the API key {first.id}… was revoked on 2026-06-01; ask for another."
    assert refused(ledger, secret[:-1] + "-").reason == "unknown"  # nobody else learns that it was revoked
    with pytest.raises(KeyRefused, match="revoked"):
        reserve(ledger, first, "later")
    with pytest.raises(UsageError, match="no key has the id 'nobody'"):
        ledger.revoke("nobody")
    assert ledger.requests() == []


def test_scopes(ledger: Ledger) -> None:
    _, user = ledger.create_key("user")
    _, admin = ledger.create_key("admin", scopes=("admin",))
    assert ledger.authenticate(user, "inference")
    assert ledger.authenticate(admin, "admin")
    for secret, scope in ((user, "admin"), (admin, "inference")):
        assert refused(ledger, secret, scope).reason == "scope"
    _, both = ledger.create_key("both", scopes=("admin", "inference", "admin"))
    assert ledger.authenticate(both).scopes == ("admin", "inference")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": ""}, "the key's name is ''"),
        ({"name": "a\x1bb"}, "leave out what cannot be printed"),
        ({"name": "x" * 201}, "give text of 1 to 200 characters"),
        ({"name": 5}, "the key's name is 5"),
        ({"scopes": ()}, r"scopes are \(\); choose from inference, metrics, admin"),
        ({"scopes": ("root",)}, "choose from inference, metrics, admin"),
        ({"scopes": "admin"}, "scopes are 'admin'"),
        ({"expires": datetime(2026, 5, 1, tzinfo=UTC)}, "expires is 2026-05-01 00:00 UTC, which is past"),
        ({"expires": datetime(2027, 5, 1)}, "give a time with its zone"),
        ({"budget": 1.5}, "budget is 1.5 picodollars"),
        ({"budget": -1}, "budget is -1 picodollars"),
        ({"budget": 10**19}, r"from 0 to \$4,000,000.00"),
        ({"requests_per_minute": 0}, "requests_per_minute is 0"),
        ({"tokens_per_minute": True}, "tokens_per_minute is True"),
        ({"concurrency": 2**31}, "concurrency is 2147483648"),
    ],
)
def test_what_a_key_cannot_have(tmp_path: Path, clock: Clock, options: dict[str, Any], said: str) -> None:
    with Ledger.open(tmp_path / "ledger.db", clock=clock) as ledger:
        with pytest.raises(UsageError, match=said):
            ledger.create_key(**{"name": "x"} | options)
        assert ledger.keys() == []


def test_no_secret_is_stored(tmp_path: Path, dump: Callable[[], bytes]) -> None:
    """Neither whole nor the part behind its id, in any file of the database or of its log."""
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        made = [ledger.create_key(f"name-{number}") for number in range(3)]
        refused(ledger, made[0][1][:-1] + "-")
        reserve(ledger, made[0][0], "one")
        ledger.revoke(made[0][0].id)
        stored = dump()
    for content in (stored, dump()):
        assert b"name-0" in content
        for key, secret in made:
            assert key.id.encode() in content
            assert secret.removeprefix(f"nrw_{key.id}").encode() not in content


@pytest.fixture
def dump(tmp_path: Path) -> Callable[[], bytes]:
    return lambda: b"".join(file.read_bytes() for file in sorted(tmp_path.iterdir()))
