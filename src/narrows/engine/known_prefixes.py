"""Known prefixes in the engine: what sequences leave for others, and where a new one resumes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from narrows.engine.blocks import BlockPool
from narrows.engine.paged_history import PagedHistory, State
from narrows.engine.prefix_tree import Node, PrefixTree
from narrows.engine.sequence import Parked, SequenceState, boundaries
from narrows.engine.store import Piece, PrefixStore

_log = logging.getLogger("narrows")


class KnownPrefixes:
    """The tree in memory, and the store on disk if there is one, on behalf of the core's sequences."""

    def __init__(
        self,
        history: PagedHistory,
        pool: BlockPool,
        tree: PrefixTree[State],
        store: PrefixStore | None,
        snapshot_every: int,
        make_room: Callable[[int], bool],
    ) -> None:
        """`make_room` sees to it that so many blocks are free, if it can."""
        self.tree, self._history, self._pool, self._store = tree, history, pool, store
        self._snapshot_every, self._make_room = snapshot_every, make_room

    def resume(self, sequence: SequenceState) -> None:
        """Take over the blocks of the longest known prefix that has a snapshot and leaves a token to compute; of none,
        where every token of the prompt is to be scored."""
        job, size = sequence.job, self._history.block_tokens
        scored = sequence.request.parameters.prompt_logprobs is not None
        whole = [] if scored else sequence.tokens[: (job.length - 1) // size * size]
        path = self.tree.match(whole)
        if self._store is not None:
            known = max((node.depth for node in path if node.snapshot is not None), default=0)
            if pieces := self._store.get(whole, longer_than=known * size):
                self._load(pieces, whole)
                path = self.tree.match(whole)
        forks = [len(path) * size]
        while path and path[-1].snapshot is None:
            path.pop()
        sequence.job.boundaries = boundaries(job.length, size, self._snapshot_every, forks)
        if not path:
            return
        deepest = path[-1]
        assert deepest.snapshot is not None
        sequence.blocks = [node.block for node in path]
        self._pool.share(sequence.blocks)
        self.pin(sequence, deepest)
        sequence.parked = Parked(deepest.snapshot, None)
        job.computed = sequence.reused = deepest.snapshot.length

    def remember(self, sequence: SequenceState) -> None:
        """Enter the blocks that are now full into the tree, and a snapshot where one is wanted."""
        job, size = sequence.job, self._history.block_tokens
        assert job.slot is not None
        node = sequence.node or self.tree.root
        for start in range(node.depth * size, job.computed // size * size, size):
            block = sequence.blocks[start // size] if sequence.blocks else -1
            if block < 0:
                return  # no layer has entries: there is nothing to share but states
            node = self.tree.extend(node, tuple(sequence.tokens[start : start + size]), block)
            self.pin(sequence, node)
        if job.computed % size or sequence.node is None:
            return
        if job.computed in job.boundaries:
            self.tree.attach(node, self._history.state(job.slot))
            self._keep(sequence, node)
        elif sequence.produced:
            if sequence.output_snapshot is not None:
                self.tree.detach(sequence.output_snapshot)
                sequence.output_snapshot = None
            if node.snapshot is None:
                self.tree.attach(node, self._history.state(job.slot))
                sequence.output_snapshot = node

    def _load(self, pieces: Sequence[Piece], tokens: Sequence[int]) -> None:
        """Enter what the disk kept of `tokens` into the tree, as far as there is room."""
        size, node = self._history.block_tokens, self.tree.root
        try:
            for piece in pieces:
                for start in range(piece.start, piece.state.length, size):
                    key = tuple(tokens[start : start + size])
                    node.pins += 1  # making room must not take what is being built upon
                    try:
                        if key in node.children:
                            behind = node.children[key]
                        elif self._make_room(1):
                            (block,) = self._pool.allocate(1)
                            try:
                                self._history.write([block], piece.contents.block((start - piece.start) // size))
                                behind = self.tree.extend(node, key, block)
                            finally:
                                self._pool.release([block])
                        else:
                            return
                    finally:
                        node.pins -= 1
                    node = behind
                self.tree.attach(node, piece.state)
        except (KeyError, RuntimeError) as error:
            _log.warning("a kept prefix does not fit this model (%s); its text is computed again.", error)

    def _keep(self, sequence: SequenceState, node: Node[State]) -> None:
        """Write what leads to a snapshot to disk, from where the disk's knowledge ends."""
        if self._store is None or node.snapshot is None:
            return
        tokens = sequence.tokens[: node.snapshot.length]
        start = self._store.missing(tokens)
        if start is not None:
            blocks = sequence.blocks[start // self._history.block_tokens : node.depth]
            self._store.put(tokens, Piece(start, self._history.read(blocks), node.snapshot))

    def leave(self, sequence: SequenceState) -> None:
        """A sequence ends: what others may resume from goes to disk."""
        if sequence.output_snapshot is not None and sequence.blocks:
            self._keep(sequence, sequence.output_snapshot)

    def pin(self, sequence: SequenceState, node: Node[State] | None) -> None:
        """The sequence's deepest known block, which must not be evicted while it holds blocks."""
        if sequence.node is not None:
            sequence.node.pins -= 1
        sequence.node = node
        if node is not None:
            node.pins += 1
