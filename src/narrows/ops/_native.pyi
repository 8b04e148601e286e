"""Kernels for CPUs, from native/module.cpp. Shapes and meaning: native/kernels.hpp, narrows.ops."""

from collections.abc import Mapping, Sequence

from torch import Tensor

VERSION: int

def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def rest() -> None: ...
def use(name: str) -> None: ...
def hyper_read(
    streams: Tensor,
    fn: Tensor,
    base: Tensor,
    scale: float,
    eps: float,
    norm_eps: float,
    out: Tensor,
    mixes: Tensor,
    inverse: Tensor,
    /,
) -> None: ...
def hyper_read_gradient(
    streams: Tensor,
    fn: Tensor,
    base: Tensor,
    scale: float,
    eps: float,
    mixes: Tensor,
    inverse: Tensor,
    by_out: Tensor,
    by_others: Tensor,
    by_streams: Tensor,
    scaled: Tensor,
    by_pre: Tensor,
    /,
) -> None: ...
def hyper_strengths(logits: Tensor, result: Tensor, /) -> None: ...
def hyper_post(streams: Tensor, out: Tensor, post: Tensor, comb: Tensor, result: Tensor, /) -> None: ...
def hyper_post_gradient(
    streams: Tensor,
    out: Tensor,
    post: Tensor,
    comb: Tensor,
    by_result: Tensor,
    by_streams: Tensor,
    by_out: Tensor,
    by_post: Tensor,
    by_comb: Tensor,
    /,
) -> None: ...
def sinkhorn(logits: Tensor, iterations: int, eps: float, result: Tensor, /) -> None: ...
def sinkhorn_gradient(logits: Tensor, iterations: int, eps: float, by_result: Tensor, by_logits: Tensor, /) -> None: ...
def rms_norm(x: Tensor, weight: Tensor | None, eps: float, result: Tensor, inverse: Tensor, /) -> None: ...
def rms_norm_gradient(
    x: Tensor,
    weight: Tensor | None,
    inverse: Tensor,
    by_result: Tensor,
    by_x: Tensor,
    by_weight: Tensor | None,
    /,
) -> None: ...
def swiglu(gate: Tensor, up: Tensor, limit: float, result: Tensor, /) -> None: ...
def swiglu_gradient(
    gate: Tensor,
    up: Tensor,
    limit: float,
    by_result: Tensor,
    by_gate: Tensor,
    by_up: Tensor,
    result: Tensor | None,
    /,
) -> None: ...
def cross_entropy(logits: Tensor, targets: Tensor, losses: Tensor, /) -> None: ...
def attention(
    q: Tensor,
    window: Tensor,
    first: Tensor,
    last: Tensor,
    tiles: Tensor,
    storage: Tensor | None,
    table: Tensor | None,
    block: int,
    visible: Tensor | None,
    selected: Tensor | None,
    sink: Tensor,
    out: Tensor,
    /,
) -> None: ...
def attention_gradient(
    q: Tensor,
    window: Tensor,
    first: Tensor,
    last: Tensor,
    tiles: Tensor,
    storage: Tensor | None,
    table: Tensor | None,
    block: int,
    visible: Tensor | None,
    selected: Tensor | None,
    sink: Tensor,
    by_out: Tensor,
    by_q: Tensor,
    by_window: Tensor,
    by_storage: Tensor | None,
    by_sink: Tensor,
    /,
) -> None: ...

# -- inference ---------------------------------------------------------------------------------------------------

_Format = tuple[str, int, int]

class Matrix:
    def __init__(self, format: str, rows: int, columns: int, values: Tensor, scales: Tensor) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...

_LayerMemory = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]

class History:
    def __init__(self, layers: Sequence[_LayerMemory], entries: _Format, keys: _Format, tables: Tensor) -> None: ...

class Network:
    def __init__(
        self,
        config: Mapping[str, object],
        matrices: Mapping[str, Matrix],
        arrays: Mapping[str, Tensor],
        prefetch: int,
    ) -> None: ...
    def prefetched(self) -> tuple[int, int, int, int, int]: ...
    def step(
        self, tokens: Tensor, positions: Tensor, segments: Tensor, history: History, threads: int, streams: Tensor
    ) -> None: ...
    def draft_step(
        self,
        tokens: Tensor,
        positions: Tensor,
        segments: Tensor,
        history: History,
        threads: int,
        streams: Tensor,
        out: Tensor,
    ) -> None: ...
    def logits(self, streams: Tensor, draft: bool, threads: int, out: Tensor) -> None: ...

def why_not(config: Mapping[str, object]) -> str | None: ...
def linear(x: Tensor, matrix: Matrix, exact: bool, threads: int, out: Tensor) -> None: ...
def encode_rows(format: _Format, rows: Tensor, out: Tensor) -> None: ...
def decode_rows(format: _Format, stored: Tensor, out: Tensor) -> None: ...
def index_topk(
    queries: Tensor,
    weights: Tensor,
    visible: Tensor,
    keys: Tensor,
    tables: Tensor,
    format: _Format,
    splits: int,
    out: Tensor,
) -> None: ...
def attention_stored(
    q: Tensor,
    window: Tensor,
    first: Tensor,
    last: Tensor,
    tiles: Tensor,
    entries: Tensor | None,
    tables: Tensor,
    visible: Tensor | None,
    selected: Tensor | None,
    sink: Tensor,
    format: _Format,
    out: Tensor,
) -> None: ...
def summarize(logits: Tensor) -> tuple[bool, int, float]: ...
def compress(rows: Tensor, ape: Tensor, overlap: bool, out: Tensor) -> None: ...
def hyper_pre(
    streams: Tensor,
    fn: Tensor,
    base: Tensor,
    scale: Tensor,
    eps: float,
    norm_eps: float,
    iterations: int,
    out: Tensor,
    post: Tensor,
    comb: Tensor,
) -> None: ...
