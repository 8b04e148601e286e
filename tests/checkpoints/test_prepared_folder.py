"""Prepared files that nobody uses go when another is made; those that somebody uses, and the last used, stay."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from narrows.checkpoints.prepared import prepare
from narrows.checkpoints.prepared_folder import make_room
from narrows.model.presets import TINY
from tests.checkpoints.models import edit_json, write

ROOM = 1000
DAY = 24 * 60 * 60

# Maps the prepared weights of argv[1], says so, and waits for a line on standard input.
USER = """
import sys
from narrows.checkpoints.prepared import prepare
weights = prepare(sys.argv[1], "bf16").plain("embed.weight")
print("mapped", flush=True)
sys.stdin.readline()
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".prepared") for path in folder.iterdir())


def used(path: Path, days: float) -> None:
    """Say that it was last used so many days ago."""
    os.utime(path, (time.time() - days * DAY, path.stat().st_mtime))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files a, b and c of 100 bytes, used in this order; all files together have ROOM bytes of disk."""

    def usage(path: Path) -> object:
        return really(path)._replace(free=ROOM - sum(file.stat().st_size for file in path.iterdir()))

    really = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", usage)
    for days, name in ((3, "a"), (2, "b"), (1, "c")):
        (tmp_path / f"{name}.prepared").write_bytes(bytes(100))
        used(tmp_path / f"{name}.prepared", days)
    return tmp_path


@pytest.mark.parametrize(
    ("needed", "left"),
    [(0, "abc"), (200, "abc"), (201, "bc"), (300, "bc"), (301, "c"), (500, ""), (501, ""), (1000, ""), (1001, "abc")],
)
def test_the_least_recently_used_make_room(folder: Path, needed: int, left: str) -> None:
    """Half of what the disk has is theirs; a file larger than that is alone; one that cannot fit costs nothing."""
    make_room(folder, needed)
    assert names(folder) == list(left)


def test_what_is_not_used_for_long_goes(folder: Path) -> None:
    used(folder / "b.prepared", 31)
    used(folder / "c.prepared", 29)
    make_room(folder, 0)
    assert names(folder) == ["a", "c"]


def test_other_files_stay(folder: Path) -> None:
    for name in ("notes", "prepared"):
        (folder / name).touch()
        used(folder / name, 100)
    make_room(folder, 500)
    assert names(folder) == ["notes", "prepared"]


def test_what_another_deletes_meanwhile_is_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as room that was made."""

    def late(path: Path, *arguments: object, **options: object) -> object:
        if path.name == "a.prepared":
            path.unlink()
        return really(path, *arguments, **options)  # type: ignore[arg-type]

    really = Path.open
    monkeypatch.setattr(Path, "open", late)
    make_room(folder, 201)
    assert names(folder) == ["b", "c"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NARROWS_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "model", TINY, precision="float32")
    return tmp_path / "model"


def test_what_a_process_maps_stays(model: Path, tmp_path: Path) -> None:
    """Whether it made the file or found it; and until it ends, however long ago it began."""
    cache = tmp_path / "cache/prepared"
    for made in (True, False):
        command = [sys.executable, "-c", USER, str(model)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "mapped\n"
            (name,) = names(cache)
            used(cache / f"{name}.prepared", 100)
            make_room(cache, 0)
            assert names(cache) == [name], made
            process.communicate("\n")
    used(cache / f"{name}.prepared", 100)
    make_room(cache, 0)
    assert names(cache) == []


def test_a_tensor_keeps_its_file(model: Path, tmp_path: Path) -> None:
    weight = prepare(model, "bf16").plain("norm.weight")
    (file,) = (tmp_path / "cache/prepared").iterdir()
    used(file, 100)
    make_room(file.parent, 0)
    assert file.exists()
    del weight
    make_room(file.parent, 0)
    assert not file.exists()


def test_use_is_remembered_and_making_another_makes_room(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache/prepared"
    prepare(model, "bf16")
    prepare(model, "fp8")
    for file in cache.iterdir():
        used(file, 100)
    kept = prepare(model, "fp8").path
    assert kept is not None
    assert len(names(cache)) == 2  # nothing goes until there is something to make
    edit_json(model / "config.json", rms_norm_eps=1e-5)
    other = prepare(model, "bf16").path
    assert other is not None
    assert names(cache) == sorted((kept.stem, other.stem))
