"""The tree knows the prefixes it was told, gives blocks back when asked, and keeps to its budget."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from narrows.engine.blocks import BlockPool
from narrows.engine.prefix_tree import Node, PrefixTree

BLOCK = 2


@dataclass(frozen=True)
class Snapshot:
    bytes: int


def tree_of(blocks: int, snapshot_bytes: int = 100) -> PrefixTree[Snapshot]:
    return PrefixTree(BlockPool(blocks), BLOCK, snapshot_bytes)


def enter(tree: PrefixTree[Snapshot], tokens: list[int]) -> Node[Snapshot] | None:
    """The full blocks of a text, from a request that ends at once."""
    node = tree.root
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        if not tree._pool.free and not tree.evict(1):
            return None
        (block,) = tree._pool.allocate(1)
        node = tree.extend(node, tuple(tokens[start : start + BLOCK]), block)
        node.pins += 1
        if node.parent is not None and node.parent.parent is not None:
            node.parent.pins -= 1
        tree._pool.release([block])
    if node is not tree.root:
        node.pins -= 1
    return node


texts = st.lists(st.lists(st.integers(0, 2), max_size=9), max_size=12)


@given(known=texts, asked=st.lists(st.integers(0, 2), max_size=9))
def test_a_match_is_the_longest_known_prefix_of_full_blocks(known: list[list[int]], asked: list[int]) -> None:
    tree = tree_of(1000)
    for text in known:
        enter(tree, text)
    full = [text[: len(text) // BLOCK * BLOCK] for text in known]
    wanted = 0
    for length in range(BLOCK, len(asked) + 1, BLOCK):
        if any(text[:length] == asked[:length] for text in full):
            wanted = length // BLOCK
    path = tree.match(asked)
    assert len(path) == wanted
    assert [token for node in path for token in node.tokens] == asked[: wanted * BLOCK]
    assert not path or path[-1].path() == path
    assert tree.blocks == 1000 - tree._pool.free == len({tuple(t[:n]) for t in full for n in range(2, len(t) + 1, 2)})


@given(known=texts, wanted=st.integers(1, 12))
def test_evicting_gives_back_what_is_asked_and_never_a_pinned_path(known: list[list[int]], wanted: int) -> None:
    tree = tree_of(12)
    pinned: Node[Snapshot] | None = None
    for text in known:
        node = enter(tree, text)
        if pinned is None and node is not None and node is not tree.root:
            pinned, path = node, [n.block for n in node.path()]
            node.pins += 1
    held = tree.blocks
    freed = tree.evict(wanted)
    kept = len(pinned.path()) if pinned else 0
    assert freed == min(wanted, held - kept)
    assert tree.blocks == held - freed
    if pinned is not None:
        assert [n.block for n in pinned.path()] == path
        assert all(tree._pool.holders(block) == 1 for block in path)
        pinned.pins -= 1
    tree.clear()
    assert (tree.blocks, tree._pool.free, tree.held_bytes) == (0, 12, 0)


def test_what_no_snapshot_lies_behind_goes_first_then_what_was_used_least_recently() -> None:
    tree = tree_of(10)
    texts = {"old": [1, 1], "bare": [2, 2], "new": [3, 3]}
    for name, text in texts.items():
        node = enter(tree, text)
        assert node is not None
        if name != "bare":
            tree.attach(node, Snapshot(10))
    tree.match(texts["bare"])
    tree.match(texts["old"])  # used again, so "new" is now the older one
    kept = []
    for _ in texts:
        tree.evict(1)
        kept.append([name for name, text in texts.items() if tuple(text) in tree.root.children])
    assert kept == [["old", "new"], ["old"], []]


@given(sizes=st.lists(st.integers(0, 60), max_size=10))
def test_snapshots_keep_to_their_budget_and_the_last_used_stay(sizes: list[int]) -> None:
    tree = tree_of(100, snapshot_bytes=100)
    nodes = []
    for number, size in enumerate(sizes):
        node = enter(tree, [number + 10, number + 10])
        assert node is not None
        tree.attach(node, Snapshot(size))
        nodes.append(node)
        assert tree.held_bytes == sum(n.snapshot.bytes for n in nodes if n.snapshot) <= 100
        assert node.snapshot is not None
    kept = [node.snapshot is not None for node in nodes]
    assert kept == sorted(kept)  # none older than one that was dropped


def test_a_snapshot_larger_than_the_budget_is_not_kept() -> None:
    tree = tree_of(4, snapshot_bytes=10)
    node = enter(tree, [1, 1])
    assert node is not None
    tree.attach(node, Snapshot(11))
    assert (node.snapshot, tree.held_bytes) == (None, 0)
