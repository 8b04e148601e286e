"""A server around a script, in a process that can be killed; imported once by the one that these fork from."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from narrows.economics.prices import PriceBook
from narrows.ledger.ledger import Ledger
from narrows.server.ledger_accounts import LedgerAccounts
from narrows.server.tariff import Tariff
from tests.server.scripted import Scripted, live, reply

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.server.victim", "alembic.command", "psycopg"])


def start(url: str) -> tuple[BaseProcess, int]:
    """A process that serves, and its port."""
    reader, writer = _processes.Pipe(duplex=False)
    process = _processes.Process(target=serve, args=(writer, url), daemon=True)
    process.start()
    writer.close()
    port: int = reader.recv()
    reader.close()
    return process, port


def serve(writer: Connection, url: str) -> None:
    """Answer until killed."""
    script = Scripted(replies=[reply("So be it.</think>", "Hello there, and good day.")], pause=0.0005, reused=2)
    with Ledger.open(url, patience=60) as ledger, LedgerAccounts(ledger, Tariff(PriceBook.load(), ["scripted"])) as own:
        with live(script, accounts=own) as server:
            writer.send(server.port)
            while os.getppid() != 1:
                time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
