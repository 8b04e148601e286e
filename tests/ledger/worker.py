"""What servers do with a ledger, in processes that can be killed; imported once by the one that these fork from."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from random import Random
from typing import Any

from narrows.economics.prices import Tokens
from narrows.ledger.keys import Key
from narrows.ledger.ledger import Ledger
from narrows.ledger.requests import Usage

THREADS = 3

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.ledger.worker", "alembic.command", "psycopg"])


def start(target: Any, *arguments: Any) -> tuple[BaseProcess, Connection]:
    """A process that runs the function, and where its lines can be read."""
    reader, writer = _processes.Pipe(duplex=False)
    process = _processes.Process(target=target, args=(writer, *arguments), daemon=True)
    process.start()
    writer.close()
    return process, reader


def first_lines(reader: Connection, count: int) -> bytes:
    """What was written when there were so many lines, if not a little more."""
    data = b""
    while data.count(b"\n") < count and (piece := os.read(reader.fileno(), 1 << 16)):
        data += piece
    return data


def lines(reader: Connection, data: bytes = b"") -> list[list[str]]:
    """The words of all lines that were written before the process ended, `data` being those that were read before."""
    while piece := os.read(reader.fileno(), 1 << 16):
        data += piece
    reader.close()
    assert data.endswith(b"\n") or not data
    return [line.split() for line in data.decode().splitlines()]


def say(writer: Connection, *words: object) -> None:
    """Acknowledge; a short line is written whole or not at all."""
    os.write(writer.fileno(), (" ".join(map(str, words)) + "\n").encode())


def serve(writer: Connection, url: str, key: Key, name: str) -> None:
    """Reserve, and settle or release, in several threads, until killed. What has happened is said behind it."""
    ledger = Ledger.open(url, patience=60)
    say(writer, "ready")

    def work(number: int) -> None:
        random = Random(f"{name} {number}")
        for step in range(1_000_000):
            request = f"{name}-{number}-{step}"
            reservation = ledger.reserve(key, request_id=request, model="m", endpoint="/", worst_case=1000)
            say(writer, "reserved", request)
            if random.random() < 0.8:
                say(writer, "settled", request, ledger.settle(reservation, Usage(Tokens(1, 2, 3), cost(request))).cost)
            elif random.random() < 0.5:
                ledger.release(reservation)
                say(writer, "released", request)

    for number in range(THREADS):
        threading.Thread(target=work, args=(number,)).start()


def cost(request: str) -> int:
    """What a request is charged."""
    return Random(request).randrange(1, 1000)


def hold(writer: Connection, url: str, key: Key, request: str) -> None:
    """Reserve, and wait to be killed."""
    ledger = Ledger.open(url, patience=60)
    ledger.reserve(key, request_id=request, model="m", endpoint="/", worst_case=1000)
    say(writer, "reserved", request)
    time.sleep(600)


def charge(writer: Connection, url: str, key: Key, name: str, count: int) -> None:
    """Open the ledger, charge so many requests, and close it."""
    with Ledger.open(url, patience=60) as ledger:
        for number in range(count):
            request = f"{name}-{number}"
            reservation = ledger.reserve(key, request_id=request, model="m", endpoint="/", worst_case=1000)
            say(writer, "settled", request, ledger.settle(reservation, Usage(Tokens(1, 2, 3), cost(request))).cost)


def only_open(writer: Connection, url: str) -> None:
    """Open the ledger, whose tables may not be there yet."""
    with Ledger.open(url, patience=60) as ledger:
        say(writer, "keys", len(ledger.keys()))
