"""A build gives the same bytes however it runs, leaves nothing half written, and goes on where it was stopped."""

import datetime
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from narrows.corpus.build import build_corpus
from narrows.corpus.files import working_folder
from narrows.corpus.package_list import read_package_list
from narrows.corpus.shards import Corpus
from narrows.errors import NarrowsError, UsageError
from tests.corpus.wheels import make_sdist, make_wheel, module, use_index

SHARED = module("shared", functions=12)
NEARLY = SHARED.replace("shared_5", "renamed", 1)
PACKAGES: dict[str, dict[str, str | bytes]] = {
    "alpha": {
        "alpha/__init__.py": "from alpha.work import work_0\n",
        "alpha/work.py": module("work", imports="from . import base"),
        "alpha/base.py": module("base"),
        "alpha/shared.py": SHARED,
        "alpha/old.py": "print 'Python 2'\n",
    },
    "beta": {"beta/same.py": SHARED, "beta/nearly.py": NEARLY, "beta/own.py": module("own")},
    "gamma": {f"gamma/m{number}.py": module(f"gamma{number}") for number in range(8)},
    "young": {"young/main.py": module("young"), "young/copied.py": SHARED.replace("shared_7", "moved", 1)},
}
LIST = """
format = 1
[tokenizer]
vocab_size = 600
[train]
packages = ["gamma", "alpha", "beta"]
[held_out]
first_release_after = 2025-03-01
packages = ["young"]
"""


class Place:
    """A folder with an index of wheels, a list, and the archives that builds share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = folder / "index"
        for name, files in PACKAGES.items():
            make_wheel(self.index, name, files, licence_files={"LICENSE": "the MIT license"})
        self.list = self.write_list(LIST)

    def write_list(self, text: str) -> Path:
        path = self.folder / "list.toml"
        path.write_text(text, encoding="utf-8")
        return path

    def build(self, name: str, work: str = "work", processes: int = 1) -> Path:
        destination = self.folder / name
        build_corpus(read_package_list(self.list), destination, self.folder / work, processes)
        return destination


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = Place(tmp_path)
    use_index(monkeypatch, place.index)
    return place


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Where `corpus` has been built from the packages above."""
    place = Place(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_index(monkeypatch, place.index)
        place.build("corpus")
    return place


@pytest.fixture
def stocked(place: Place, finished: Place) -> Place:
    """A place that has its archives already."""
    shutil.copytree(finished.folder / "work" / "archives", place.folder / "work" / "archives")
    shutil.copy(finished.folder / "list.lock.json", place.folder)
    return place


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if "partial" in path.name]


def test_what_it_comes_to(finished: Place) -> None:
    corpus = Corpus(finished.folder / "corpus")
    described = json.loads((finished.folder / "corpus" / "corpus.json").read_text())
    paths = {
        split: [corpus.path(split, index) for index in range(corpus.documents(split))]
        for split in ("train", "held_out")
    }
    assert paths["train"][:4] == ["alpha/base.py", "alpha/work.py", "alpha/__init__.py", "alpha/shared.py"]
    assert paths["train"][4:] == ["beta/own.py", *sorted(PACKAGES["gamma"])]
    # What is held out is unlike all that is learnt, and it is not the other way round.
    assert paths["held_out"] == ["young/main.py"]
    for split, names in paths.items():
        for index, path in enumerate(names):
            assert corpus.text(split, index) == PACKAGES[path.split("/")[0]][path]
    packages = {entry["name"]: entry for entry in described["packages"]}
    assert packages["beta"]["left_out"] == {"duplicate": 1, "near duplicate": 1}
    assert packages["alpha"]["left_out"] == {"unparsable": 1}
    assert packages["young"] == {
        "name": "young",
        "version": "1.0",
        "split": "held_out",
        "licence": "MIT",
        "licence_found_in": "License-Expression",
        "licence_files": ["LICENSE"],
        "archives": [
            {
                "version": "1.0",
                "file": "young-1.0-py3-none-any.whl",
                "sha256": packages["young"]["archives"][0]["sha256"],
                "dates": ["2025-06-01", "2025-06-01"],
            }
        ],
        "kept": 1,
        "left_out": {"near duplicate": 1},
    }
    assert (finished.folder / "corpus" / "left-out.txt").read_text().splitlines() == [
        "alpha alpha/old.py unparsable",
        "beta beta/nearly.py near duplicate",
        "beta beta/same.py duplicate",
        "young young/copied.py near duplicate",
    ]


