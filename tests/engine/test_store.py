"""Prefixes on disk: found again after a restart, never found damaged, within their budget, beside other processes."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.engine.paged_history import Contents, State
from narrows.engine.store import Piece, PrefixStore, identity_of
from narrows.errors import NarrowsError
from narrows.model.network import Network
from narrows.model.precision import Precision
from narrows.model.presets import TINY
from narrows.ops import native
from tests.draws import scaled
from tests.parity.configurations import randomised

BLOCK = 4


def store_in(directory: Path, identity: str = "a model", most_bytes: int = 1 << 20) -> PrefixStore:
    return PrefixStore(directory, identity, BLOCK, most_bytes)


def piece_of(tokens: list[int], start: int) -> Piece:
    """A piece whose numbers follow from its tokens, so that a wrong one is seen."""
    blocks = torch.tensor(tokens[start:], dtype=torch.float32).view(-1, BLOCK, 1)
    return Piece(
        start,
        Contents({(2, "compressor"): blocks, (2, "indexer"): -blocks.to(torch.bfloat16)}),
        State(len(tokens), {(0, "window"): torch.tensor(tokens[-3:], dtype=torch.float64)}),
    )


def keep(store: PrefixStore, tokens: list[int]) -> None:
    start = store.missing(tokens)
    if start is not None:
        store.put(tokens, piece_of(tokens, start))


def is_right(pieces: list[Piece], tokens: list[int]) -> bool:
    """Whether the pieces are those of a beginning of `tokens`, one behind the other from the first token on."""
    ends = [0, *(piece.state.length for piece in pieces)]
    for piece, start, end in zip(pieces, ends[:-1], ends[1:], strict=True):
        wanted = piece_of(tokens[:end], start)
        assert piece.start == start
        assert piece.contents.entries.keys() == wanted.contents.entries.keys()
        for key, entries in wanted.contents.entries.items():
            assert torch.equal(piece.contents.entries[key], entries)
            assert piece.contents.entries[key].dtype == entries.dtype
        assert torch.equal(piece.state.recent[0, "window"], wanted.state.recent[0, "window"])
    return bool(pieces)


texts = st.lists(st.integers(0, 1), min_size=0, max_size=12).map(lambda t: t[: len(t) // BLOCK * BLOCK])


@settings(max_examples=scaled(40))
@given(kept=st.lists(texts.filter(bool), max_size=6), asked=texts, known=st.integers(0, 2))
def test_the_longest_kept_beginning_is_found_after_a_restart(
    tmp_path_factory: pytest.TempPathFactory, kept: list[list[int]], asked: list[int], known: int
) -> None:
    directory = tmp_path_factory.mktemp("prefixes")
    store = store_in(directory)
    for tokens in kept:
        keep(store, tokens)
    longest = max((len(tokens) for tokens in kept if asked[: len(tokens)] == tokens), default=0)
    for opened in (store, store_in(directory)):
        pieces = opened.get(asked, longer_than=known * BLOCK)
        if longest > known * BLOCK:
            assert is_right(pieces, asked)
            assert pieces[-1].state.length == longest
        else:
            assert pieces == []
    assert store_in(directory, "another model").get(asked) == []


@settings(max_examples=scaled(60))
@given(place=st.floats(0, 1), how=st.sampled_from(("flip", "cut", "empty", "foreign")))
def test_a_damaged_file_is_reported_deleted_and_not_used(
    tmp_path_factory: pytest.TempPathFactory, place: float, how: str
) -> None:
    directory = tmp_path_factory.mktemp("prefixes")
    tokens = list(range(3 * BLOCK))
    store = store_in(directory)
    keep(store, tokens[:BLOCK])
    keep(store, tokens)
    (file,) = (f for f in directory.iterdir() if f.name.startswith(store.names(tokens)[-1]))
    body = bytearray(file.read_bytes())
    at = min(len(body) - 1, int(place * len(body)))
    if how == "flip":
        body[at] ^= 1
    elif how == "cut":
        body = body[:at]
    elif how == "empty":
        body = bytearray()
    else:
        body = bytearray(b"#!/bin/sh\n" * 50)
    file.write_bytes(body)
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("narrows").addHandler(handler)
    try:
        again = store_in(directory)
        pieces = again.get(tokens)
    finally:
        logging.getLogger("narrows").removeHandler(handler)
    assert is_right(pieces, tokens)
    assert pieces[-1].state.length == BLOCK  # what was not damaged serves on
    assert len(messages) == 1
    assert str(file) in messages[0]
    assert "damaged" in messages[0]
    assert not file.exists()
    keep(again, tokens)
    assert again.get(tokens)[-1].state.length == 3 * BLOCK


def test_the_budget_holds_and_what_was_used_last_stays(tmp_path: Path) -> None:
    one = [5] * BLOCK
    store = store_in(tmp_path)
    keep(store, one)
    (size,) = (file.stat().st_size for file in tmp_path.iterdir())
    store = store_in(tmp_path, most_bytes=3 * size + 10)
    for number in range(6):
        now = time.time() - 100 + number
        tokens = [number] * BLOCK
        keep(store, tokens)
        os.utime(tmp_path / f"{store.names(tokens)[-1]}.prefix", (now, now))
        assert store.get(one), "what is asked for again and again was deleted"
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 3 * size + 10
    assert len(list(tmp_path.iterdir())) == 3


def test_whatever_computes_otherwise_is_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    network = randomised(Network(TINY), torch.Generator().manual_seed(5))
    found = [identity_of(network), identity_of(network, Precision.BF16)]
    network.round_inputs()
    found.append(identity_of(network))
    assert identity_of(network) == found[-1]
    if native.available():
        monkeypatch.setattr(native.kernels, "VERSION", native.kernels.VERSION + 1)
        found.append(identity_of(network))
    monkeypatch.setattr(native, "kernels", None)
    found.append(identity_of(network))
    with torch.no_grad():
        network.norm.weight[0] += 1
    found.append(identity_of(network))
    assert len(set(found)) == len(found)


def test_a_piece_without_its_beginning_is_not_used(tmp_path: Path) -> None:
    tokens = list(range(2 * BLOCK))
    store = store_in(tmp_path)
    keep(store, tokens[:BLOCK])
    keep(store, tokens)
    (tmp_path / f"{store.names(tokens)[0]}.prefix").unlink()
    assert store_in(tmp_path).get(tokens) == []


WRITER = """
import sys
from pathlib import Path
from random import Random
from tests.engine.test_store import BLOCK, keep, store_in
random = Random(int(sys.argv[2]))
store = store_in(Path(sys.argv[1]), most_bytes=int(sys.argv[3]))
keep(store, [0] * BLOCK)
print("ready", flush=True)
while True:
    keep(store, [random.randrange(2) for _ in range(BLOCK * random.randint(1, 3))])
