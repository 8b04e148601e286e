"""What a server may take, and how long anything may last."""

from __future__ import annotations

import math
from dataclasses import dataclass

from narrows.errors import UsageError

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Settings:
    """Bounds of one server. UsageError, naming the field, for one that is no number above 0.

    `hosts`: names under which it may be addressed (the Host header, without its port). `most_body`: bytes of a request;
    `body_seconds`: until its head has come, and as many until the rest has. `most_requests`: under way or waiting at
    once; `most_choices`: answers of one request; `most_tools`: tools of one. `default_tokens`: of a reply, where a
    request does not say how many. `request_seconds`: for one request in all; `send_seconds`: that a client may take to
    read what was written; `keep_alive_seconds`: of silence before a stream says that it lives; `progress_seconds`:
    between two words on how far a long prompt is. `drain_seconds`: for what is under way when the server ends.
    """

    hosts: frozenset[str] = LOOPBACK_NAMES
    most_body: int = 32 << 20
    body_seconds: float = 60.0
    most_requests: int = 256
    most_choices: int = 128
    most_tools: int = 256
    default_tokens: int = 4096
    request_seconds: float = 3600.0
    send_seconds: float = 60.0
    keep_alive_seconds: float = 10.0
    progress_seconds: float = 1.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "hosts" and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise UsageError(f"{name} is {value!r}; give the server a number above 0.")