def test_the_same_bytes(place: Place, finished: Place) -> None:
    """From the index anew, in two processes, in another order of the list, from kept steps."""
    expected = contents(finished.folder / "corpus")
    place.write_list(LIST.replace('"gamma", "alpha", "beta"', '"beta", "gamma", "Alpha"'))
    assert contents(place.build("first", processes=2)) == expected
    assert contents(place.build("second")) == expected


def test_the_order_inside_the_archives_does_not_matter(place: Place, finished: Place) -> None:
    first = contents(finished.folder / "corpus")
    for name, files in PACKAGES.items():
        members = list(files)
        random.Random(1).shuffle(members)
        make_wheel(place.index, name, {member: files[member] for member in members}, licence_files={"LICENSE": "MIT"})
    second = contents(place.build("second"))
    # Only the archives' own checksums differ.
    assert {name for name in first if first[name] != second[name]} == {"corpus.json", "SHA256SUMS"}


def test_pinned(place: Place, finished: Place) -> None:
    """A newer release changes nothing, and once the archives are here no index is needed."""
    make_wheel(place.index, "alpha", {"alpha/new.py": module("new")}, version="2.0")
    shutil.copy(finished.folder / "list.lock.json", place.folder)
    assert contents(place.build("first")) == contents(finished.folder / "corpus")
    shutil.rmtree(place.index)
    assert contents(place.build("second")) == contents(finished.folder / "corpus")


COMMAND = [sys.executable, "-m", "narrows.cli.main", "data", "build"]


