"""What is written is what is read: exactly where the format is exact, else its nearest value."""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.checkpoints.checkpoint import Checkpoint, read_config
from narrows.checkpoints.encoding import encode
from narrows.checkpoints.load import load_network, load_reference
from narrows.checkpoints.save import NetworkSource, save_network
from narrows.checkpoints.write import Layout, Plan, write_checkpoint
from narrows.errors import NarrowsError, UsageError
from narrows.model.config import ModelConfig
from narrows.model.count import count
from narrows.model.network import Network
from narrows.model.precision import Format, Precision, weight_format
from narrows.model.presets import TINY
from narrows.ops.quantize import dequantize_fp8, quantize_fp8
from tests.checkpoints.models import (
    ODD,
    TILED,
    assert_same_weights,
    edit_tensors,
    make_network,
    tensors,
    write,
)
from tests.draws import scaled
from tests.parity.configurations import configurations

SHARD_BYTES = st.sampled_from([20_000, 100_000, 10**9])


def convert(source: Path, destination: Path, precision: Precision, **options: object) -> float:
    """-> the worst relative rounding error."""
    checkpoint = Checkpoint(source)
    plan = Plan(checkpoint, precision, **options)  # type: ignore[arg-type]
    return write_checkpoint(checkpoint, plan, destination, companions=source).worst_error


def drop_mtp(stored: dict[str, torch.Tensor]) -> None:
    for name in [name for name in stored if name.startswith("mtp.")]:
        del stored[name]


@given(configurations(), SHARD_BYTES, st.integers(0, 1000))
@settings(max_examples=scaled(25))
def test_float32_comes_back_bit_for_bit(config: ModelConfig, shard_bytes: int, seed: int) -> None:
    network = make_network(config, seed)
    with tempfile.TemporaryDirectory() as folder:
        written = save_network(network, f"{folder}/new", precision="float32", shard_bytes=shard_bytes)
        assert written.worst_error == 0
        loaded = load_network(f"{folder}/new")
    assert loaded.config == config
    assert not loaded.training
    assert_same_weights(loaded, network)


@given(st.sampled_from([TINY, ODD, TILED]), st.sampled_from(Precision), SHARD_BYTES, st.integers(0, 1000))
@settings(max_examples=scaled(25))
def test_every_weight_is_the_one_that_its_format_can_hold(
    config: ModelConfig, precision: Precision, shard_bytes: int, seed: int
) -> None:
    network = make_network(config, seed)
    with tempfile.TemporaryDirectory() as folder:
        written = save_network(network, f"{folder}/new", precision=precision, shard_bytes=shard_bytes)
        checkpoint, loaded = Checkpoint(f"{folder}/new"), load_network(f"{folder}/new")
        source, again = NetworkSource(network), NetworkSource(loaded)
        errors = []
        for name in source.shapes:
            weight = source.encoded(name).values
            expected = encode(weight, weight_format(name, precision)).decode(weight.dtype)
            assert torch.equal(again.encoded(name).values, expected), name
            assert checkpoint.encoded(name).format is weight_format(name, precision), name
            errors.append(float((expected - weight).double().norm() / weight.double().norm().clamp_min(1e-30)))
    assert written.worst_error == pytest.approx(max(errors), rel=1e-5)


@pytest.mark.parametrize("precision", Precision)
def test_a_file_is_as_large_as_count_says(tmp_path: Path, precision: Precision) -> None:
    written = save_network(make_network(ODD), tmp_path / "new", precision=precision)
    stored = tensors(tmp_path / "new")
    assert written.bytes == sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    assert written.bytes == count(ODD).checkpoint_bytes[precision]


@pytest.mark.parametrize("precision", Precision)
def test_converting_to_the_same_precision_copies_the_bytes(tmp_path: Path, precision: Precision) -> None:
    write(tmp_path / "first", ODD, precision=precision, shard_bytes=100_000)
    assert convert(tmp_path / "first", tmp_path / "second", precision, shard_bytes=100_000) == 0
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert len(names) > 4
    assert names == sorted(path.name for path in (tmp_path / "second").iterdir())
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


