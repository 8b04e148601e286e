"""The CPU kernels: what the references compute, with the same bits in any batch and on any number of threads."""

from __future__ import annotations

import ctypes
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from narrows.ops import native
from narrows.ops.cross_entropy import IGNORED, linear_cross_entropy
from narrows.ops.experts import experts, swiglu
from narrows.ops.hyper import hyper_collapse, hyper_post, hyper_pre, sinkhorn
from narrows.ops.norm import rms_norm
from narrows.ops.pages import Pages
from narrows.ops.sparse_attention import Entries, Window, sparse_attention
from narrows.ops.tiles import Tiles
from tests.ops.computed import Draw, Outcome, assert_close, kernels, misaligned, normal, threads

if native.kernels is None and not any(map(shutil.which, ("c++", "g++", "clang++"))):
    pytest.skip("narrows was installed without a C++ compiler", allow_module_level=True)
assert kernels is not None, "there is a C++ compiler, and the kernels are not there: see `pip install -v -e .`"

# What computes no op for the package's Python: tests of inference know the rest.
OTHERS = [
    *("instruction_sets", "instruction_set", "use", "Matrix", "Network", "History", "linear", "encode_rows"),
    *(
        "decode_rows",
        "index_topk",
        "attention_stored",
        "compress",
        "hyper_pre",
        "summarize",
        "why_not",
        "rest",
        "VERSION",
    ),
]
KERNELS = [name for name in dir(kernels) if name[0] != "_" and name not in OTHERS]

seeds = st.integers(0, 2**31)


@dataclass
class Case:
    """An op, inputs of which each row belongs to a row of the result, and inputs that all rows share."""

    function: Callable[..., Any]
    rows: list[Tensor]
    shared: list[Tensor] = field(default_factory=list)

    def outcome(self, dtype: torch.dtype = torch.float32) -> Outcome:
        """Results, and gradients of all inputs for a direction that is the same in every row."""
        leaves = [tensor.to(dtype).detach().requires_grad_() for tensor in (*self.rows, *self.shared)]
        results = self.function(*leaves)
        results = list(results) if isinstance(results, tuple) else [results]
        directions = [
            torch.cos(torch.arange(math.prod(result.shape[1:]), dtype=dtype)).view(result.shape[1:]).expand_as(result)
            for result in results
        ]
        return results, list(
            torch.autograd.grad(results, leaves, directions, allow_unused=True, materialize_grads=True)
        )

    def row(self, number: int) -> Case:
        """One row alone."""
        return Case(self.function, [tensor[number : number + 1] for tensor in self.rows], self.shared)


def norm(draw: Draw, rows: int, width: int) -> Case:
    return Case(lambda x, weight: rms_norm(x, weight, 1e-6), [draw(rows, width)], [draw(width)])


def norm_without_weight(draw: Draw, rows: int, width: int) -> Case:
    return Case(lambda x: rms_norm(x, None, 1e-6), [draw(rows, width)])


def mixing(draw: Draw, rows: int, width: int, count: int = 4) -> Case:
    return Case(lambda logits: sinkhorn(logits, iterations=20, eps=1e-6), [2 * draw(rows, count, count)])


def reading(draw: Draw, rows: int, width: int, count: int = 4) -> Case:
    outputs = (2 + count) * count
    fn = draw(outputs, count * width) / math.sqrt(count * width)
    options = {"iterations": 3, "eps": 0.03, "norm_eps": 0.2}  # so large that they show
    return Case(lambda *inputs: hyper_pre(*inputs, **options), [draw(rows, count, width)], [fn, draw(outputs), draw(3)])


def collapsing(draw: Draw, rows: int, width: int, count: int = 4) -> Case:
    fn = draw(count, count * width) / math.sqrt(count * width)
    return Case(
        lambda *inputs: hyper_collapse(*inputs, eps=0.03, norm_eps=0.2),
        [draw(rows, count, width)],
        [fn, draw(count), draw(1)],
    )


def spreading(draw: Draw, rows: int, width: int, count: int = 4) -> Case:
    return Case(hyper_post, [draw(rows, count, width), draw(rows, width), draw(rows, count), draw(rows, count, count)])


