"""A written directory is complete or absent: after errors, kills, full disks, and beside other writers."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from narrows.checkpoints.checkpoint import Checkpoint
from narrows.checkpoints.directory import check_new, new_directory
from narrows.checkpoints.load import load_network
from narrows.checkpoints.save import save_network
from narrows.checkpoints.write import Plan, write_checkpoint
from narrows.errors import NarrowsError, UsageError
from narrows.model.precision import Precision
from tests.checkpoints.models import assert_same_weights, flip_bit, make_network, write

# Converts argv[1] to argv[2]; before weight number argv[3] it says so and waits for a line on standard input.
WRITER = """
import sys
from pathlib import Path
from narrows.checkpoints.checkpoint import Checkpoint
from narrows.checkpoints.write import Plan, write_checkpoint
from narrows.model.precision import Precision

remaining = int(sys.argv[3])

def pause(size):
    global remaining
    remaining -= 1
    if remaining == 0:
        print("paused", flush=True)
        sys.stdin.readline()

checkpoint = Checkpoint(sys.argv[1])
plan = Plan(checkpoint, Precision.FLOAT32, shard_bytes=300_000)
try:
    write_checkpoint(checkpoint, plan, sys.argv[2], progress=pause)
except Exception as error:
    print(type(error).__name__, error)
"""


@contextmanager
def paused_writer(source: Path, destination: Path, weights: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WRITER, str(source), str(destination), str(weights)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "paused\n"
            yield process
        finally:
            process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_writer_leaves_no_directory_and_the_next_cleans_up(tmp_path: Path) -> None:
    network = write(tmp_path / "source", precision="float32")
    weights = len(Checkpoint(tmp_path / "source").shapes)
    (tmp_path / "out").mkdir()
    destination = tmp_path / "out" / "model [1]*"
    for number in (1, weights):
        with paused_writer(tmp_path / "source", destination, number) as process:
            process.send_signal(signal.SIGKILL)
        assert not destination.exists()
        (rest,) = names(tmp_path / "out")  # the hidden rest of this one, none of the one before
        assert rest.startswith(f".{destination.name}.partial-")
        assert "config.json" in names(tmp_path / "out" / rest)
        assert "SHA256SUMS" not in names(tmp_path / "out" / rest)
        with pytest.raises(NarrowsError):
            Checkpoint(tmp_path / "out" / rest)
    save_network(network, destination, precision="float32")
    assert names(tmp_path / "out") == [destination.name]
    assert_same_weights(load_network(destination), network)


def test_two_writers_of_one_destination(tmp_path: Path) -> None:
    """The one that ends first wins; the other is told, and neither disturbs the other's files."""
    network = write(tmp_path / "source", precision="float32")
    (tmp_path / "out").mkdir()
    with paused_writer(tmp_path / "source", tmp_path / "out/model", 20) as process:
        save_network(network, tmp_path / "out/model", precision="float32")
        assert len(names(tmp_path / "out")) == 2
        said, _ = process.communicate("\n")
    assert "UsageError" in said
    assert "model exists already" in said
    assert names(tmp_path / "out") == ["model"]
    assert_same_weights(load_network(tmp_path / "out/model"), network)


def test_a_writer_that_finishes_while_another_looks_for_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory is listed as a rest, and renamed before it is opened: that is no error of the other's."""
    (tmp_path / ".model.partial-0").mkdir()
    really_open = os.open

    def open_late(path: str | Path, flags: int) -> int:
        if Path(path).name == ".model.partial-0":
            Path(path).rename(tmp_path / "finished")
        return really_open(path, flags)

    monkeypatch.setattr(os, "open", open_late)
    with new_directory(tmp_path / "model"):
        pass
    assert names(tmp_path) == ["finished", "model"]


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(size: int) -> None:
        raise KeyboardInterrupt

    write(tmp_path / "source")
    checkpoint = Checkpoint(tmp_path / "source")
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(checkpoint, Plan(checkpoint, Precision.FP8), tmp_path / "out/model", progress=interrupt)
    assert names(tmp_path / "out") == []


def test_a_damaged_source_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path / "source")
    flip_bit(tmp_path / "source/model.safetensors", -1)
    checkpoint = Checkpoint(tmp_path / "source")
    (tmp_path / "out").mkdir()
    with pytest.raises(NarrowsError, match=r"model\.safetensors is damaged"):
        write_checkpoint(checkpoint, Plan(checkpoint, Precision.FP8), tmp_path / "out/model")
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize("limit", [0, 100, 5_000, 200_000])
def test_a_file_that_grows_too_large_leaves_nothing(tmp_path: Path, limit: int) -> None:
    network = make_network()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(NarrowsError, match="model was not written: a file of it is larger than may be"):
            save_network(network, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        with new_directory(folder) as partial:
            (partial / "weights").write_bytes(bytes(10))
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NarrowsError, match="model was not written: the disk is full"):
        fill(tmp_path / "model")
    assert names(tmp_path) == []


def test_a_disk_without_room_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(NarrowsError, match="needs 1,001 bytes, but its disk has 1,000 free"):
        check_new(tmp_path / "model", 1001)
    check_new(tmp_path / "model", 1000)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("name", ["model", "new/model"])
def test_a_folder_without_permission(tmp_path: Path, name: str) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(NarrowsError, match=f"{tmp_path} cannot be written to"):
        save_network(make_network(), tmp_path / name)
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder in which not even root can write")
def test_a_folder_that_nobody_can_write_in() -> None:
    with (
        pytest.raises(NarrowsError, match=r"/proc/model was not written \(.*\); nothing is left of it"),
        new_directory(Path("/proc/model")),
    ):
        pytest.fail("there is such a directory")


def test_existing_destinations_stay_as_they_are(tmp_path: Path) -> None:
    network = make_network()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "folder", "link"):
        with pytest.raises(UsageError, match=f"{name} exists already"):
            save_network(network, tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path) == ["file", "folder", "link"]
    assert names(tmp_path / "folder") == []


def test_folders_above_it_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = make_network()
    save_network(network, "new/folders/model", precision="float32")
    assert names(tmp_path / "new/folders") == ["model"]
    assert_same_weights(load_network(tmp_path / "new/folders/model"), network)


def test_a_disk_without_room_gets_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the disk of the nearest folder that there is."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", {tmp_path: usage}.__getitem__)
    with pytest.raises(NarrowsError, match=f"{tmp_path}/new/folders/model needs .* 1,000 free"):
        save_network(make_network(), tmp_path / "new/folders/model")
    assert names(tmp_path) == []


def test_what_is_above_it_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        for below in ("model", "new/model"):
            with pytest.raises(UsageError, match=rf"{name} is not a folder, so \S+/{name}/{below} cannot be made"):
                save_network(make_network(), tmp_path / name / below)
    assert names(tmp_path) == ["file", "link"]


def test_the_directory_appears_at_the_end_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with new_directory(Path("model")) as partial:
        (partial / "weights").write_bytes(bytes(10))
        assert not Path("model").exists()
        assert partial.parent == tmp_path
        assert partial.name.startswith(".model.partial-")
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model/weights").read_bytes() == bytes(10)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def test_networks_on_other_dtypes_are_written(tmp_path: Path) -> None:
    network = make_network().to(torch.float64)
    save_network(network, tmp_path / "model", precision="float32")
    loaded = load_network(tmp_path / "model", dtype=torch.float64)
    assert loaded.head.weight.dtype == loaded.norm.weight.dtype == torch.float64
    assert_same_weights(loaded, network)
