"""The reference itself: what is lifted, what is not, and that it makes a difference."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from narrows.model.network import Network
from narrows.model.presets import TINY
from tests.parity.configurations import randomised, relative_error
from tests.parity.reference import ROTARY_CLASSES, Reference, float64_module, narrow_names, their_name


class _FindNarrow(TorchDispatchMode):
    """Records the operators that return floats narrower than float64, outside rotary modules."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.inside_rotary: set[str] = set()
        self._rotary_depth = 0
        for module in model.modules():
            if type(module).__name__ in ROTARY_CLASSES:
                module.register_forward_pre_hook(lambda *_: self._enter(1))
                module.register_forward_hook(lambda *_: self._enter(-1))

    def _enter(self, change: int) -> None:
        self._rotary_depth += change

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64:
                (self.inside_rotary if self._rotary_depth else self.found).add(str(func))
        return out


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    network = randomised(Network(TINY, dtype=torch.float64), torch.Generator().manual_seed(1))
    return dict(network.state_dict())


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(TINY.vocab_size, (50,), generator=torch.Generator().manual_seed(2))


def test_nothing_but_angles_is_float32_in_the_lifted_reference(weights: Any, tokens: torch.Tensor) -> None:
    reference = Reference(TINY, weights, float64_module())
    with _FindNarrow(reference.model) as seen, torch.no_grad():
        reference.logits(tokens)
    assert not seen.found
    assert seen.inside_rotary  # the angles, float32 by contract


def test_lifting_changes_the_sixth_digit_and_no_more(weights: Any, tokens: torch.Tensor) -> None:
    """transformers unlifted, in float64 weights, is off by its float32 casts: the lifted twin is worth its trouble."""
    lifted = Reference(TINY, weights, float64_module())
    unlifted = Reference(TINY, weights)
    unlifted.model.double()
    with torch.no_grad():
        error = relative_error(unlifted.logits(tokens), lifted.logits(tokens))
    assert 1e-9 < error < 1e-4


@pytest.mark.parametrize(
    "source",
    ["x = y.float()", "x = y.to(torch.float32)", "x = y.to(dtype='bfloat16')", "with autocast(): pass", "x = y.half()"],
)
def test_a_cast_that_lifting_does_not_know_is_found(source: str) -> None:
    assert narrow_names(ast.parse(source))
    assert not narrow_names(ast.parse(f"class {ROTARY_CLASSES[0]}:\n  {source}"))


def test_plain_floats_are_no_casts() -> None:
    assert not narrow_names(ast.parse("def f(eps: float = 1e-6) -> None:\n  return x.double() + float('-inf')"))


def test_every_tensor_has_one_name_on_both_sides(weights: Any) -> None:
    """load_state_dict is strict: what is left to show is that no two of our tensors share a name."""
    names = [their_name(name) for name in weights if not name.startswith("mtp.")]
    assert len(set(names)) == len(names)
    with pytest.raises(KeyError, match=re.escape("layers.0.attn.wq_c.weight")):
        their_name("layers.0.attn.wq_c.weight")
