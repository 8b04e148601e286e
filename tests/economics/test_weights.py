"""Weights from formulas: as many and as large as our own modules have, and as the published checkpoints are."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings

from narrows.economics.weights import ROUTED, active_parameters, total_bytes, total_parameters, weights
from narrows.errors import UsageError
from narrows.model.config import ModelConfig
from narrows.model.count import count
from narrows.model.precision import Precision
from narrows.model.presets import FLASH, PRO, TINY
from narrows.model.v32.config import V32
from narrows.model.v32.network import V32Network
from tests.draws import scaled
from tests.economics.test_counter import OLD
from tests.parity.configurations import configurations


def test_the_published_models() -> None:
    """The audit of Pro's checkpoint and the model cards: 284B / 13B, 1.6T / 49B, 671B / 37B."""
    sizes = {
        name: (total_parameters(weights(config)), active_parameters(config))
        for name, config in {"flash": FLASH, "pro": PRO, "v3.2": V32}.items()
    }
    assert [round(size / 1e9, 2) for size in sizes["flash"]] == [284.33, 13.27]
    assert [round(total_parameters(weights(PRO)) / 1e9, 1), round(sizes["pro"][1] / 1e9, 2)] == [1573.0, 48.85]
    with_mtp = [total_parameters(weights(config, mtp=True)) for config in (FLASH, PRO)]
    assert [round(with_mtp[0] / 1e9, 2), round(with_mtp[1] / 1e9, 1)] == [290.94, 1598.8]
    # 671B and 37B are V3's, without the indexers: 14 million a layer.
    assert sizes["v3.2"][0] == pytest.approx(671e9, rel=0.005)
    assert sizes["v3.2"][1] == pytest.approx(37e9, rel=0.02)


def test_the_checkpoint_of_pro() -> None:
    """865 GB, as its files are listed."""
    assert total_bytes(weights(PRO, mtp=True)) == pytest.approx(865e9, rel=0.001)


@given(configurations())
@settings(max_examples=scaled(20))
def test_they_are_what_our_modules_have(config: ModelConfig) -> None:
    counted = count(config)
    assert total_parameters(weights(config, Precision.BF16)) == counted.total
    assert total_parameters(weights(config, Precision.BF16, mtp=True)) == counted.total_with_mtp
    assert active_parameters(config) == counted.active
    parts: Counter[str] = Counter()
    for weight in weights(config, Precision.BF16):
        parts[weight.component] += weight.parameters
    parts["routers"] = parts.pop("router")
    assert {name: number for name, number in parts.items() if number} == counted.parts
    for precision in Precision:
        if precision in counted.checkpoint_bytes:
            assert total_bytes(weights(config, precision, mtp=True)) == counted.checkpoint_bytes[precision]
        else:
            with pytest.raises(UsageError, match=f"cannot be kept in {precision}: MXFP4 needs"):
                weights(config, precision, mtp=True)


def test_they_are_what_the_predecessors_modules_have() -> None:
    for config in (OLD, V32):
        network = V32Network(config, device="meta")
        learned = {name: tensor.numel() for name, tensor in network.named_parameters()}
        found = weights(config, Precision.FLOAT32)
        assert total_parameters(found) == sum(learned.values())
        assert total_bytes(found) == sum(tensor.numel() * 4 for tensor in network.state_dict().values())
        routed = sum(number for name, number in learned.items() if re.search(r"\.experts\.", name))
        assert total_parameters(weight for weight in found if weight.component == ROUTED) == routed


def test_half_a_block_is_refused() -> None:
    odd = TINY.model_copy(update={"moe_intermediate_size": 24})
    with pytest.raises(UsageError, match=r"official: MXFP4 needs an input width that is a multiple of 32, not 24"):
        weights(odd)
