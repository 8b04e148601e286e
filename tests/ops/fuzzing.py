"""Calls every entry of inference in narrows.ops._native with arguments of which some do not fit, in its own process.

python -m tests.ops.fuzzing SEED COUNT LOG: what is about to be called is in LOG, for whoever finds that it crashed.
Every call gives a result or one of a few errors, and leaves a sound network computing what it did.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from narrows.engine.paged_history import PagedHistory
from narrows.model import native_network
from narrows.model.config import LayerKind
from narrows.model.network import Network
from narrows.model.precision import Precision
from narrows.model.presets import TINY
from narrows.ops import native
from narrows.ops.packed import pack
from narrows.ops.quantize import quantize_fp8, quantize_mxfp4
from narrows.ops.row_format import FP4Keys, FP8Entries
from tests.model.packing import pack_network
from tests.ops.computed import misaligned
from tests.parity.configurations import randomised

REFUSED = (ValueError, TypeError, RuntimeError, MemoryError)
kernels = native.kernels

# -- what fits ------------------------------------------------------------------------------------------------------

Arguments = list[Any]


@dataclass(frozen=True)
class Sound:
    """A network, its history, and what they were made of."""

    network: Any
    made_of: Arguments
    history: Any
    history_made_of: Arguments
    drafts: Any

    def streams(self) -> Tensor:
        """What it computes of some tokens, from an empty history."""
        out = torch.zeros(5, 4, HIDDEN)
        self.network.step(TOKENS.clone(), positions_of(SEGMENTS), SEGMENTS.clone(), self.history, 1, out)
        return out


HIDDEN, VOCAB = 12, 40
TOKENS, SEGMENTS = torch.tensor([3, 1, 4, 1, 5]), torch.tensor([[3, 0, 1], [2, 0, 0]])


def positions_of(segments: Tensor) -> Tensor:
    """Of five rows, if the segments have so many."""
    rows = [past + row for count, past, _ in segments.tolist() for row in range(min(count, 6))]
    return torch.tensor([min(position, 2**63 - 1) for position in rows[:5]])


class _Watched:
    """The module, and what its classes were called with."""

    def __init__(self) -> None:
        self.calls: dict[str, Arguments] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(kernels, name)
        if name not in ("Network", "History"):
            return found

        def called(*arguments: Any) -> Any:
            self.calls[name] = list(arguments)
            return found(*arguments)

        return called


def sound(precision: Precision) -> Sound:
    update = {"layer_types": tuple(LayerKind), "num_hidden_layers": 3, "vocab_size": VOCAB, "index_topk": 1}
    if precision is not Precision.OFFICIAL:
        update["hidden_size"] = HIDDEN
        update["moe_intermediate_size"] = 6
    config = TINY.model_copy(update={**update, "csa_ratio": 2, "hca_ratio": 4, "max_position_embeddings": 64})
    watched = _Watched()
    native.kernels = watched  # type: ignore[assignment]
    try:
        network = pack_network(randomised(Network(config), torch.Generator().manual_seed(1)), precision)
        drafts = native_network._memory(PagedHistory.for_mtp(config, slots=3, precision=precision))
        history = PagedHistory(config, slots=3, blocks=9, precision=precision)
        for slot, blocks in ((1, [4, 2, 7, 0, 5]), (0, [8, 1]), (2, [3])):
            history.bind(slot, blocks)
        memory = native_network._memory(history)
    finally:
        native.kernels = kernels
    return Sound(network._bound, watched.calls["Network"], memory, watched.calls["History"], drafts)


def matrix(random: Random) -> Arguments:
    rows, columns = random.choice([1, 16, 33]), random.choice([32, 64])
    weight = torch.randn(rows, columns)
    packed = random.choice([pack(weight.bfloat16()), pack(*quantize_fp8(weight)), pack(*quantize_mxfp4(weight))])
    return [packed.format, packed.rows, packed.columns, packed.values, packed.scales]


def stored(random: Random, *, keys: bool = True) -> tuple[tuple[str, int, int], int]:
    """A format of 32 features, and its bytes; `keys`: maybe one that only the indexer's keys have."""
    formats = [
        (("float32", 32, 0), 128),
        (("bf16", 32, 0), 64),
        (("fp8_entries", 32, 6), FP8Entries(32, 6).width),
        (("fp4_keys", 32, 0), FP4Keys(32).width),
    ]
    return random.choice(formats if keys else formats[:-1])


def bytes_of(random: Random, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape).to(torch.uint8) if random.random() < 0.7 else torch.zeros(shape).byte()


