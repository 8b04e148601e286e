"""Prepared weights: those of the checkpoint in this precision, made once, whole or made anew, mapped and not read."""

from __future__ import annotations

import errno
import json
import logging
import mmap
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from narrows.checkpoints import prepared as module
from narrows.checkpoints import prepared_file
from narrows.checkpoints.checkpoint import Checkpoint
from narrows.checkpoints.load import load_network
from narrows.checkpoints.prepared import PRECISIONS, Prepared, own_precision, prepare
from narrows.checkpoints.prepared_file import Contents
from narrows.checkpoints.save import save_network
from narrows.errors import NarrowsError, UsageError
from narrows.model.config import ModelConfig
from narrows.model.network import Network
from narrows.model.precision import Format, Precision, weight_format
from narrows.model.presets import PRESETS, TINY
from narrows.ops.packed import pack, unpack
from tests.checkpoints.models import ODD, edit_json, edit_tensors, flip_bit, make_network, write

# TINY in sizes of which no part but the stacks of experts fills whole blocks.
SMALL = TINY.model_copy(update={"num_hidden_layers": 3, "layer_types": TINY.layer_types[:3]})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test's own cache folder."""
    monkeypatch.setenv("NARROWS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/prepared"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write(tmp_path / "model", SMALL, precision="float32")
    return tmp_path / "model"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(prepared: Prepared) -> dict[str, Tensor]:
    """Every tensor by its name, copied: unpacked to float32, or as it is."""
    return {
        name: unpack(prepared.packed(name)) if prepared.is_packed(name) else prepared.plain(name).clone()
        for name in prepared.names
    }


def expected(network: Network) -> dict[str, Tensor]:
    """The network's weights under the names that they have when prepared."""
    found = {}
    for name, tensor in network.state_dict().items():
        stem, _, leaf = name.rpartition(".")
        if not stem.endswith(".experts"):
            found[name] = tensor
            continue
        for expert, matrix in enumerate(tensor):
            parts = {"w2": matrix} if leaf == "w2" else dict(zip(("w1", "w3"), matrix.chunk(2), strict=True))
            found |= {f"{stem}.{expert}.{part}": weight for part, weight in parts.items()}
    return found


def assert_holds(prepared: Prepared, network: Network) -> None:
    """The same names, and equal values."""
    found, wanted = contents(prepared), expected(network)
    assert sorted(found) == sorted(wanted)
    for name, tensor in found.items():
        assert torch.equal(tensor.to(wanted[name].dtype), wanted[name]), name
    assert prepared.config == network.config


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("config", [TINY, ODD], ids=["tiny", "odd"])
def test_what_is_prepared_is_the_checkpoint_in_that_precision(
    tmp_path: Path, config: ModelConfig, precision: Precision
) -> None:
    """Whether it is rounded here, or was before."""
    write(tmp_path / "exact", config, precision="float32")
    write(tmp_path / "rounded", config, precision=precision)
    rounded = load_network(tmp_path / "rounded")
    for source in ("exact", "rounded"):
        prepared = prepare(tmp_path / source, precision)
        assert prepared.precision is precision
        assert prepared.mtp
        assert_holds(prepared, rounded)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensors_have_the_formats_that_kernels_expect(model: Path, precision: Precision) -> None:
    prepared = prepare(model, precision)
    for name in prepared.names:
        if prepared.is_packed(name):
            official = f"{name}.weight" if ".experts." in name and not name.endswith(".weight") else name
            assert Format(prepared.packed(name).format) is weight_format(official, precision)
            with pytest.raises(KeyError):
                prepared.plain(name)
        else:
            tensor = prepared.plain(name)
            assert tensor.dtype == (
                torch.bfloat16 if name == "embed.weight" else torch.int32 if "tid2eid" in name else torch.float32
            )
            with pytest.raises(KeyError):
                prepared.packed(name)
    plain = {name for name in prepared.names if not prepared.is_packed(name)}
    leaves = {name.rpartition(".")[2] for name in plain}
    assert leaves == {"weight", "fn", "base", "scale", "attn_sink", "ape", "bias", "tid2eid"}
    assert all("norm" in name or name == "embed.weight" for name in plain if name.endswith(".weight"))
    assert {"head.weight", "layers.0.ffn.gate.weight", "layers.0.ffn.experts.3.w1", "mtp.0.h_proj.weight"} <= (
        set(prepared.names) - plain
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_codes_of_the_same_format_are_taken_as_they_are(tmp_path: Path, precision: Precision) -> None:
    """Also those that quantising would not give: of blocks whose scale could be smaller."""

    def halve(stored: dict[str, Tensor]) -> None:
        for name, tensor in stored.items():
            if tensor.dtype == torch.float8_e8m0fnu:
                stored[name] = (tensor.view(torch.uint8) + 3).view(torch.float8_e8m0fnu)
            elif tensor.dtype == torch.float8_e4m3fn:
                stored[name] = (tensor.float() / 8).to(tensor.dtype)

    write(tmp_path / "model", ODD, precision=precision)
    edit_tensors(tmp_path / "model", halve)
    prepared, checkpoint = prepare(tmp_path / "model", precision), Checkpoint(tmp_path / "model")
    seen = set()
    for name, slot in checkpoint.slots.items():
        ours = name.removesuffix(".weight") if slot.index else slot.ours
        if prepared.is_packed(ours):
            stored = checkpoint.encoded(name)
            wanted, found = pack(stored.values, stored.scale), prepared.packed(ours)
            assert torch.equal(wanted.values, found.values)
            assert torch.equal(wanted.scales, found.scales)
            seen.add(found.format)
    assert len(seen) == {"bf16": 1, "fp8": 2, "official": 3}[precision]


def test_a_checkpoint_without_mtp(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    def drop(stored: dict[str, Tensor]) -> None:
        for name in [name for name in stored if name.startswith("mtp.")]:
            del stored[name]

    edit_tensors(model, drop)
    for _ in range(2):  # made, and opened
        caplog.clear()
        prepared = prepare(model, "bf16")
        assert not prepared.mtp
        assert not any(name.startswith("mtp.") for name in prepared.names)
        assert "has no MTP weights" in caplog.text


# -- one file, made once ----------------------------------------------------------------------------------------------


def test_it_is_made_once(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(model, "fp8")
    (name,) = names(cache)
    before = (cache / name).stat()
    assert first.path == cache / name
    assert first.bytes == before.st_size
    monkeypatch.setattr(module, "Checkpoint", None)  # not even its headers are read again
    second = prepare(model, Precision.FP8)
    assert names(cache) == [name]
    after = (cache / name).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert second.names == first.names
    assert second.config == first.config


def test_a_prepared_file_outlives_its_name(model: Path, cache: Path) -> None:
    prepared = prepare(model, "official")
    shutil.rmtree(cache)
    shutil.rmtree(model)
    assert len(contents(prepared)) == len(prepared.names)


def test_another_precision_or_checkpoint_is_another_file(model: Path, cache: Path, tmp_path: Path) -> None:
    prepare(model, "bf16")
    prepare(model, "fp8")
    assert len(names(cache)) == 2
    shutil.copytree(model, tmp_path / "copy")  # checksums and times tell that it is the same
    prepare(tmp_path / "copy", "bf16")
    assert len(names(cache)) == 2
    shutil.rmtree(tmp_path / "copy")
    save_network(make_network(SMALL, seed=1), tmp_path / "copy", precision="float32")
    other = prepare(tmp_path / "copy", "bf16")
    assert len(names(cache)) == 3
    assert not torch.equal(other.plain("embed.weight"), prepare(model, "bf16").plain("embed.weight"))
    edit_json(model / "config.json", rms_norm_eps=1e-5)
    assert prepare(model, "bf16").config.rms_norm_eps == 1e-5
    assert len(names(cache)) == 4


def test_a_changed_shard_without_checksums_is_another_file(model: Path, cache: Path) -> None:
    (model / "SHA256SUMS").unlink()
    prepare(model, "bf16")
    shard = model / "model.safetensors"
    changed = shard.stat().st_mtime_ns + 1
    edit_tensors(model, lambda stored: stored["norm.weight"].mul_(2))
    os.utime(shard, ns=(changed, changed))
    after = prepare(model, "bf16")
    assert len(names(cache)) == 2
    assert torch.equal(after.plain("norm.weight"), load_network(model).norm.weight.bfloat16().float())


def test_a_shard_in_the_place_of_another_is_noticed(model: Path, tmp_path: Path) -> None:
    """Of the same size, beside a checksum that is not its own: as damaged as it is for `load_network`."""
    prepare(model, "bf16")
    save_network(make_network(SMALL, seed=1), tmp_path / "other", precision="float32")
    shard = model / "model.safetensors"
    size = shard.stat().st_size
    shutil.copyfile(tmp_path / "other/model.safetensors", shard)
    assert shard.stat().st_size == size
    for load in (load_network, lambda directory: prepare(directory, "bf16")):
        with pytest.raises(NarrowsError, match=r"model\.safetensors is damaged"):
            load(model)
    (model / "SHA256SUMS").unlink()
    wanted = load_network(tmp_path / "other").norm.weight
    assert torch.equal(prepare(model, "bf16").plain("norm.weight"), wanted.bfloat16().float())


def test_a_checkpoint_that_changes_while_it_is_read_is_noticed(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(checkpoint: Checkpoint, name: str, precision: Precision) -> object:
        edit_json(model / "config.json", rms_norm_eps=1e-5)
        return really(checkpoint, name, precision)

    really = module._tensor
    monkeypatch.setattr(module, "_tensor", late)
    with pytest.raises(NarrowsError, match="model was changed while it was read; try again"):
        prepare(model, "bf16")
    assert names(cache) == []


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def cut_to_head(path: Path) -> None:
    os.truncate(path, 50)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(64))


def flip(position: int) -> Callable[[Path], None]:
    return lambda path: flip_bit(path, position)


FLIPPED = {"magic": 0, "version": 16, "header size": 20, "size": 28, "made": 36, "digest": 48, "brace": 76}
FLIPPED |= {"header": 500, "middle": 400_000, "data": -65, "sum": -64, "end": -1}


@pytest.mark.parametrize(
    "damage",
    [cut, cut_to_head, grow, lambda path: os.truncate(path, 0), *map(flip, FLIPPED.values())],
    ids=["cut", "head", "grown", "empty", *FLIPPED],
)
def test_a_damaged_file_is_made_anew(
    model: Path, cache: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    wanted = contents(prepare(model, "official"))
    (name,) = names(cache)
    damage(cache / name)
    found = contents(prepare(model, "official"))
    assert f"{name} cannot be used (" in caplog.text
    assert names(cache) == [name]
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor)
    caplog.clear()
    prepare(model, "official")
    assert caplog.text == ""


def test_data_are_compared_only_if_the_file_was_changed(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy is compared once; what cannot keep its time, every time."""
    prepare(model, "bf16")
    (name,) = names(cache)
    shutil.copyfile(cache / name, cache / "copy")
    os.replace(cache / "copy", cache / name)
    compared = []
    monkeypatch.setattr(prepared_file, "_sum", lambda digest: compared.append(digest) or digest.ljust(64, b"\0"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", refuse(errno.EPERM))
        for times in (1, 2):
            prepare(model, "bf16")
            assert len(compared) == times
    prepare(model, "bf16")
    assert len(compared) == 3
    prepare(model, "bf16")
    assert len(compared) == 3


def refuse(code: int) -> Callable[..., None]:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("made", [True, False], ids=["made", "absent"])
def test_a_file_that_cannot_be_mapped_stays(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    """It may be whole: a limit, or another process, has taken the address space."""
    if made:
        prepare(model, "bf16")
        before = next(cache.iterdir()).stat()
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", refuse(errno.ENOMEM))
        if made:
            patch.setattr(module, "_fill", None)  # it must not write
        with pytest.raises(NarrowsError, match=rf"^{cache}/\S+ cannot be mapped \(Cannot allocate .*ulimit -v"):
            prepare(model, "bf16")
    (name,) = names(cache)
    monkeypatch.setattr(module, "_fill", None)
    assert prepare(model, "bf16").path == cache / name
    if made:
        assert (cache / name).stat().st_ino == before.st_ino


def test_a_file_that_cannot_be_read_stays(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(model, "bf16")
    (name,) = names(cache)
    monkeypatch.setattr(module, "_fill", None)  # it must not write
    with monkeypatch.context() as patch:
        patch.setattr(module, "Prepared", refuse(errno.EIO))
        with pytest.raises(NarrowsError, match=rf"{name}: the prepared weights cannot be read \(Input/output error\)"):
            prepare(model, "bf16")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse(errno.EACCES))
        with pytest.raises(NarrowsError, match=rf"{name}: .* cannot be read \(Permission denied\).* NARROWS_CACHE"):
            module._opened(cache / name)
    assert prepare(model, "bf16").path == cache / name


def test_reading_what_was_written_is_not_called_writing(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Prepared", refuse(errno.EIO))
    with pytest.raises(NarrowsError, match="cannot be read"):
        prepare(model, "bf16")


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_a_header_says_what_its_configuration_is(config: ModelConfig) -> None:
    header = Contents(config, Precision.FP8, {})
    assert Contents.parse(header._header).config == config


def test_a_header_of_other_code_is_not_believed(model: Path) -> None:
    header = json.loads(Contents(TINY, Precision.FP8, {})._header)
    header["config"]["unheard_of"] = 1
    with pytest.raises((ValueError, NarrowsError)):
        Contents.parse(json.dumps(header, separators=(",", ":")).encode())


# -- processes beside each other --------------------------------------------------------------------------------------

# Prepares argv[1] as argv[2]; before tensor number argv[3] it says so and waits for a line on standard input.
WRITER = """
import sys
from narrows.checkpoints import prepared

really, remaining = prepared._tensor, int(sys.argv[3])

def pause(*arguments):
    global remaining
    remaining -= 1
    if remaining == 0:
        print("paused", flush=True)
        sys.stdin.readline()
    return really(*arguments)

prepared._tensor = pause
print(prepared.prepare(sys.argv[1], sys.argv[2]).path)
"""


@contextmanager
def paused_writer(source: Path, tensors: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WRITER, str(source), "official", str(tensors)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "paused\n"
            yield process
        finally:
            process.kill()


def test_a_killed_writer_leaves_nothing_that_is_used(model: Path, cache: Path, tmp_path: Path) -> None:
    write(tmp_path / "rounded", SMALL, precision="official")
    for number in (1, len(Checkpoint(model).shapes)):
        with paused_writer(model, number) as process:
            process.send_signal(signal.SIGKILL)
        (rest,) = names(cache)
        assert rest.endswith(".unfinished")
    assert_holds(prepare(model, "official"), load_network(tmp_path / "rounded"))
    (made,) = names(cache)
    assert made.endswith(".prepared")


def test_what_a_killed_writer_left_of_another_file_is_removed(model: Path, cache: Path) -> None:
    with paused_writer(model, 2) as process:
        prepare(model, "bf16")
        assert len(names(cache)) == 2  # it is still being written
        process.send_signal(signal.SIGKILL)
    prepare(model, "fp8")
    assert len(names(cache)) == 2
    assert all(name.endswith(".prepared") for name in names(cache))


def test_who_comes_second_waits_and_takes_what_the_first_made(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with paused_writer(model, 5) as process:
        monkeypatch.setattr(module, "_fill", None)  # it must not write
        found: list[Prepared] = []
        waiting = threading.Thread(target=lambda: found.append(prepare(model, "official")))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        said, _ = process.communicate("\n")
        waiting.join(60)
    assert [str(prepared.path) for prepared in found] == said.split()
    assert names(cache) == [Path(said.strip()).name]


def test_who_waited_for_a_killed_one_makes_the_file(model: Path, cache: Path) -> None:
    found: list[Prepared] = []
    with paused_writer(model, 5) as process:
        waiting = threading.Thread(target=lambda: found.append(prepare(model, "official")))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        process.send_signal(signal.SIGKILL)
    waiting.join(60)
    assert names(cache) == [found[0].path.name if found[0].path else ""]
    assert len(contents(found[0])) == len(found[0].names)


def test_many_at_once(model: Path, cache: Path) -> None:
    found: list[Prepared] = []
    threads = [threading.Thread(target=lambda: found.append(prepare(model, "bf16"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len({prepared.path for prepared in found}) == len(names(cache)) == 1


# -- disks that are full, folders that cannot be written --------------------------------------------------------------


def test_a_disk_without_room_is_noticed_before_writing(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = prepare(model, "bf16").bytes
    shutil.rmtree(cache)
    usage = shutil.disk_usage(model)._replace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(NarrowsError, match=rf"{cache}/.* needs {needed:,} bytes .* no room .* NARROWS_CACHE"):
        prepare(model, "bf16")
    assert names(cache) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fills_up_leaves_nothing(
    model: Path, cache: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(NarrowsError, match=rf"{cache}/.* needs [\d,]+ bytes for the prepared weights"):
            prepare(model, "bf16")
        assert names(cache) == []
    prepare(model, "bf16")


@pytest.mark.parametrize("limit", [0, 5_000, 200_000])
def test_a_file_that_grows_too_large_leaves_nothing(model: Path, cache: Path, limit: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(NarrowsError, match="more than a file may have here"):
            prepare(model, "bf16")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(cache) == []


def test_an_interrupted_writer_leaves_nothing(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_tensor", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(model, "bf16")
    assert names(cache) == []


def nobody_s(tmp_path: Path) -> Path:
    """A folder in which not even root can write."""
    return Path("/proc/narrows")


def a_file_s(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file"


on_linux = pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder in which not even root can write")


def a_loop(tmp_path: Path) -> Path:
    """What no user can look into, root neither."""
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path / "loop"


@pytest.mark.parametrize("place", [pytest.param(nobody_s, marks=on_linux), a_file_s, a_loop])
def test_without_a_cache_folder_a_file_of_this_process_takes_its_place(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: Callable[[Path], Path],
) -> None:
    wanted = contents(prepare(model, "official"))
    folder = place(tmp_path)
    monkeypatch.setenv("NARROWS_CACHE", str(folder))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    with caplog.at_level(logging.WARNING):
        prepared = prepare(model, "official")
    assert [record.message for record in caplog.records] == [caplog.records[0].message]
    assert f"{folder}/prepared cannot be " in caplog.text
    assert str(tmp_path / "tmp") in caplog.text
    assert prepared.path is None
    assert names(tmp_path / "tmp") == []
    for name, tensor in contents(prepared).items():
        assert torch.equal(tensor, wanted[name])


def test_a_full_temporary_folder_is_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NARROWS_CACHE", str(a_file_s(tmp_path)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))  # type: ignore[attr-defined]
    with pytest.raises(NarrowsError, match=f"^{tmp_path} needs .* no room"):
        prepare(model, "official")


def test_nobody_knows_a_home(model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("NARROWS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert prepare(model, "bf16").path is None
    assert "there is no cache folder" in caplog.text


# -- mapped, not read -------------------------------------------------------------------------------------------------


def test_tensors_lie_in_the_map(model: Path) -> None:
    """Aligned, each for itself, and the same memory every time."""
    prepared = prepare(model, "official")
    ranges = []
    for name in prepared.names:
        if prepared.is_packed(name):
            weight = prepared.packed(name)
            parts = [weight.values, weight.scales] if len(weight.scales) else [weight.values]
            assert prepared.packed(name).values.data_ptr() == weight.values.data_ptr()
        else:
            parts = [prepared.plain(name)]
            assert prepared.plain(name).data_ptr() == parts[0].data_ptr()
        for part in parts:
            assert part.data_ptr() % 64 == 0
            assert part.is_contiguous()
            ranges.append((part.data_ptr(), part.data_ptr() + part.numel() * part.element_size()))
    ranges.sort()
    assert ranges[0][0] % 4096 == 0
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
    assert ranges[-1][1] - ranges[0][0] <= prepared.bytes


OPENER = """
import os, sys
from narrows.checkpoints.prepared import prepare

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

small = prepare(sys.argv[1], "bf16")
before = resident()
prepared = prepare(sys.argv[2], "bf16")
views = [prepared.packed(name) if prepared.is_packed(name) else prepared.plain(name) for name in prepared.names]
print(prepared.bytes, resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's account of memory")
def test_opening_reads_no_weights(model: Path, tmp_path: Path) -> None:
    large = TINY.model_copy(update={"vocab_size": 200_000})
    write(tmp_path / "large", large, precision="bf16")
    for path in (model, tmp_path / "large"):
        prepare(path, "bf16")
    command = [sys.executable, "-c", OPENER, str(model), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size, grown = map(int, done.stdout.split())
    assert size > 50_000_000
    assert grown < 5_000_000
    assert done.stderr == ""  # nor does PyTorch warn of a buffer that it may not write to


# -- what cannot be prepared ------------------------------------------------------------------------------------------


def test_what_cannot_be_prepared_is_refused(model: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not prepared in float32; choose bf16, fp8, official"):
        prepare(model, "float32")
    with pytest.raises(UsageError, match="nowhere does not exist"):
        prepare(tmp_path / "nowhere", "bf16")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NarrowsError, match=r"config\.json is absent"):
        prepare(tmp_path / "empty", "bf16")
    write(tmp_path / "narrow", TINY.model_copy(update={"moe_intermediate_size": 24}), precision="float32")
    with pytest.raises(UsageError, match=r"w2\.weight cannot be stored in the precision official: .* multiple of 32"):
        prepare(tmp_path / "narrow", "official")
    assert not cache.exists()


def test_damaged_and_unstorable_weights_are_named(model: Path, cache: Path) -> None:
    flip_bit(model / "model.safetensors", -1)
    with pytest.raises(NarrowsError, match=r"model\.safetensors is damaged"):
        prepare(model, "bf16")
    edit_tensors(model, lambda stored: stored["head.weight"][0].fill_(torch.finfo(torch.float32).max))
    with pytest.raises(NarrowsError, match=r"head\.weight holds a value that is not finite in bf16"):
        prepare(model, "bf16")
    assert names(cache) == []


# -- a checkpoint's own precision -------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", Precision)
def test_a_checkpoint_s_own_precision_is_that_it_was_written_in(tmp_path: Path, precision: Precision) -> None:
    write(tmp_path / "model", SMALL, precision=precision, shard_bytes=300_000)
    assert own_precision(tmp_path / "model") is precision


@pytest.mark.parametrize(
    ("dtype", "changed", "found"),
    [
        (torch.bfloat16, r"norm.weight", "official"),
        (torch.float32, r"layers.1.attn.wq_a.weight", "float32"),
        (torch.float16, r"layers.1.attn.wq_a.weight", "float32"),
        (torch.bfloat16, r"layers.1.attn.wq_a.weight", "bf16"),
        (torch.bfloat16, r"layers.0.ffn.experts.1.w3.weight", "bf16"),
    ],
)
def test_one_wider_matrix_decides(tmp_path: Path, dtype: torch.dtype, changed: str, found: str) -> None:
    def widen(stored: dict[str, Tensor]) -> None:
        stored[changed] = torch.ones(shape, dtype=dtype)
        stored.pop(changed.replace(".weight", ".scale"), None)

    write(tmp_path / "model", SMALL, precision="official")
    shape = Checkpoint(tmp_path / "model").shapes[changed]
    edit_tensors(tmp_path / "model", widen)
    assert own_precision(tmp_path / "model") == found


def test_transformers_names_are_understood(tmp_path: Path) -> None:
    for precision in (Precision.FLOAT32, Precision.BF16):
        write(tmp_path / precision, SMALL, precision=precision, layout="transformers")
        assert own_precision(tmp_path / precision) is precision