def gating(draw: Draw, rows: int, width: int) -> Case:
    """Far into both of the sigmoid's tails."""
    return Case(lambda gate, up: swiglu(gate, up, 8.0), [20 * draw(rows, width), 8 * draw(rows, width)])


def expert_layer(draw: Draw, rows: int, width: int) -> Case:
    """Of numbers so short that products are exact: on one side of the limit in float32 as in float64."""
    x, w13 = ((4 * draw(*shape)).round() / 4 for shape in ((rows, 6), (3, 2 * width, 6)))
    chosen = draw(rows, 3).argsort(-1)[:, :2]
    return Case(
        lambda x, weights, w13, w2: experts(x, weights, chosen, w13, w2, 1.5),
        [x, draw(rows, 2)],
        [w13, draw(3, 6, width)],
    )


def head(draw: Draw, rows: int, width: int) -> Case:
    targets = (draw(rows).abs() * width).long() % width
    targets[draw(rows) > 1] = IGNORED
    return Case(lambda x, weight: linear_cross_entropy(x, weight, targets), [draw(rows, 8)], [draw(width, 8)])


def attending(draw: Draw, rows: int, width: int) -> Case:
    """A segment a row (one at least), each with an entry of its own: test_native_attention.py draws all others."""
    rows = max(rows, 1)

    def attend(q: Tensor, kv: Tensor, stored: Tensor, sink: Tensor) -> Tensor:
        tiles, number = Tiles.cut([1] * q.shape[0], 1, torch.device("cpu")), torch.arange(q.shape[0])
        entries = Entries(Pages(stored, number[:, None], 1), torch.ones_like(number), 1, None)
        return sparse_attention(q, Window(kv, number, number, 1), entries, sink, tiles, tiles)

    return Case(attend, [draw(rows, 3, width), draw(rows, width), draw(rows, width)], [draw(3)])


ROW_BY_ROW = [norm, norm_without_weight, mixing, reading, collapsing, spreading, gating, attending]
ALL = [*ROW_BY_ROW, expert_layer, head]


# -- the same as the reference --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("anything")
@pytest.mark.parametrize("op", ALL)
@given(seed=seeds, rows=st.integers(0, 200), width=st.integers(1, 70))
def test_values_and_gradients_are_those_of_float64(op: Callable[..., Case], seed: int, rows: int, width: int) -> None:
    case = op(normal(seed), rows, width)
    assert_close(case.outcome(), case.outcome(torch.float64))


@pytest.mark.parametrize("op", [mixing, reading, collapsing, spreading])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_other_numbers_of_streams_are_left_to_the_reference(op: Callable[..., Case], count: int) -> None:
    case = op(normal(count), 9, 7, count)
    assert_close(case.outcome(), case.outcome(torch.float64))


LAYOUTS: dict[str, Callable[[Draw], Tensor]] = {
    "a number": lambda draw: draw(),
    "a vector": lambda draw: draw(7),
    "every other of a vector": lambda draw: draw(14)[::2],
    "contiguous": lambda draw: draw(3, 7),
    "the half of each row": lambda draw: draw(3, 14)[:, 7:],
    "every other column": lambda draw: draw(3, 14)[:, ::2],
    "transposed": lambda draw: draw(7, 3).mT,
    "one row again and again": lambda draw: draw(7).expand(3, 7),
    "three dims": lambda draw: draw(2, 3, 7),
    "the half of three dims": lambda draw: draw(2, 3, 14)[..., :7],
    "permuted": lambda draw: draw(7, 3, 2).permute(2, 1, 0),
}


@pytest.mark.usefixtures("anything")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_how_a_tensor_lies_in_memory_does_not_matter(layout: str) -> None:
    draw = normal(5)
    x = LAYOUTS[layout](draw)
    other = draw(*x.shape)
    ways = [x, x.clone(), other.contiguous(), torch.stack((other, x), dim=-1)[..., 0]]
    for gate, up in [(x, x.clone()), *((way, x) for way in ways), *((x, way) for way in ways)]:
        case = Case(lambda gate, up: swiglu(gate, up, 1.0), [gate, up])
        assert_close(case.outcome(), case.outcome(torch.float64))
    if x.dim():
        for weight in (draw(x.shape[-1]), draw(2 * x.shape[-1])[::2], draw(1).expand(x.shape[-1])):
            case = Case(lambda x, weight: rms_norm(x, weight, 1e-6), [x], [weight])
            assert_close(case.outcome(), case.outcome(torch.float64))


