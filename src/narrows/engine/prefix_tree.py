"""Which prefixes are known: a tree of full blocks by their tokens, with snapshots where a request can resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from narrows.engine.blocks import BlockPool


class Sized(Protocol):
    """What a snapshot must be able to say."""

    @property
    def bytes(self) -> int: ...


S = TypeVar("S", bound=Sized)


@dataclass(eq=False)
class Node(Generic[S]):
    """A full block behind its parent's. `pins` count the running sequences whose deepest block this is."""

    tokens: tuple[int, ...]
    block: int
    depth: int
    parent: Node[S] | None
    children: dict[tuple[int, ...], Node[S]] = field(default_factory=dict)
    snapshot: S | None = None
    last_used: int = 0
    pins: int = 0

    def path(self) -> list[Node[S]]:
        """From the first block to this one."""
        nodes: list[Node[S]] = []
        node: Node[S] | None = self
        while node is not None and node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class PrefixTree(Generic[S]):
    """Holds blocks of `pool` beyond the life of the requests that filled them.

    A snapshot at a node is all that is needed, beside the blocks up to it, to go on behind its last token. Snapshots
    have a budget of `snapshot_bytes`; blocks have none, and are given back when the pool is asked for more than is
    free: first those that no snapshot lies behind, then the least recently used. No tensor is looked into.
    """

    def __init__(self, pool: BlockPool, block_tokens: int, snapshot_bytes: int) -> None:
        self._pool, self.block_tokens, self.snapshot_bytes = pool, block_tokens, snapshot_bytes
        self.root: Node[S] = Node((), -1, 0, None)
        self.blocks = 0
        self.held_bytes = 0
        self._clock = 0
        self._snapshots: dict[int, Node[S]] = {}

    def match(self, tokens: Sequence[int]) -> list[Node[S]]:
        """The known blocks that `tokens` begin with."""
        node, found, size = self.root, [], self.block_tokens
        for start in range(0, len(tokens) - size + 1, size):
            child = node.children.get(tuple(tokens[start : start + size]))
            if child is None:
                break
            found.append(child)
            node = child
        self._touch(found)
        return found

    def extend(self, node: Node[S], tokens: tuple[int, ...], block: int) -> Node[S]:
        """The node behind `node` for a block of these tokens; a new one shares `block`, a known one keeps its own."""
        child = node.children.get(tokens)
        if child is None:
            self._pool.share([block])
            child = node.children[tokens] = Node(tokens, block, node.depth + 1, node)
            self.blocks += 1
        self._touch([child])
        return child

    def attach(self, node: Node[S], snapshot: S) -> None:
        """Let requests resume behind `node`; not kept where it alone exceeds the budget."""
        if node.snapshot is not None or snapshot.bytes > self.snapshot_bytes:
            return
        node.snapshot = snapshot
        self._snapshots[id(node)] = node
        self.held_bytes += snapshot.bytes
        while self.held_bytes > self.snapshot_bytes:
            self.detach(min((n for n in self._snapshots.values() if n is not node), key=lambda n: n.last_used))

    def detach(self, node: Node[S]) -> None:
        """Drop a node's snapshot, if it has one."""
        if node.snapshot is not None:
            self.held_bytes -= node.snapshot.bytes
            node.snapshot = None
            del self._snapshots[id(node)]

    def evict(self, wanted: int) -> int:
        """Give blocks back until `wanted` more are free, or nothing is left to give. -> how many became free."""
        before = self._pool.free
        while self._pool.free - before < wanted:
            leaves = [node for node in self._nodes() if not node.children and not node.pins]
            if not leaves:
                break
            # Nobody can resume behind a leaf without a snapshot.
            leaves.sort(key=lambda node: (node.snapshot is not None, node.last_used))
            for node in leaves:
                if self._pool.free - before >= wanted:
                    break
                self._remove(node)
        return self._pool.free - before

    def clear(self) -> None:
        """Give everything back that no running sequence pins."""
        self.evict(self._pool.count + 1)

    def _remove(self, node: Node[S]) -> None:
        assert node.parent is not None
        self.detach(node)
        del node.parent.children[node.tokens]
        self.blocks -= 1
        self._pool.release([node.block])

    def _touch(self, nodes: Sequence[Node[S]]) -> None:
        self._clock += 1
        for node in nodes:
            node.last_used = self._clock

    def _nodes(self) -> Iterator[Node[S]]:
        waiting = list(self.root.children.values())
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.children.values()