def linear(random: Random) -> Arguments:
    made, rows = matrix(random), random.choice([0, 1, 2, 5, 97])
    exact = made[0] == "bf16" and random.random() < 0.5
    return [torch.randn(rows, made[2]), kernels.Matrix(*made), exact, random.choice([1, 2]), torch.zeros(rows, made[1])]


def encode_rows(random: Random) -> Arguments:
    (format, width), count = stored(random), random.choice([0, 1, 5])
    return [format, torch.randn(count, 32), torch.zeros(count, width, dtype=torch.uint8)]


def decode_rows(random: Random) -> Arguments:
    (format, width), count = stored(random), random.choice([0, 1, 5])
    return [format, bytes_of(random, count, width), torch.zeros(count, 32)]


def index_topk(random: Random) -> Arguments:
    (format, width), rows, heads = stored(random), random.choice([0, 1, 5, 17]), random.choice([1, 5, 17, 65])
    block, blocks, k = random.choice([1, 3, 40]), random.choice([1, 4]), random.choice([1, 3, 50])
    visible = torch.randint(0, block * blocks + 1, (rows,)).sort().values
    table = torch.randperm(blocks).int()[None]
    keys = bytes_of(random, blocks, block, width)
    queries, weights, out = torch.randn(rows, heads, 32), torch.randn(rows, heads), torch.zeros(rows, k).long()
    return [queries, weights, visible, keys, table, format, random.choice([1, 2, 64]), out]


def attention_stored(random: Random) -> Arguments:
    format, width = stored(random, keys=False)
    rows, heads, block, blocks = random.choice([1, 5, 20]), random.choice([1, 3, 70]), random.choice([1, 3]), 4
    last = torch.arange(rows)
    arguments = [torch.randn(rows, heads, 32), bytes_of(random, rows, width), (last - 4).clamp(min=0), last]
    arguments += [torch.tensor([[0, 1, 0], [1, rows - 1, 0]][: 2 if rows > 1 else 1])]
    if random.random() < 0.3:
        arguments += [None, torch.zeros(0, 0, dtype=torch.int32), None, None]
    else:
        visible = torch.randint(0, block * blocks + 1, (rows,))
        selected = torch.randint(-1, block * blocks, (rows, 2)) if random.random() < 0.5 else None
        arguments += [bytes_of(random, blocks, block, width), torch.randperm(blocks).int()[None], visible, selected]
    return [*arguments, torch.randn(heads), format, torch.zeros(rows, heads, 32)]


def compress(random: Random) -> Arguments:
    tokens, dim, overlap = random.choice([1, 4]), random.choice([1, 5, 32]), random.random() < 0.5
    width = 2 * dim if overlap else dim
    given = random.choice([1, 2]) * tokens if overlap else tokens
    return [torch.randn(given, 2 * width), torch.randn(tokens, width), overlap, torch.zeros(dim)]


def hyper_pre(random: Random) -> Arguments:
    rows, d = random.choice([0, 1, 5, 20]), random.choice([1, 5, 32])
    return [
        *(torch.randn(rows, 4, d), torch.randn(24, 4 * d), torch.randn(24), torch.randn(3), 1e-6, 1e-6, 3),
        *(torch.zeros(rows, d), torch.zeros(rows, 4), torch.zeros(rows, 16)),
    ]


def summarize(random: Random) -> Arguments:
    return [torch.randn(random.choice([1, 5, 1000]))]


def why_not(random: Random) -> Arguments:
    return [native_network._sizes(random.choice([TINY, TINY.model_copy(update={"hc_mult": 3})]))]


METHODS = ["step", "draft_step", "logits", "prefetched"]
OPS = [linear, encode_rows, decode_rows, index_topk, attention_stored, compress, hyper_pre, summarize, why_not]

# -- what does not --------------------------------------------------------------------------------------------------

INTEGERS = [
    0,
    1,
    2,
    3,
    -1,
    5,
    16,
    64,
    2**20,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
    2**64,
    -(2**31),
]


def refilled(tensor: Tensor, random: Random) -> Tensor:
    """Some of its numbers others."""
    changed = tensor.clone()
    if not changed.numel():
        return changed
    flat = changed.view(-1)
    if random.random() < 0.4 and not tensor.is_floating_point():
        limits = torch.iinfo(tensor.dtype)
        return changed.fill_(min(max(random.choice(INTEGERS), limits.min), limits.max))
    for _ in range(random.choice([1, 1, 3, 50])):
        place = random.randrange(len(flat))
        if tensor.is_floating_point():
            flat[place] = random.choice([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-45, 0.0])
        else:
            limits = torch.iinfo(tensor.dtype)
            flat[place] = min(max(random.choice(INTEGERS), limits.min), limits.max)
    return changed