def run(place: Place, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, str(place.list), str(place.folder / "corpus"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("moment", "sign"),
    [
        ("archives/*/*.whl", signal.SIGKILL),
        ("gathered/*", signal.SIGKILL),
        ("gathered/*", signal.SIGINT),
        ("tokenizers/*/tokenizer.json", signal.SIGKILL),
        ("tokens/*", signal.SIGKILL),
    ],
)
def test_interrupted_and_started_again(stocked: Place, finished: Place, moment: str, sign: signal.Signals) -> None:
    """Stopped as soon as a step has its first result: nothing there, no process left, and then the same bytes."""
    corpus, work = stocked.folder / "corpus", stocked.folder / "work"
    if moment.startswith("archives"):
        shutil.rmtree(work)
        (stocked.folder / "list.lock.json").unlink()
    command = [*COMMAND, str(stocked.list), str(corpus), "--work", str(work)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        until(lambda: any(work.glob(moment)) or process.poll() is not None)
        process.send_signal(sign)
        process.wait()
        if process.returncode:  # else it was faster than we are
            assert process.returncode == (130 if sign == signal.SIGINT else -sign)
            assert not corpus.exists()
        until(lambda: not alive(process.pid))
    if process.returncode:
        stocked.build("corpus")
    assert contents(corpus) == contents(finished.folder / "corpus")


def until(condition: object) -> None:
    end = time.monotonic() + 300  # on a busy machine pip alone takes a minute
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def alive(group: int) -> bool:
    """Whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def limited(size: int) -> dict[str, object]:
    """Options of a process in which, and in whose own processes, no file may grow beyond `size` bytes."""
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (1_000, "gathered/"),
        (10_000, "tokenizers/"),
    ],
)
def test_a_disk_with_no_room(stocked: Place, finished: Place, size: int, said: str) -> None:
    """One sentence that names what could not be written; no corpus; and the next build makes it all the same."""
    found = run(stocked, "--work", str(stocked.folder / "work"), **limited(size))
    assert found.returncode == 1
    assert "Traceback" not in found.stderr
    problem = found.stderr.splitlines()[-1]
    assert found.stderr.count("not written") == 1
    assert said in problem
    assert "not written" in problem
    assert not (stocked.folder / "corpus").exists()
    assert leftovers(stocked.folder) == []
    assert contents(stocked.build("corpus")) == contents(finished.folder / "corpus")


def test_no_room_for_downloads(place: Place) -> None:
    found = run(place, **limited(500))
    assert found.returncode == 1
    assert "nothing can be downloaded; make room" in found.stderr
    assert "Traceback" not in found.stderr


def change(place: Place, old: str, new: str) -> None:
    assert old in LIST
    place.write_list(LIST.replace(old, new))


def test_every_package_that_cannot_be_taken_is_named(place: Place) -> None:
    """All at once, one a line: nobody mends a list of a hundred by a hundred builds."""
    make_wheel(place.index, "closed", {"closed.py": module("closed")}, licence="License-Expression: LicenseRef-Ours")
    make_wheel(place.index, "copyleft", {"copyleft.py": module("copyleft")}, licence="License: GPLv3")
    change(place, '"gamma"', '"gamma", "closed", "copyleft"')
    with pytest.raises(NarrowsError) as error:
        place.build("corpus")
    assert [line.split()[0] for line in str(error.value).splitlines()] == ["closed", "copyleft"]
    change(place, '"gamma"', '"gamma", "absent", "sourceonly"')
    make_sdist(place.index, "sourceonly", "raise SystemExit('run!')")
    with pytest.raises(NarrowsError) as error:
        place.build("corpus")
    lines = str(error.value).splitlines()
    assert [line.split("(")[0] for line in lines] == [
        "no wheel of absent can be had ",
        "no wheel of sourceonly can be had ",
    ]
    assert not (place.folder / "corpus").exists()
    assert leftovers(place.folder) == []


def test_an_old_package_cannot_be_held_out(place: Place) -> None:
    """However new its newest release is."""
    make_wheel(place.index, "young", PACKAGES["young"], version="0.1a1", date=datetime.date(2024, 12, 1))
    with pytest.raises(NarrowsError, match=r"young is too old for \[held_out\]: young-0\.1a1-py3-none-any\.whl"):
        place.build("corpus")


def test_broken_archives(stocked: Place, finished: Place) -> None:
    for wheel in (stocked.folder / "work" / "archives").glob("*/alpha-*.whl"):
        wheel.write_bytes(wheel.read_bytes()[:200])
    assert contents(stocked.build("corpus")) == contents(finished.folder / "corpus")  # fetched again
    make_wheel(stocked.index, "alpha", {"../../evil.py": module("evil")})
    (stocked.folder / "list.lock.json").unlink()
    with pytest.raises(NarrowsError, match=r"alpha-1\.0-py3-none-any\.whl holds a file named .*evil"):
        stocked.build("other")
    assert list(stocked.folder.rglob("evil.py")) == []


def test_a_tokenizer_that_exists(stocked: Place, finished: Place) -> None:
    change(stocked, "vocab_size = 600", f'directory = "{finished.folder / "corpus"}"')
    assert contents(stocked.build("corpus")) == contents(finished.folder / "corpus")
    change(stocked, "vocab_size = 600", 'directory = "absent"')
    with pytest.raises(NarrowsError, match=r"absent/tokenizer\.json does not exist"):
        stocked.build("other")


def test_one_build_at_a_time_in_a_working_folder(stocked: Place) -> None:
    with working_folder(stocked.folder / "work"), pytest.raises(NarrowsError, match="working folder of another build"):
        stocked.build("corpus")
    leftover = stocked.folder / "work" / "tokens" / ".alpha.partial-0123"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    stocked.build("corpus")
    assert leftovers(stocked.folder) == []


def test_folders_above_the_destination_are_made(stocked: Place) -> None:
    """As in `narrows data build LIST runs/corpus` in a fresh clone."""
    assert (stocked.build("runs/corpus", "runs/corpus.work") / "corpus.json").is_file()


def test_a_destination_that_exists(place: Place) -> None:
    (place.folder / "corpus").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        place.build("corpus")
    assert not (place.folder / "work").exists()


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({}, 0, ""),
        ({'"alpha"': '"alpha", "Alpha"'}, 2, "alpha is listed twice in [train]; keep one."),
        ({"format = 1": "format = 1\nextra = 1"}, 2, "unknown field 'extra'"),
        ({'"alpha"': '"absent"'}, 1, "no wheel of absent can be had"),
    ],
)
def test_the_command(place: Place, changes: Mapping[str, str], code: int, said: str) -> None:
    for old, new in changes.items():
        change(place, old, new)
    found = run(place)
    assert found.returncode == code
    assert "Traceback" not in found.stderr
    if code:
        assert found.stderr.splitlines()[-1].startswith("narrows: ")
        assert said in found.stderr
        assert not (place.folder / "corpus").exists()
    else:
        train, held_out, left_out, last = found.stdout.splitlines()
        assert train.startswith("train: 13 documents, ")
        assert held_out.startswith("held_out: 1 documents, ")
        assert left_out == "left out: 2 near duplicate, 1 duplicate, 1 unparsable"
        assert (place.folder / "corpus.work" / "archives").is_dir()
        assert last.startswith(str(place.folder / "corpus"))
