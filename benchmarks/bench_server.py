"""The server beside the bare engine: 1, 4, 16 and 64 streams at once over real sockets, with keys, prices and a ledger.

`python -m benchmarks.bench_server` starts `narrows serve` and, in another process, an engine of the same limits whose
handles are read by as many threads; both get the same requests, in turns. What a token takes longer behind the server
is its overhead: the protocol's, the ledger's, and the client's that reads it, which shares the cores.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from benchmarks.real_source import source_tokens
from benchmarks.record import record

STREAMS = (1, 4, 16, 64)
PROMPT_TOKENS = 256
MAX_TOKENS = 128
ROUNDS = 5
LEAST_REQUESTS = 8


@dataclass
class Times:
    """Of one reply: seconds from its sending to its first token and to its last, and how many there were."""

    first: float
    last: float
    tokens: int

    @property
    def each(self) -> float:
        """Seconds a token behind the first; of replies that are long enough to tell."""
        return (self.last - self.first) / (self.tokens - 1)


def long_enough(times: Sequence[Times]) -> list[Times]:
    """Those whose time a token says something: models end some replies early."""
    return [one for one in times if one.tokens > MAX_TOKENS // 2]


def requests_of(streams: int) -> int:
    """How many a round has."""
    return max(LEAST_REQUESTS, streams * 2)


def prompts(count: int, turn: int) -> list[list[int]]:
    """Pieces of the standard library, none of which was read before."""
    from narrows.engine.model import load

    need = count * PROMPT_TOKENS
    tokens = source_tokens(load().tokenizer, need * (turn + 1))[need * turn :]
    return [tokens[start : start + PROMPT_TOKENS] for start in range(0, need, PROMPT_TOKENS)]


class Bare:
    """An engine in a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "benchmarks.bench_server", "bare"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, **pipes)
        self._ask("ready")

    def _ask(self, what: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def run(self, streams: int, asked: Sequence[Sequence[int]]) -> tuple[float, list[Times]]:
        """Seconds in all, and every reply's times."""
        seconds, times = self._ask([streams, asked])
        return seconds, [Times(*one) for one in times]

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def bare() -> None:
    """The process of `Bare`: a line of JSON for every line."""
    from narrows.engine.engine import Engine
    from narrows.engine.limits import Limits
    from narrows.engine.model import free_memory, load
    from narrows.engine.request import SamplingParameters
    from narrows.engine.sequence import Drawn

    model = load()
    engine = Engine(model.network, model.tokenizer, Limits(memory=free_memory() // 4, slots=max(STREAMS)))
    parameters = SamplingParameters(max_tokens=MAX_TOKENS, temperature=0.0)

    def run(waiting: list[Sequence[int]], done: list[Times]) -> None:
        while True:
            try:
                prompt = waiting.pop()
            except IndexError:
                return
            start, seen = time.perf_counter(), []
            for event in engine.submit(prompt, parameters):
                if isinstance(event, Drawn):
                    seen.append(time.perf_counter() - start)
            done.append(Times(seen[0], seen[-1], len(seen)))

    for line in sys.stdin:
        asked = json.loads(line)
        if asked == "ready":
            print(json.dumps("ready"), flush=True)
            continue
        streams, waiting = asked
        done: list[Times] = []
        threads = [threading.Thread(target=run, args=(waiting, done)) for _ in range(streams)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(
            json.dumps([time.perf_counter() - start, [[one.first, one.last, one.tokens] for one in done]]), flush=True
        )
    engine.close()


class Served:
    """`narrows serve` in a process of its own."""

    def __init__(self, folder: str) -> None:
        command = [sys.executable, "-m", "narrows.cli.main", "serve", "--port", "0", "--no-cache"]
        limits = ["--slots", str(max(STREAMS)), "--log", os.devnull, "--ledger", f"{folder}/ledger.db"]
        self._process = subprocess.Popen([*command, *limits], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        greeting = ""
        while "Ctrl-C" not in greeting:
            greeting += self._process.stdout.readline()
        self._port = int(re.findall(r":(\d+)/#key", greeting)[0])
        self._key = re.findall(r"nrw_\w+", greeting)[0]

    def run(self, streams: int, asked: Sequence[Sequence[int]]) -> tuple[float, list[Times]]:
        """Seconds in all, and every reply's times."""
        return asyncio.run(self._run(streams, list(asked)))

    async def _run(self, streams: int, waiting: list[Sequence[int]]) -> tuple[float, list[Times]]:
        done: list[Times] = []
        start = time.perf_counter()
        await asyncio.gather(*(self._client(waiting, done) for _ in range(streams)))
        return time.perf_counter() - start, done

    async def _client(self, waiting: list[Sequence[int]], done: list[Times]) -> None:
        """One connection, kept for one request behind the other, as the SDKs keep theirs."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        while waiting:
            body = {"model": "embedded", "prompt": waiting.pop(), "max_tokens": MAX_TOKENS, "temperature": 0}
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            sent = json.dumps(body).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._key}\r\n"
            start = time.perf_counter()
            writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n".encode() + sent)
            done.append(await _reply(reader, start))
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


async def _reply(reader: asyncio.StreamReader, start: float) -> Times:
    """Read a streamed answer to its end."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    seen, last = [], b""
    while size := int(await reader.readline(), 16):
        piece = await reader.readexactly(size + 2)
        if b'"text":' in piece:
            seen.append(time.perf_counter() - start)
        if b'"usage":{' in piece:
            last = piece
    await reader.readline()
    tokens = re.findall(rb'"completion_tokens":(\d+)', last)[0]
    return Times(seen[0], seen[-1], int(tokens))


def main() -> None:
    """Both in turns."""
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Any] = {"engine": Bare(), "server": Served(folder)}
        found: dict[tuple[str, int], list[tuple[float, list[Times]]]] = {}
        for turn in range(ROUNDS + 1):
            for streams in STREAMS:
                asked = prompts(requests_of(streams), turn)
                for name, side in sides.items():
                    result = side.run(streams, asked)
                    if turn:  # the first warms both up
                        found.setdefault((name, streams), []).append(result)
                        print(f"{turn} {streams:3} {name}: {1000 * _median_each(result[1]):.3f} ms a token", flush=True)
        for side in sides.values():
            side.close()
    rows: list[list[str]] = []
    figures: list[dict[str, Any]] = []
    for streams in STREAMS:
        medians: dict[str, float] = {}
        for name in sides:
            rounds = found[name, streams]
            times = [one for _, done in rounds for one in done]
            medians[name] = statistics.median(_median_each(done) for _, done in rounds)
            seconds = sum(seconds for seconds, _ in rounds)
            figures.append(
                {
                    "streams": streams,
                    "side": name,
                    "requests_per_second": len(times) / seconds,
                    "tokens_per_second": sum(one.tokens for one in times) / seconds,
                    "first_ms": _percentiles([1000 * one.first for one in times]),
                    "each_ms": _percentiles([1000 * one.each for one in long_enough(times)]),
                }
            )
            one = figures[-1]
            engine = figures[-2] if name == "server" else one
            share = f"{100 * one['requests_per_second'] / engine['requests_per_second']:.0f}%"
            over = f"{100 * (medians['server'] / medians['engine'] - 1):+.1f}%" if name == "server" else "–"
            told = [share, _shown(one["first_ms"]), _shown(one["each_ms"]), over]
            speed = [f"{one['requests_per_second']:.2f}", f"{one['tokens_per_second']:,.0f}"]
            rows.append([str(streams), name, *speed, *told])
    columns = [
        "streams at once",
        "",
        "requests/s",
        "tokens/s",
        "of the engine's",
        "first token, ms",
        "a token, ms",
        "overhead a token",
    ]
    notes = (
        f"The embedded model as it ships; {PROMPT_TOKENS} tokens of source that nobody read before, {MAX_TOKENS} "
        f"written at most, greedy, one request behind the other in every stream, {ROUNDS} rounds in turns. Times are "
        "medians, and behind them the 90th and 99th percentiles; a token's are averages over its reply, from the first "
        "to the last. The overhead a token compares medians of the rounds; what a request costs beside its tokens (its "
        "reading, two transactions of the ledger) is in the share of requests and in the first token. A client reads "
        "the streams on the same two cores."
    )
    record("server", {"table": {"columns": columns, "rows": rows}, "sides": figures}, notes=notes)


def _median_each(times: Sequence[Times]) -> float:
    return statistics.median(one.each for one in long_enough(times))


def _percentiles(values: list[float]) -> list[float]:
    """The 50th, 90th and 99th."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return [cuts[49], cuts[89], cuts[98]]


def _shown(values: Sequence[float]) -> str:
    digits = 2 if values[0] < 10 else 0
    return " / ".join(f"{value:,.{digits}f}" for value in values)


if __name__ == "__main__":
    bare() if sys.argv[1:] == ["bare"] else main()
