"""Keys: who may ask, for what, how much and until when. Of a secret only its SHA-256 is stored.

A secret is drawn from 256 bits, so nothing is gained by guessing, and a slow hash would protect nothing.
"""

from __future__ import annotations

import hmac
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal, get_args

from sqlalchemy import Connection, RowMapping, bindparam, select

from narrows.errors import UsageError
from narrows.ledger.checks import check_count, check_moment, check_money, check_text
from narrows.ledger.errors import KeyRefused, UnknownKey
from narrows.ledger.tables import keys

Scope = Literal["inference", "metrics", "admin"]
"""inference: requests to models. metrics: the server's figures. admin: keys, everybody's usage, and all else."""

PREFIX = "nrw_"
_ALPHABET = string.digits + string.ascii_letters
_LENGTH = 43  # 62 ** 43 > 2 ** 256
_ID_LENGTH = 10
_SECRET = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_LENGTH}}}")

_FIND = select(keys).where(keys.c.id == bindparam("id_"))
_FIND_LOCKED = _FIND.with_for_update()


@dataclass(frozen=True)
class Key:
    """A key without its secret; `id` is how the secret begins behind its prefix, and may be shown.

    `budget` is picodollars a calendar month (UTC). None: no expiry, no limit.
    """

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None
    budget: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None

    def state(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        """What the key is at that time."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"

    def check(self, now: datetime, scope: Scope | None = None) -> None:
        """KeyRefused where it has been revoked, has expired, or lacks the scope."""
        state = self.state(now)
        if state == "revoked":
            raise KeyRefused(f"the API key {self.id}… was revoked on {self.revoked:%Y-%m-%d}; ask for another.", state)
        if state == "expired":
            raise KeyRefused(f"the API key {self.id}… expired on {self.expires:%Y-%m-%d}; ask for another.", state)
        if scope is not None and scope not in self.scopes:
            raise KeyRefused(
                f"the API key {self.id}… is for {' and '.join(self.scopes)}, not for {scope}; take one that is.",
                "scope",
            )


def insert_key(
    connection: Connection,
    now: datetime,
    name: str,
    scopes: Sequence[Scope],
    expires: datetime | None,
    budget: int | None,
    limits: Mapping[str, int | None],
) -> tuple[Key, str]:
    """A new key and its secret; `limits` are the key's last fields in their order.

    UsageError, naming the field, for what it cannot have.
    """
    check_text("the key's name", name, 200)
    if isinstance(scopes, str) or not scopes or any(scope not in get_args(Scope) for scope in scopes):
        raise UsageError(f"scopes are {scopes!r}; choose from {', '.join(get_args(Scope))}.")
    if expires is not None and check_moment("expires", expires) <= now:
        raise UsageError(f"expires is {expires:%Y-%m-%d %H:%M %Z}, which is past; choose a time to come.")
    if budget is not None:
        check_money("budget", budget)
    for limit, value in limits.items():
        if value is not None:
            check_count(limit, value, least=1, most=2**31 - 1)
    while True:
        body = "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
        key = Key(body[:_ID_LENGTH], name, tuple(dict.fromkeys(scopes)), now, expires, None, budget, *limits.values())
        if find_key(connection, key.id) is None:
            break
    secret = PREFIX + body
    values = {column.name: getattr(key, column.name, None) for column in keys.columns}
    values |= {"scopes": " ".join(key.scopes), "digest": _digest(secret)}
    connection.execute(keys.insert().values(values))
    return key, secret


def find_secret(connection: Connection, secret: Any) -> Key:
    """The key that has this secret, whatever its state. KeyRefused, never repeating it, where none has."""
    text = secret if isinstance(secret, str) else ""
    named = {"id_": text.removeprefix(PREFIX)[:_ID_LENGTH]}
    row = connection.execute(_FIND, named).mappings().one_or_none() if _SECRET.fullmatch(text) else None
    stored = row["digest"] if row is not None else bytes(32)
    if not hmac.compare_digest(bytes(stored), _digest(text)) or row is None:
        raise KeyRefused(
            "this API key is not known here; look whether it is whole, or have one made with narrows keys create.",
            "unknown",
        )
    return _key(row)


def find_key(connection: Connection, key_id: str, lock: bool = False) -> Key | None:
    """The key of this id. `lock`: nobody else reserves or settles for it until the transaction ends."""
    row = connection.execute(_FIND_LOCKED if lock else _FIND, {"id_": key_id}).mappings().one_or_none()
    return None if row is None else _key(row)


def all_keys(connection: Connection) -> list[Key]:
    """Oldest first."""
    return [_key(row) for row in connection.execute(select(keys).order_by(keys.c.created, keys.c.id)).mappings()]


def mark_revoked(connection: Connection, now: datetime, key_id: str) -> Key:
    """The key, revoked from now on or since before. UsageError for an unknown id."""
    key = find_key(connection, key_id, lock=True)
    if key is None:
        raise unknown(key_id)
    if key.revoked is not None:
        return key
    connection.execute(keys.update().where(keys.c.id == key_id).values(revoked=now))
    return replace(key, revoked=now)


def change_budget(connection: Connection, key_id: str, budget: int | None) -> Key:
    """The key with another budget. UsageError for an unknown id, or no amount."""
    if budget is not None:
        check_money("budget", budget)
    key = find_key(connection, key_id, lock=True)
    if key is None:
        raise unknown(key_id)
    connection.execute(keys.update().where(keys.c.id == key_id).values(budget=budget))
    return replace(key, budget=budget)


def unknown(key_id: str) -> UnknownKey:
    """What is said of an id that no key has."""
    return UnknownKey(f"no key has the id {key_id[:40]!r}; narrows keys list shows them.")


def _key(row: RowMapping) -> Key:
    values = {name: value for name, value in row.items() if name != "digest"}
    return Key(**values | {"scopes": tuple(row["scopes"].split())})


def _digest(secret: str) -> bytes:
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()