@pytest.mark.parametrize("between", [Precision.BF16, Precision.FLOAT32])
@pytest.mark.parametrize("precision", [Precision.FP8, Precision.OFFICIAL])
def test_quantised_values_survive_a_wider_precision(tmp_path: Path, precision: Precision, between: Precision) -> None:
    """Also those that our own quantiser gives different codes: their values are the same."""
    write(tmp_path / "first", ODD, precision=precision)
    assert convert(tmp_path / "first", tmp_path / "wide", between) == 0
    assert convert(tmp_path / "wide", tmp_path / "second", precision) == 0
    assert_same_weights(load_network(tmp_path / "second"), load_network(tmp_path / "first"))


def test_a_network_in_bf16_holds_quantised_weights_exactly(tmp_path: Path) -> None:
    write(tmp_path / "first", ODD, precision="official")
    narrow = load_network(tmp_path / "first", dtype=torch.bfloat16)
    assert narrow.head.weight.dtype == torch.bfloat16
    assert narrow.norm.weight.dtype == torch.float32
    save_network(narrow, tmp_path / "second", precision="official")
    assert_same_weights(load_network(tmp_path / "second"), load_network(tmp_path / "first"))


def test_published_base_models_have_float32_scales(tmp_path: Path) -> None:
    write(tmp_path / "base", ODD, precision="fp8")
    expected = {}

    def widen(stored: dict[str, torch.Tensor]) -> None:
        for name in [name for name in stored if name.endswith(".scale")]:
            stored[name] = stored[name].float() * 1.37
            weight = name.replace(".scale", ".weight")
            expected[weight] = dequantize_fp8(stored[weight], stored[name])

    edit_tensors(tmp_path / "base", widen)
    checkpoint = Checkpoint(tmp_path / "base")
    assert len(expected) > 50
    for name, weight in expected.items():
        assert torch.equal(checkpoint.read(name), weight), name
    assert convert(tmp_path / "base", tmp_path / "new", Precision.FP8) > 0
    stored = tensors(tmp_path / "new")
    for name, weight in expected.items():
        assert torch.equal(stored[name].float(), quantize_fp8(weight)[0].float()), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_floats_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    network = write(tmp_path / "model", precision="bf16")

    def cast(stored: dict[str, torch.Tensor]) -> None:
        stored |= {name: tensor.to(dtype) for name, tensor in stored.items() if tensor.is_floating_point()}

    edit_tensors(tmp_path / "model", cast)
    for name, tensor in load_network(tmp_path / "model").state_dict().items():
        assert torch.allclose(tensor, network.state_dict()[name], rtol=0.01, atol=1e-3), name