TENSORS: list[Callable[[Tensor, Random], Any]] = [
    refilled,
    refilled,
    refilled,
    lambda t, _: t.double() if t.is_floating_point() else t.float(),
    lambda t, _: t.half() if t.is_floating_point() else t.to(torch.int16),
    lambda t, _: t.flatten().clone().view(torch.uint8).view(*t.shape[:-1], -1) if t.dim() and t.numel() else t,
    lambda t, _: t.repeat_interleave(2, dim=-1)[..., ::2] if t.dim() else t,
    lambda t, _: t.mT.contiguous().mT if t.dim() > 1 else t,
    lambda t, _: torch.cat((t, t[:1])) if t.dim() else t,
    lambda t, _: t[1:] if t.dim() else t,
    lambda t, _: t[:0] if t.dim() else t,
    lambda t, _: t[..., :-1].contiguous() if t.dim() else t,
    lambda t, _: t[..., :0].contiguous() if t.dim() else t,
    lambda t, _: t[None],
    lambda t, _: t.flatten(),
    lambda t, _: t.sum(),
    lambda t, _: t[:1].expand(t.shape) if t.dim() else t,
    lambda t, _: torch.empty(0, dtype=t.dtype),
    lambda t, _: t.to("meta"),
    lambda t, _: t.tolist(),
    lambda t, _: t.numpy(),
    lambda t, _: t.numpy().astype(t.numpy().dtype.newbyteorder()) if t.element_size() > 1 else t,
    lambda t, _: misaligned(t),
    lambda t, _: t.clone().requires_grad_() if t.is_floating_point() else t,
]


def other(value: Any, random: Random) -> Any:
    """Something in the place of `value`."""
    if random.random() < 0.08:
        return random.choice([None, 0, -1, 1.5, "x", [], (), {}, b"x", torch.zeros(1), object(), float("nan")])
    match value:
        case Tensor():
            plain = (
                value.device.type == "cpu" and not value.requires_grad and value.is_contiguous()
            )  # nearly as it came
            if plain and value.dtype in (torch.int64, torch.int32) and random.random() < 0.5:
                return refilled(value, random)
            return random.choice(TENSORS)(value, random) if plain else None
        case bool():
            return not value
        case int():
            return random.choice(INTEGERS) if random.random() < 0.7 else value + random.choice([-1, 1])
        case float():
            return random.choice([0.0, -1.0, float("nan"), float("inf"), 1e300, 1e-300])
        case str():
            return random.choice(
                ["", "bf16", "fp8", "mxfp4", "float32", "fp8_entries", "fp4_keys", "sliding", "csa", "hca"]
            )
        case tuple() | list() if value:
            parts = list(value)
            if random.random() < 0.2:
                parts = random.choice([parts[1:], parts[:-1], [*parts, parts[0]], [parts[-1], *parts[:-1]]])
            else:
                place = random.randrange(len(parts))
                parts[place] = other(parts[place], random)
            return type(value)(parts)
        case dict() if value:
            changed = dict(value)
            for _ in range(random.choice([1, 1, 2])):
                name = random.choice(list(changed))
                if random.random() < 0.15:
                    del changed[name]
                    if not changed:
                        break
                elif random.random() < 0.2:
                    changed[name] = changed[random.choice(list(changed))]
                else:
                    changed[name] = other(changed[name], random)
            return changed
        case kernels.Matrix():
            made = matrix(random)
            return kernels.Matrix(*made)
        case None:
            return random.choice([torch.zeros(1, dtype=torch.uint8), torch.zeros(2, 3, 4, dtype=torch.uint8), 3])
    return None


def spoilt(arguments: Arguments, random: Random) -> Arguments:
    """One or a few of them others; sometimes one more or one less, seldom none."""
    changed = list(arguments)
    for _ in range(random.choice([0, 1, 1, 1, 1, 2, 3])):
        place = random.randrange(len(changed))
        changed[place] = other(changed[place], random)
    if random.random() < 0.02:
        changed = changed[1:]
    return changed


# -- networks -------------------------------------------------------------------------------------------------------


def any_segments(random: Random) -> Tensor:
    return torch.tensor(
        random.choice(
            [
                [[5, 0, 1]],
                [[3, 0, 1], [2, 0, 0]],
                [[1, 3, 1], [1, 0, 0]],
                [[5, 6, 1]],
                [[5, 0, 2]],
                [[5, 59, 1]],
                [[5, 2**63 - 3, 1]],
                [[2**63 - 1, 1, 1], [6, 0, 0]],
            ]
        )
    )


