"""`narrows convert`: from one precision to another, a closing line, and one sentence where it cannot be."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch

from narrows.checkpoints.hub import local
from narrows.checkpoints.load import load_network
from narrows.checkpoints.write import Layout
from narrows.cli import convert
from narrows.cli.main import main
from narrows.engine import real_source
from narrows.model.precision import Precision
from tests.checkpoints.models import assert_same_weights, edit_json, edit_tensors, flip_bit, write


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    write(tmp_path / "source", precision="float32")
    return tmp_path / "source"


MEASURED = re.compile(
    r"8,192 tokens of the standard library: ([\d.]+) bits per byte, KL divergence to BF16 (\S+) nats a token\."
)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """The exit code of `narrows convert …`."""
    monkeypatch.setattr(sys, "argv", ["narrows", "convert", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_choices_are_those_of_the_library() -> None:
    assert list(get_args(convert.PrecisionName)) == list(Precision)
    assert list(get_args(convert.LayoutName)) == list(Layout)


@pytest.mark.parametrize("precision", Precision)
def test_every_precision(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    target = source.parent / "out/model"
    assert run(monkeypatch, source, target, "--precision", precision) == 0
    closing, progress = capsys.readouterr()
    size = (target / "model.safetensors").stat().st_size
    match = re.fullmatch(re.escape(str(target)) + r": ([\d,]+) bytes in 1 shard, [\d.]+ s; (.+)\.\n", closing)
    assert match is not None
    assert 0 < size - int(match[1].replace(",", "")) < 100_000  # the header
    if precision == "float32":
        assert match[2] == "nothing was rounded"
        assert_same_weights(load_network(target), load_network(source))
    else:
        worst = re.fullmatch(r"worst relative rounding error ([\d.]+)% \((.+)\.weight\)", match[2])
        assert worst is not None
        lowest, highest = {"bf16": (0.1, 0.3), "fp8": (2, 4), "official": (8, 20)}[precision]
        assert lowest < float(worst[1]) < highest
    bar = re.match(r"model \S+ ([\d.]+)/([\d.]+) [kM]B ", progress)
    assert bar is not None
    assert bar[1] == bar[2]  # all that was announced was written
    assert progress.endswith(f"Its loss was not measured: {source} has no tokenizer.json; add one to know.\n")


def test_the_embedded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "embedded", tmp_path / "model", "--precision", "official") == 0
    (written, measured), aside = (lambda said: (said.out.splitlines(), said.err))(capsys.readouterr())
    assert written.endswith("nothing was rounded.")
    bits, divergence = MEASURED.fullmatch(measured).groups()  # type: ignore[union-attr]
    assert 1 < float(bits) < 1.5
    assert 1e-4 < float(divergence) < 1e-2  # of the cache in FP8 and FP4
    assert "not measured" not in aside
    assert (tmp_path / "model/tokenizer.json").read_bytes() == (local("embedded") / "tokenizer.json").read_bytes()
    assert_same_weights(load_network(tmp_path / "model"), load_network(local("embedded")))


def test_transformers_layout(source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    target = source.parent / "out/model"
    assert run(monkeypatch, source, target, "--precision", "bf16", "--layout", "transformers") == 0
    assert "mtp.* is left out" in capsys.readouterr().err
    assert json.loads((target / "config.json").read_text())["num_nextn_predict_layers"] == 0
    back = source.parent / "out/back"
    assert run(monkeypatch, target, back, "--precision", "bf16") == 0
    assert_same_weights(load_network(back), load_network(target))


def test_a_source_without_mtp(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def drop(stored: dict[str, object]) -> None:
        for name in [name for name in stored if name.startswith("mtp.")]:
            del stored[name]

    edit_tensors(source, drop)
    assert run(monkeypatch, source, source.parent / "out/model", "--precision", "bf16") == 0
    assert "has no MTP weights" in capsys.readouterr().err


def test_what_a_precision_costs_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing in BF16 itself, in either layout; and what was written is run, not what was read."""

    def coarse(stored: dict[str, torch.Tensor]) -> None:
        for name, tensor in stored.items():
            if ".attn.wo_b" in name:
                stored[name] = tensor + torch.randn(tensor.shape, generator=random).to(tensor.dtype) * tensor.std() / 2

    random = torch.Generator().manual_seed(0)
    assert run(monkeypatch, "embedded", tmp_path / "exact", "--precision", "float32", "--no-measure") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    edit_tensors(tmp_path / "exact", coarse)
    found = {}
    for name, options in (
        ("bf16", ("--precision", "bf16")),
        ("other", ("--precision", "bf16", "--layout", "transformers")),
        ("official", ("--precision", "official")),
    ):
        assert run(monkeypatch, tmp_path / "exact", tmp_path / name, *options) == 0
        found[name] = [float(part) for part in MEASURED.fullmatch(capsys.readouterr().out.splitlines()[1]).groups()]  # type: ignore[union-attr]
    assert found["bf16"][1] == found["other"][1] == 0
    assert found["bf16"][0] == found["other"][0]
    assert found["official"][1] > 1e-3