def test_every_kernel_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The properties above would hold as well if none ever was."""
    used = set()

    class Watched:
        def __getattr__(self, name: str) -> Any:
            used.add(name)
            return getattr(kernels, name)

    monkeypatch.setattr(native, "kernels", Watched())
    for op in ALL:
        op(normal(0), 3, 5).outcome()
    assert used == set(KERNELS)


# -- the same bits --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("op", ROW_BY_ROW)
@given(seed=seeds, rows=st.integers(1, 200), width=st.integers(1, 70), data=st.data())
def test_a_row_alone_is_the_row_of_any_batch(
    op: Callable[..., Case], seed: int, rows: int, width: int, data: st.DataObject
) -> None:
    case = op(normal(seed), rows, width)
    number = data.draw(st.integers(0, rows - 1))
    results, gradients = case.outcome()
    alone, its_gradients = case.row(number).outcome()
    assert all(torch.equal(batch[number], one[0]) for batch, one in zip(results, alone, strict=True))
    for batch, one in zip(gradients[: len(case.rows)], its_gradients, strict=False):
        assert torch.equal(batch[number], one[0])


@pytest.mark.usefixtures("instruction_set")
@given(seed=seeds, rows=st.integers(1, 200), vocab=st.integers(1, 70), data=st.data())
def test_a_row_of_logits_alone_loses_what_it_loses_in_any_batch(
    seed: int, rows: int, vocab: int, data: st.DataObject
) -> None:
    logits = 5 * normal(seed)(rows, vocab)
    number = data.draw(st.integers(0, rows - 1))
    targets = torch.arange(rows) % vocab
    batch, losses = logits.clone(), torch.empty(rows)
    kernels.cross_entropy(batch, targets, losses)
    one, loss = logits[number : number + 1].clone(), torch.empty(1)
    kernels.cross_entropy(one, targets[number : number + 1], loss)
    assert torch.equal(batch[number], one[0])
    assert torch.equal(losses[number], loss[0])


def on_threads(count: int, case: Case) -> list[Tensor]:
    """Results and gradients, but of what rows share only a norm's weight: others are PyTorch's own sums."""
    with threads(count):
        results, gradients = case.outcome()
    ours = len(case.rows) + (len(case.shared) == 1)
    return [*results, *gradients[:ours]]


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("op", ROW_BY_ROW)
@pytest.mark.parametrize("rows", [65, 600, 1025])
def test_two_threads_compute_what_one_does(op: Callable[..., Case], rows: int) -> None:
    """The norm's weight gradient too, which is a sum over all rows."""
    case = op(normal(rows), rows, 37)
    assert all(torch.equal(one, two) for one, two in zip(on_threads(1, case), on_threads(2, case), strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="where OpenMP's entry is found differs")
def test_pytorchs_threads_are_found() -> None:
    """Without them, kernels would do all their work on one thread, and nothing but their speed would tell."""
    assert hasattr(ctypes.CDLL(None), "GOMP_parallel")


# -- what is not finite, or hardly ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("op", ROW_BY_ROW)
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("width", [3, 40])
def test_what_is_not_finite_shows_where_it_does_in_the_reference(
    op: Callable[..., Case], broken: float, width: int
) -> None:
    for place in range(len(op(normal(0), 3, width).rows)):
        case = op(normal(0), 3, width)
        sound, _ = case.outcome()
        case.rows[place][1].view(-1)[-1] = broken
        got, wanted = case.outcome(), case.outcome(torch.float64)
        for ours, exact in zip((*got[0], *got[1]), (*wanted[0], *wanted[1]), strict=True):
            assert torch.equal(ours.isfinite(), exact.isfinite())
        for ours, before in zip(got[0], sound, strict=True):
            assert torch.equal(ours[[0, 2]], before[[0, 2]])


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("vocab", [3, 40])
@pytest.mark.parametrize("column", [0, -1])
def test_a_loss_of_what_is_not_finite_is_not_a_number(broken: float, vocab: int, column: int) -> None:
    """But -inf is a token that cannot come, and here another one does."""
    logits = normal(0)(3, vocab)
    targets = torch.tensor([0, 1, 2])
    sound, sound_losses = logits.clone(), torch.empty(3)
    kernels.cross_entropy(sound, targets, sound_losses)
    logits[1, column] = broken
    losses = torch.empty(3)
    kernels.cross_entropy(logits, targets, losses)
    assert losses[1].isfinite() == (broken == -math.inf)
    assert logits[1].isfinite().all() == (broken == -math.inf)
    assert torch.equal(losses[[0, 2]], sound_losses[[0, 2]])
    assert torch.equal(logits[[0, 2]], sound[[0, 2]])


@pytest.mark.usefixtures("anything")
@given(seeds, st.integers(1, 70), st.sampled_from([90.0, 1e4]))
def test_extreme_logits_have_a_loss(seed: int, vocab: int, size: float) -> None:
    draw = normal(seed)
    targets = (draw(9).abs() * vocab).long() % vocab
    case = Case(
        lambda x, weight: linear_cross_entropy(x, weight, targets), [torch.eye(9)], [size * draw(vocab, 9).sign()]
    )
    (loss,), gradients = case.outcome()
    (exact,), exact_gradients = case.outcome(torch.float64)
    torch.testing.assert_close(loss, exact.float())
    for ours, wanted in zip(gradients, exact_gradients, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-6 * size)


# -- arguments that do not fit --------------------------------------------------------------------------------------

N, D, H = 3, 5, 2


def arguments(kernel: str) -> list[Any]:
    """What fits, for the kernels' own functions."""
    zeros, mixes = torch.zeros, 24
    streams, fn, out, by_out = zeros(N, 4, D), zeros(mixes, 4 * D), zeros(N, D), zeros(N, D)
    post, comb, rows = zeros(N, 4), zeros(N, 4, 4), zeros(N)
    integers = torch.tensor
    attended = [
        *(zeros(N, H, D), zeros(N, D), integers([0, 0, 2]), integers([0, 1, 2]), integers([[0, 2, 0], [2, 1, 1]])),
        *(zeros(4, D), integers([[0], [2]]), 2, integers([0, 1, 2]), integers([[-1], [0], [1]]), zeros(H)),
    ]
    fitting: dict[str, list[Any]] = {
        "hyper_read": [streams, fn, zeros(4), 1.0, 1e-6, 1e-6, out, zeros(N, mixes), rows],
        "hyper_read_gradient": [
            *(streams, fn, zeros(4), 1.0, 1e-6, zeros(N, mixes), rows, by_out, zeros(N, mixes - 4)),
            *(zeros(N, 4, D), zeros(N, mixes), zeros(N, 4)),
        ],
        "hyper_strengths": [post, zeros(N, 4)],
        "hyper_post": [streams, out, post, comb, zeros(N, 4, D)],
        "hyper_post_gradient": [
            *(streams, out, post, comb, zeros(N, 4, D)),
            *(zeros(N, 4, D), by_out, zeros(N, 4), zeros(N, 4, 4)),
        ],
        "sinkhorn": [comb, 3, 1e-6, zeros(N, 4, 4)],
        "sinkhorn_gradient": [comb, 3, 1e-6, zeros(N, 4, 4), zeros(N, 4, 4)],
        "rms_norm": [out, zeros(D), 1e-6, zeros(N, D), rows],
        "rms_norm_gradient": [out, zeros(D), rows, by_out, zeros(N, D), zeros(D)],
        "swiglu": [out, by_out, 1.0, zeros(N, D)],
        "swiglu_gradient": [out, by_out, 1.0, zeros(N, D), zeros(N, D), zeros(N, D), zeros(N, D)],
        "attention": [*attended, zeros(N, H, D)],
        "attention_gradient": [
            *(*attended, zeros(N, H, D)),
            *(zeros(N, H, D), zeros(N, D), zeros(4, D), zeros(H)),
        ],
        "cross_entropy": [zeros(N, D), torch.tensor([0, D - 1, IGNORED]), rows],
    }
    return fitting[kernel]


MISFITS: dict[str, Callable[[Tensor], Any]] = {
    "another dtype": lambda tensor: tensor.double() if tensor.is_floating_point() else tensor.int(),
    "half of another": lambda tensor: tensor.repeat_interleave(2, dim=-1)[..., ::2],
    "a row more": lambda tensor: torch.cat((tensor, tensor[:1])),
    "a row less": lambda tensor: tensor[1:],
    "a dim more": lambda tensor: tensor[None],
    "elsewhere": lambda tensor: tensor.to("meta"),
    "a list": lambda tensor: tensor.tolist(),
}


# Nobody attends to the window's row more, nor the storage's or the table's.
FITTING_ALL_THE_SAME = [
    *(("attention", "a row more", place) for place in (1, 5, 6)),
    ("attention_gradient", "a row more", 6),
]


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_tensors_that_do_not_fit_are_refused(kernel: str, misfit: str) -> None:
    """Never read or written beyond their end, and never written into a copy that nobody sees."""
    function = getattr(kernels, kernel)
    assert function(*arguments(kernel)) is None
    for place, argument in enumerate(arguments(kernel)):
        if isinstance(argument, Tensor) and (kernel, misfit, place) not in FITTING_ALL_THE_SAME:
            passed = arguments(kernel)
            passed[place] = MISFITS[misfit](argument)
            with pytest.raises((TypeError, ValueError)):
                function(*passed)


@pytest.mark.parametrize("kernel", KERNELS)
def test_numbers_at_odd_addresses_are_refused(kernel: str) -> None:
    for place, argument in enumerate(arguments(kernel)):
        if isinstance(argument, Tensor):
            passed = arguments(kernel)
            passed[place] = misaligned(argument)
            with pytest.raises(ValueError, match="an address is no multiple of"):
                getattr(kernels, kernel)(*passed)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_wrong_number_of_arguments_is_refused(kernel: str) -> None:
    for passed in (arguments(kernel)[:-1], [*arguments(kernel), 1], []):
        with pytest.raises(TypeError):
            getattr(kernels, kernel)(*passed)


def test_numbers_that_do_not_fit_are_refused() -> None:
    for iterations in (0, -1, 2**31 - 1):
        for kernel in ("sinkhorn", "sinkhorn_gradient"):
            passed = arguments(kernel)
            passed[1] = iterations
            with pytest.raises(ValueError, match="iterations"):
                getattr(kernels, kernel)(*passed)
    logits, _, losses = arguments("cross_entropy")
    with pytest.raises(ValueError, match="targets must be of the vocabulary"):
        kernels.cross_entropy(logits, torch.tensor([0, D, 0]), losses)
    for place, numbers, match in [
        (2, [0, -1, 2], "rows of the window"),
        (3, [0, 3, 2], "rows of the window"),
        (4, [[0, 2, 0], [1, 2, 1]], "every row once"),
        (4, [[0, 3, 0], [3, 0, 1]], "rows that there are"),
        (4, [[0, 2, 0], [2, 2, 1]], "rows that there are"),
        (4, [[-1, 2, 0], [1, 1, 1]], "rows that there are"),
        (4, [[0, 2, 0], [2, 1, 2]], "all segments"),
        (6, [[0], [3]], "in the storage"),
        (6, [[-1], [2]], "in the storage"),
        (8, [0, 1, 3], "in the table"),
    ]:
        for kernel in ("attention", "attention_gradient"):
            passed = arguments(kernel)
            passed[place] = torch.tensor(numbers)
            with pytest.raises(ValueError, match=match):
                getattr(kernels, kernel)(*passed)
    with pytest.raises(ValueError, match="this machine has no instruction set 'abacus'"):
        kernels.use("abacus")