def test_shards_are_cut_where_asked_and_indexed(tmp_path: Path) -> None:
    write(tmp_path / "model", ODD, precision="official", shard_bytes=200_000)
    index = json.loads((tmp_path / "model/model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert sorted(set(index["weight_map"].values())) == shards
    stored = tensors(tmp_path / "model")
    assert set(stored) == set(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in stored.values())
    for shard in shards:
        alone = [stored[name] for name, where in index["weight_map"].items() if where == shard]
        assert sum(t.numel() * t.element_size() for t in alone) <= 200_000
    layers = [int(name.split(".")[1]) for name in Checkpoint(tmp_path / "model").shapes if name.startswith("layers.")]
    assert layers == sorted(layers)


def test_the_config_says_how_weights_are_stored(tmp_path: Path) -> None:
    quantised = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
    for precision, dtype, expert_dtype in (
        ("float32", "float32", None),
        ("bf16", "bfloat16", None),
        ("fp8", "bfloat16", "fp8"),
        ("official", "bfloat16", "fp4"),
    ):
        write(tmp_path / precision, precision=precision)
        config = json.loads((tmp_path / precision / "config.json").read_text())
        assert (config["torch_dtype"], config.get("expert_dtype")) == (dtype, expert_dtype)
        assert config.get("quantization_config") == (quantised if expert_dtype else None)
        assert read_config(tmp_path / precision) == read_config(tmp_path / precision / "config.json") == TINY


@pytest.mark.parametrize("tokenizer", [False, True])
def test_checksums_are_those_of_the_shards_and_the_tokenizer(tmp_path: Path, tokenizer: bool) -> None:
    (tmp_path / "beside").mkdir()
    if tokenizer:
        (tmp_path / "beside/tokenizer.json").write_text("{}")
    write(tmp_path / "model", ODD, shard_bytes=200_000, companions=tmp_path / "beside")
    lines = (tmp_path / "model/SHA256SUMS").read_text().splitlines()
    found = {name: digest for digest, name in (line.split("  ") for line in lines)}
    listed = [*(tmp_path / "model").glob("*.safetensors"), *(tmp_path / "model").glob("tokenizer.json")]
    assert len(listed) > 1 + tokenizer
    assert found == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in listed}


@pytest.mark.parametrize("config", [TINY, ODD], ids=["tiny", "odd"])
@pytest.mark.parametrize("precision", Precision)
def test_what_is_counted_is_what_is_written(config: ModelConfig, precision: Precision) -> None:
    """Tiles of scales end with each matrix of a checkpoint, gate and up apart."""
    plan = Plan(NetworkSource(Network(config, device="meta")), precision)
    assert count(config).checkpoint_bytes[precision] == plan.bytes


def test_what_belongs_to_a_model_goes_along(tmp_path: Path) -> None:
    write(tmp_path / "first")
    (tmp_path / "first/tokenizer.json").write_text("{}")
    (tmp_path / "first/encoding").mkdir()
    (tmp_path / "first/encoding/chat.py").write_text("pass")
    (tmp_path / "first/notes.txt").write_text("private")
    convert(tmp_path / "first", tmp_path / "second", Precision.FP8)
    assert (tmp_path / "second/tokenizer.json").read_text() == "{}"
    assert (tmp_path / "second/encoding/chat.py").read_text() == "pass"
    assert not (tmp_path / "second/notes.txt").exists()


def test_without_mtp_weights_the_config_loses_the_block(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = write(tmp_path / "model", precision="float32")
    edit_tensors(tmp_path / "model", drop_mtp)
    loaded = load_network(tmp_path / "model")
    assert loaded.config == TINY.model_copy(update={"num_nextn_predict_layers": 0})
    assert torch.equal(loaded.head.weight, network.head.weight)
    assert "has no MTP weights" in caplog.text
    convert(tmp_path / "model", tmp_path / "second", Precision.BF16)
    assert read_config(tmp_path / "second").num_nextn_predict_layers == 0


@pytest.mark.parametrize("stored", [Format.FP8, Format.MXFP4, Format.BF16])
def test_stacked_experts_are_read(tmp_path: Path, stored: Format) -> None:
    """As someone saves transformers' state in memory: its names, experts in one tensor, quantised or not."""
    network = write(tmp_path / "model", TILED, precision="float32")
    state = network.state_dict()

    def stack(found: dict[str, torch.Tensor]) -> None:
        for name in [name for name in found if ".ffn.experts." in name]:
            del found[name]
        for layer in range(TILED.num_hidden_layers):
            for ours, theirs in (("w13", "gate_up_proj"), ("w2", "down_proj")):
                parts = [encode(matrix, stored) for matrix in state[f"layers.{layer}.ffn.experts.{ours}"]]
                name = f"model.layers.{layer}.mlp.experts.{theirs}"
                found[name] = torch.stack([part.values for part in parts])
                if parts[0].scale is not None:
                    found[f"{name}_scale_inv"] = torch.stack([part.scale for part in parts if part.scale is not None])
        drop_mtp(found)

    edit_tensors(tmp_path / "model", stack)
    loaded = load_network(tmp_path / "model").state_dict()
    for name in loaded:
        if ".ffn.experts." in name:
            wanted = torch.stack([encode(matrix, stored).decode(torch.float32) for matrix in state[name]])
            assert torch.equal(loaded[name], wanted), name


PEAK = """
import sys
from narrows.checkpoints import shards
from narrows.checkpoints.checkpoint import Checkpoint
from narrows.checkpoints.load import load_network, load_reference
from narrows.checkpoints.write import Plan, write_checkpoint
from narrows.model.precision import Precision

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

shards._MAPPED_BYTES = int(sys.argv[1])
load_network(sys.argv[2])  # a small one: what the libraries need once is there now
before = peak()
if len(sys.argv) == 4:
    kept = load_network(sys.argv[3])
else:
    checkpoint = Checkpoint(sys.argv[3])
    write_checkpoint(checkpoint, Plan(checkpoint, Precision.OFFICIAL), sys.argv[4])
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to tell a process's peak memory")
def test_memory_stays_under_the_model_plus_a_part_of_a_file(tmp_path: Path) -> None:
    """Even where all of it is one file: pages that were read are given back."""
    large = TINY.model_copy(update={"hidden_size": 384, "moe_intermediate_size": 384, "n_routed_experts": 12})
    size, mapped = count(large).checkpoint_bytes[Precision.FLOAT32], 10_000_000
    assert size > 10 * mapped
    network = Network(large)
    network.initialise()
    save_network(network, tmp_path / "large", precision="float32")
    write(tmp_path / "small")

    def peak(*arguments: str | Path) -> int:
        command = [sys.executable, "-c", PEAK, str(mapped), *map(str, arguments)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert peak(tmp_path / "small", tmp_path / "large") < size + 4 * mapped
    assert peak(tmp_path / "small", tmp_path / "large", tmp_path / "converted") < 4 * mapped


def test_a_layout_and_a_precision_must_fit() -> None:
    with pytest.raises(UsageError, match="transformers layout has no fp8 precision"):
        Plan(NetworkSource(make_network()), Precision.FP8, Layout.TRANSFORMERS)
    odd = make_network(TINY.model_copy(update={"moe_intermediate_size": 40}))
    with pytest.raises(UsageError, match=r"experts\.0\.w2\.weight cannot be stored in the precision official: .*32"):
        Plan(NetworkSource(odd), Precision.OFFICIAL)


def test_what_a_format_cannot_hold_is_named(tmp_path: Path) -> None:
    network = make_network()
    with torch.no_grad():
        network.get_parameter("layers.1.ffn.experts.w13")[2, 40, 3] = torch.nan
    for precision in (Precision.BF16, Precision.FP8, Precision.OFFICIAL):
        with pytest.raises(NarrowsError, match=r"layers\.1\.ffn\.experts\.2\.w3\.weight"):
            save_network(network, tmp_path / "new", precision=precision)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("stored", [Precision.FLOAT32, Precision.OFFICIAL])
def test_the_reference_has_the_weights_of_its_precision(
    tmp_path: Path, stored: Precision, precision: Precision
) -> None:
    """Those that the checkpoint would have if it were converted to it; and it rounds inputs where kernels do."""
    write(tmp_path / "model", ODD, precision=stored)
    convert(tmp_path / "model", tmp_path / "converted", precision)
    reference = load_reference(tmp_path / "model", precision)
    assert_same_weights(reference, load_network(tmp_path / "converted"))
    assert reference.dtype == torch.float32
    assert reference.cache is precision
    assert not reference.training
    assert reference.head.rounds_inputs is (precision is not Precision.FLOAT32)


def test_a_weight_that_the_reference_s_precision_cannot_hold_is_named(tmp_path: Path) -> None:
    write(tmp_path / "model", TINY.model_copy(update={"moe_intermediate_size": 24}), precision="float32")
    with pytest.raises(NarrowsError, match=r"experts\.0\.w2\.weight cannot be stored as mxfp4: .* multiple of 32"):
        load_reference(tmp_path / "model", "official")