def spoil_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def shrink_vocabulary(folder: Path) -> None:
    """The tokenizer of a model of more tokens than this one has."""
    (folder / "tokenizer.json").write_bytes((local("embedded") / "tokenizer.json").read_bytes())


@pytest.mark.parametrize("change", [spoil_tokenizer, shrink_vocabulary])
def test_a_tokenizer_that_does_not_serve_is_why_nothing_was_measured(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None]
) -> None:
    change(source)
    assert run(monkeypatch, source, source.parent / "out/model", "--precision", "bf16") == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert said.err.splitlines()[-1].startswith("Its loss was not measured: ")


def test_a_large_model_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(convert, "_MEASURED_BYTES", 63_000_000)
    assert run(monkeypatch, "embedded", tmp_path / "model", "--precision", "bf16") == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert "Its loss was not measured: it takes 0.1 GB in float32, more than the 0 up to" in said.err


def test_a_python_without_sources_cannot_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(real_source, "library_samples", lambda *_: [])
    assert run(monkeypatch, "embedded", tmp_path / "model", "--precision", "bf16") == 0
    assert "without the sources of its standard library" in capsys.readouterr().err


def break_config(source: Path) -> None:
    edit_json(source / "config.json", num_experts_per_tok=9)


def break_bit(source: Path) -> None:
    flip_bit(source / "model.safetensors", -5)


def break_end(source: Path) -> None:
    shard = source / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    (source / "SHA256SUMS").unlink()


def break_tensor(source: Path) -> None:
    edit_tensors(source, lambda stored: stored.__delitem__("layers.2.attn.wkv.weight"))


def break_pickle(source: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_config, "config.json: num_experts_per_tok 9 exceeds n_routed_experts 4"),
        (break_bit, "model.safetensors is damaged: its SHA-256 is not the one in SHA256SUMS"),
        (break_end, "model.safetensors is damaged or incomplete"),
        (break_tensor, "lacks the tensor layers.2.attn.wkv.weight"),
        (break_pickle, "pickled weights (pytorch_model.bin)"),
    ],
)
def test_a_broken_source_is_named_and_nothing_written(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: object, message: str
) -> None:
    assert callable(damage)
    damage(source)
    assert run(monkeypatch, source, source.parent / "out/model", "--precision", "official") == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.splitlines()[-1].startswith("narrows: ")
    assert "━" not in said  # the progress bar is gone
    assert "Traceback" not in said
    assert list((source.parent / "out").iterdir()) == []


def test_a_tokenizer_that_does_not_fit_is_mentioned(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "tokenizer.json").write_bytes((local("embedded") / "tokenizer.json").read_bytes())
    assert run(monkeypatch, source, source.parent / "out/model", "--precision", "bf16") == 0
    assert "The tokenizer is copied as it is, though " in capsys.readouterr().err


def test_weights_that_are_not_finite_are_not_copied(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_tensors(source, lambda stored: stored["embed.weight"].fill_(float("nan")))
    assert run(monkeypatch, source, source.parent / "out/model", "--precision", "float32") == 1
    assert "the tensor embed.weight holds a value that is not finite" in capsys.readouterr().err


def test_requests_that_cannot_be_right(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = source.parent / "out"
    for arguments, message in (
        ((source.parent / "nowhere", out / "model", "--precision", "bf16"), "nowhere does not exist"),
        ((source, out, "--precision", "bf16"), "out exists already"),
        ((source, source, "--precision", "bf16"), "source exists already"),
        ((source, source / "config.json/a/b", "--precision", "bf16"), "config.json is not a folder"),
        ((source, out / "model", "--precision", "fp8", "--layout", "transformers"), "has no fp8 precision"),
        ((source, out / "model", "--precision", "int3"), "int3"),
        ((source, out / "model"), "--precision"),
    ):
        assert run(monkeypatch, *arguments) == 2
        said = capsys.readouterr().err
        assert message in said
        assert "Traceback" not in said
    assert list(out.iterdir()) == []


def test_the_command_itself(source: Path) -> None:
    """A process of its own: exit code, and nothing but the sentence."""
    command = [sys.executable, "-m", "narrows.cli.main", "convert", source, source.parent / "out", "--precision", "fp8"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"narrows: {source.parent / 'out'} exists already; remove it or choose another name.\n"