"""


@pytest.mark.parametrize("budget", [1 << 20, 6000])
def test_two_processes_share_a_directory_and_may_be_killed_at_any_moment(tmp_path: Path, budget: int) -> None:
    random = Random(1)
    root = Path(__file__).parents[2]
    for round_ in range(scaled(2)):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path), str(2 * round_ + number), str(budget)],
                cwd=root,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            )
            for number in range(2)
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
        time.sleep(random.random() / 2)
        for writer in writers:
            assert writer.poll() is None, "a writer failed"
            writer.send_signal(signal.SIGKILL)
            writer.communicate()
        store = store_in(tmp_path, most_bytes=budget)
        found = 0
        for _ in range(200):
            tokens = [random.randrange(2) for _ in range(3 * BLOCK)]
            found += is_right(store.get(tokens), tokens)
        if budget > 6000:  # of a smaller one, a writer may have been killed between making room and filling it
            assert found
        last = [round_] * BLOCK
        keep(store, last)
        assert is_right(store.get(last), last)


def test_a_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(NarrowsError, match=f"{file}.* is no place for a cache"):
        store_in(file / "cache")


def test_a_full_disk_is_reported_once_and_reading_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_in(tmp_path)
    keep(store, [1] * BLOCK)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for number in (2, 3):
        keep(store, [number] * BLOCK)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path} takes no more prefixes (No space left on device); the engine goes on without."
    ]
    assert is_right(store.get([1] * BLOCK), [1] * BLOCK)
    assert len(list(tmp_path.iterdir())) == 1


def die_while_writing(directory: Path, tokens: list[int], write: int, moment: str) -> None:
    """Keep three pieces one behind the other, and be killed at this moment of this write. Never returns."""
    written, write_bytes, replace = itertools.count(), Path.write_bytes, os.replace

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dying_replace(*names: Path) -> None:
        replace(*names)
        die()

    def dying_write(path: Path, body: bytes) -> int:
        if next(written) == write:
            if moment == "before it is written":
                die()
            write_bytes(path, body[: len(body) // 2])
            if moment == "half written":
                die()
            write_bytes(path, body)
            if moment == "before its name":
                die()
            os.replace = dying_replace  # type: ignore[assignment]
        return write_bytes(path, body)

    try:
        Path.write_bytes = dying_write  # type: ignore[method-assign, assignment]
        store = store_in(directory)
        for blocks in (1, 2, 3):
            keep(store, tokens[: blocks * BLOCK])
    finally:
        os._exit(1)


@pytest.mark.parametrize("moment", ["before it is written", "half written", "before its name", "behind its name"])
@pytest.mark.parametrize("write", [0, 1, 2])
def test_a_writer_killed_at_any_moment_of_any_write_spoils_nothing(tmp_path: Path, write: int, moment: str) -> None:
    """Every write in turn, in a process that shares nothing with us but the directory."""
    tokens = [number % 7 for number in range(3 * BLOCK)]
    child = os.fork()
    if not child:
        die_while_writing(tmp_path, tokens, write, moment)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    store = store_in(tmp_path)
    pieces = store.get(tokens)
    assert len(pieces) == write + (moment == "behind its name")
    assert not pieces or is_right(pieces, tokens)
    for blocks in (1, 2, 3):
        keep(store, tokens[: blocks * BLOCK])
    assert is_right(store_in(tmp_path).get(tokens), tokens)
    assert store.get(tokens)[-1].state.length == 3 * BLOCK