class Fuzzer:
    def __init__(self, seed: int, log: Path) -> None:
        self.random, self.log = Random(seed), log
        torch.manual_seed(seed)
        self.sound = [sound(precision) for precision in (Precision.BF16, Precision.OFFICIAL)]
        self.before = self.sound[0].streams()
        self.outcomes: Counter[str] = Counter()

    def call(self, name: str, function: Callable[..., Any], arguments: Arguments) -> Any:
        with self.log.open("w") as log:
            log.write(f"{name}{tuple(map(described, arguments))}\n")
        try:
            result = function(*arguments)
        except REFUSED as error:
            self.outcomes[f"{name}: {type(error).__name__}"] += 1
            return None
        self.outcomes[f"{name}: done"] += 1
        return result

    def turn(self) -> None:
        random = self.random
        chosen = random.choice([*OPS, *OPS, *OPS, self.matrix, self.network, self.history, *[self.step] * 6])
        if chosen in OPS:
            name = chosen.__name__
            self.call(name, getattr(kernels, name), spoilt(chosen(random), random))
        else:
            chosen()

    def matrix(self) -> None:
        found = self.call("Matrix", kernels.Matrix, spoilt(matrix(self.random), self.random))
        if found is not None and found.rows * found.columns < 2**24:
            x, out = torch.randn(3, found.columns), torch.zeros(3, found.rows)
            self.call("linear", kernels.linear, [x, found, False, 1, out])

    def network(self) -> None:
        sound = self.random.choice(self.sound)
        self.run(sound, self.call("Network", kernels.Network, spoilt(sound.made_of, self.random)), sound.history)

    def history(self) -> None:
        sound = self.random.choice(self.sound)
        made = [[tuple(None if t is None else t.clone() for t in layer) for layer in sound.history_made_of[0]]]
        made += [*sound.history_made_of[1:3], sound.history_made_of[3].clone()]
        self.run(sound, sound.network, self.call("History", kernels.History, spoilt(made, self.random)))

    def run(self, sound: Sound, network: Any, history: Any) -> None:
        if network is None or history is None:
            return
        width = sound.made_of[0]["hidden_size"]
        for _ in range(2):
            segments = any_segments(self.random)
            arguments = [TOKENS.clone(), positions_of(segments), segments, history, 2, torch.zeros(5, 4, width)]
            self.call("step", network.step, arguments)
        self.call("logits", network.logits, [torch.randn(5, 4, width), False, 1, torch.zeros(5, VOCAB)])
        self.call("prefetched", network.prefetched, [])

    def step(self) -> None:
        random, sound = self.random, self.random.choice(self.sound)
        width, network = sound.made_of[0]["hidden_size"], sound.network
        tokens, streams = TOKENS.clone(), torch.zeros(5, 4, width)
        segments = any_segments(random) if random.random() < 0.5 else SEGMENTS.clone()
        rows = [tokens, positions_of(segments), segments]
        match random.choice(["step", "step", "draft_step", "logits", "tables"]):
            case "step":
                self.call("step", network.step, spoilt([*rows, sound.history, 2, streams], random))
            case "draft_step":
                arguments = [*rows, sound.drafts, 2, torch.randn(5, 4, width), streams]
                self.call("draft_step", network.draft_step, spoilt(arguments, random))
            case "logits":
                arguments = [torch.randn(5, 4, width), random.random() < 0.5, 2, torch.zeros(5, VOCAB)]
                self.call("logits", network.logits, spoilt(arguments, random))
            case _:
                tables = sound.history_made_of[3]
                kept = tables.clone()
                tables[1, random.randrange(2)] = random.choice([-1, 9, 2**31 - 1, -(2**31), 3])
                self.call("step", network.step, [*rows, sound.history, 1, streams])
                tables.copy_(kept)

    def check(self) -> None:
        """Nothing that was refused, and nothing that was not, has damaged what is sound."""
        for memory in (tensor for layer in self.sound[0].history_made_of[0] for tensor in layer if tensor is not None):
            memory.zero_()
        assert torch.equal(self.sound[0].streams(), self.before)


def described(value: Any) -> str:
    if isinstance(value, Tensor):
        numbers = value.flatten()[:40].tolist() if value.device.type == "cpu" else []
        return f"{value.dtype} {list(value.shape)} {value.stride()} {numbers}"
    if isinstance(value, dict):
        return str({name: described(part) for name, part in value.items()})[:20_000]
    if isinstance(value, tuple | list):
        return str([described(part) for part in value])[:5_000]
    return repr(value)[:200]


def main(seed: int, count: int, log: Path) -> None:
    torch.set_num_threads(1)
    fuzzer = Fuzzer(seed, log)
    for _ in range(count):
        fuzzer.turn()
    fuzzer.check()
    for name, times in sorted(fuzzer.outcomes.items()):
        print(f"{times:6} {name}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
