"""Counts and bytes: the published figures, and agreement with what networks, caches and files really take."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.model.config import LayerKind, ModelConfig
from narrows.model.count import Count, cache_bytes, count
from narrows.model.history import ContiguousHistory
from narrows.model.network import Network
from narrows.model.precision import Format, Precision, stored_bytes, weight_format
from narrows.model.presets import FLASH, PRESETS, PRO, TINY
from tests.draws import scaled
from tests.parity.configurations import configurations


def billions(parameters: int) -> str:
    return f"{parameters / 1e9:.2f}"


@pytest.fixture(scope="module")
def flash() -> Count:
    return count(FLASH)


@pytest.fixture(scope="module")
def pro() -> Count:
    return count(PRO)


def test_flash_has_the_published_size(flash: Count) -> None:
    assert (billions(flash.total), billions(flash.active)) == ("284.33", "13.27")
    assert billions(flash.total_with_mtp) == "290.94"
    assert list(flash.layers.values()) == [2, 21, 20]


def test_pro_has_the_published_size(pro: Count) -> None:
    assert (f"{pro.total / 1e9:.1f}", billions(pro.active)) == ("1573.0", "48.85")
    assert f"{pro.total_with_mtp / 1e9:.1f}" == "1598.8"
    assert list(pro.layers.values()) == [0, 30, 31]


def test_the_official_precision_has_the_published_bytes(flash: Count, pro: Count) -> None:
    assert round(pro.checkpoint_bytes[Precision.OFFICIAL] / 1e9) == 865
    assert int(pro.cache[Precision.OFFICIAL].per_token) == 5031
    assert int(flash.cache[Precision.OFFICIAL].per_token) == 3514


def test_contexts_have_the_published_cache(flash: Count, pro: Count) -> None:
    """The published GB at 4K, 128K and 1024K tokens count entries and the window, not unfinished compressor inputs."""
    for counted, published in ((pro, ("0.03", "0.66", "5.28")), (flash, ("0.02", "0.46", "3.69"))):
        cache = counted.cache[Precision.OFFICIAL]
        for tokens, gigabytes in zip((4096, 131_072, 1_048_576), published, strict=True):
            assert f"{(cache.at(tokens) - cache.unfinished) / 1e9:.2f}" == gigabytes


@given(configurations())
@settings(max_examples=scaled(20))
def test_parts_and_totals_are_those_of_a_real_network(config: ModelConfig) -> None:
    counted = count(config)
    network = Network(config)
    every = sum(parameter.numel() for parameter in network.parameters())
    mtp = sum(parameter.numel() for parameter in network.mtp.parameters())
    assert counted.total_with_mtp == every
    assert counted.total == every - mtp == sum(counted.parts.values())
    idle = config.n_routed_experts - config.num_experts_per_tok
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    embedding = config.vocab_size * config.hidden_size
    assert counted.active == counted.total - embedding - config.num_hidden_layers * idle * expert
    assert sum(counted.layers.values()) == config.num_hidden_layers
    tensors = network.state_dict().values()
    assert counted.checkpoint_bytes[Precision.FLOAT32] == sum(t.numel() * t.element_size() for t in tensors)


@given(configurations(), st.sampled_from([(Precision.FLOAT32, torch.float32), (Precision.BF16, torch.bfloat16)]))
@settings(max_examples=scaled(20))
def test_caches_are_those_of_a_real_history(config: ModelConfig, case: tuple[Precision, torch.dtype]) -> None:
    """Empty, a history holds the fixed part, a row more in every ring, and room for 16 entries; an entry's size is in
    its shape."""
    precision, dtype = case
    cache = cache_bytes(config, precision)
    history = ContiguousHistory(config, dtype=dtype)
    per_token = room = 0.0
    for kind in config.layer_types:
        ratio = config.compress_ratio(kind)
        if ratio:
            entry = config.head_dim + (config.index_head_dim if kind is LayerKind.CSA else 0)
            room += 16 * entry * dtype.itemsize
            per_token += entry * dtype.itemsize / ratio
    room += sum(rings[0, 0].nbytes for rings in history.recent.values())
    assert cache.fixed == history.bytes() - room
    assert float(cache.per_token) == pytest.approx(per_token)


def test_fp8_is_about_weights_only() -> None:
    assert cache_bytes(PRO, Precision.FP8) == cache_bytes(PRO, Precision.BF16)


@pytest.mark.parametrize("precision", Precision)
def test_every_tensor_has_the_format_that_the_layout_gives_it(precision: Precision) -> None:
    quantised = {Precision.FP8: Format.FP8, Precision.OFFICIAL: Format.FP8}.get(precision, Format.BF16)
    experts = Format.MXFP4 if precision is Precision.OFFICIAL else quantised
    plain = Format.BF16
    if precision is Precision.FLOAT32:
        quantised = experts = plain = Format.FLOAT32
    expected = {
        plain: "embed.weight head.weight norm.weight layers.0.attn_norm.weight layers.0.ffn_norm.weight "
        "layers.0.attn.q_norm.weight layers.0.attn.kv_norm.weight layers.1.attn.compressor.wkv.weight "
        "layers.1.attn.compressor.wgate.weight layers.1.attn.compressor.norm.weight "
        "layers.1.attn.indexer.weights_proj.weight layers.1.attn.indexer.compressor.wkv.weight "
        "layers.1.attn.indexer.compressor.wgate.weight layers.1.attn.indexer.compressor.norm.weight "
        "layers.0.ffn.gate.weight mtp.0.enorm.weight mtp.0.hnorm.weight mtp.0.norm.weight",
        quantised: "layers.0.attn.wq_a.weight layers.0.attn.wq_b.weight layers.0.attn.wkv.weight "
        "layers.0.attn.wo_a.weight layers.0.attn.wo_b.weight layers.1.attn.indexer.wq_b.weight "
        "layers.0.ffn.shared_experts.w1.weight layers.0.ffn.shared_experts.w2.weight "
        "layers.0.ffn.shared_experts.w3.weight mtp.0.e_proj.weight mtp.0.h_proj.weight mtp.0.attn.wq_a.weight",
        experts: "layers.0.ffn.experts.w13 layers.0.ffn.experts.w2 layers.0.ffn.experts.3.w1.weight "
        "mtp.0.ffn.experts.0.w2.weight",
        Format.FLOAT32: "hc_head.fn hc_head_fn layers.0.hc_attn.base layers.0.hc_attn_scale layers.2.hc_ffn_fn "
        "layers.0.attn.attn_sink layers.1.attn.compressor.ape layers.1.attn.indexer.compressor.ape "
        "layers.1.ffn.gate.bias mtp.0.hc_head_base",
        Format.INT64: "layers.0.ffn.gate.tid2eid",
    }
    for stored, names in expected.items():
        assert {name: weight_format(name, precision) for name in names.split()} == dict.fromkeys(names.split(), stored)


def test_a_precision_that_the_sizes_rule_out_is_left_out() -> None:
    odd = TINY.model_copy(update={"moe_intermediate_size": 40})
    assert Precision.OFFICIAL in count(TINY).checkpoint_bytes
    assert Precision.OFFICIAL not in count(odd).checkpoint_bytes
    assert Precision.FP8 in count(odd).checkpoint_bytes
    with pytest.raises(ValueError, match="multiple of 32, not 40"):
        stored_bytes(Format.MXFP4, (4, 64, 40))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_counts(name: str) -> None:
    counted = count(PRESETS[name])
    assert 0 < counted.active < counted.total < counted.total_with_mtp
    sizes = list(counted.checkpoint_bytes.values())
    assert sizes == sorted(sizes, reverse=True)
