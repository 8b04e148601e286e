"""The engine's core: requests in, tokens out, one packed step at a time, in one thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from narrows.engine.blocks import BlockPool
from narrows.engine.paged_history import PagedHistory, State
from narrows.engine.prefix_tree import Node, PrefixTree
from narrows.engine.request import check_prompt
from narrows.engine.sampling import Sampler
from narrows.engine.scheduler import Job, Policy, admit, rank, share
from narrows.engine.sequence import (
    Drawn,
    Event,
    Finished,
    FinishReason,
    Parked,
    Prefilled,
    Request,
    SequenceState,
    boundaries,
)
from narrows.engine.store import Piece, Prefixes
from narrows.engine.text import TextStream
from narrows.errors import NarrowsError, UsageError
from narrows.model.network import Network, positions_of
from narrows.model.precision import Precision
from narrows.text.tokenizer import Tokenizer

_log = logging.getLogger("narrows")


@dataclass(frozen=True)
class Limits:
    """Memory and sharing. `slots`: sequences that run at once; `memory`: bytes for their states, blocks and snapshots;
    `snapshot_every`: tokens of a long prompt between snapshots."""

    memory: int = 1 << 30
    slots: int = 16
    snapshot_every: int = 2048
    snapshot_share: float = 0.2
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        for name in ("memory", "slots", "snapshot_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} is {value!r}; give the engine a whole number from 1.")
        if not 0 <= self.snapshot_share < 1:
            raise UsageError(f"snapshot_share is {self.snapshot_share!r}; give a number from 0 to below 1.")


@dataclass
class Stats:
    """Counted since the beginning: tokens computed, tokens that a known prefix saved, tokens drawn, steps, sequences
    parked and blocks given up by known prefixes."""

    computed: int = 0
    reused: int = 0
    drawn: int = 0
    steps: int = 0
    parked: int = 0
    evicted: int = 0


class Core:
    """Runs requests on one network. Not thread-safe: `Engine` is."""

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer | None,
        limits: Limits,
        *,
        prefixes: Prefixes | None = None,
        cache: Precision | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`prefixes`: where known ones outlive the process; `cache`: the history's precision, None for the network's.

        UsageError when the memory is too small for one request of one block or the network's widths do not allow the
        precision, NarrowsError when there can be no such directory.
        """
        self.network, self.tokenizer, self.limits = network, tokenizer, limits
        self._clock = clock
        weight = network.embed.weight
        self._device = weight.device
        try:
            shape = PagedHistory(network.config, slots=0, blocks=0, dtype=weight.dtype, precision=cache)
        except ValueError as error:
            raise UsageError(f"this model has no {cache} cache ({error}); choose another, or none.") from None
        snapshots = int(limits.memory * limits.snapshot_share)
        left = limits.memory - snapshots - limits.slots * shape.slot_bytes
        blocks = left // shape.block_bytes if shape.block_bytes else 1
        if blocks < 1:
            least = (shape.slot_bytes * limits.slots + shape.block_bytes) / (1 - limits.snapshot_share)
            raise UsageError(
                f"{limits.memory:,} bytes hold no request of {limits.slots} at once; give the engine "
                f"{int(least) + 1:,} or more, or fewer slots."
            )
        blocks = min(blocks, limits.slots * max(1, shape.blocks_for(network.config.max_position_embeddings)))
        self.history = PagedHistory(
            network.config,
            slots=limits.slots,
            blocks=blocks,
            dtype=weight.dtype,
            device=weight.device,
            precision=cache,
        )
        self.pool = BlockPool(blocks)
        self.tree: PrefixTree[State] = PrefixTree(self.pool, self.history.block_tokens, snapshots)
        self._store = None if prefixes is None else prefixes.open(network, self.history.block_tokens, cache)
        self.stats = Stats()
        self._free_slots = list(range(limits.slots - 1, -1, -1))
        self._running: dict[Job, SequenceState] = {}
        self._waiting: dict[Job, SequenceState] = {}
        self._arrived = 0

    # -- requests -------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> list[SequenceState]:
        """Queue a request -> its sequences, `n` of them. UsageError for one that can never run."""
        config, prompt = self.network.config, len(request.prompt)
        check_prompt(request.prompt, config.vocab_size, config.max_position_embeddings)
        longest = min(prompt + request.parameters.max_tokens, config.max_position_embeddings)
        if self.history.blocks_for(longest) > self.pool.count:
            raise UsageError(
                f"{longest} tokens need {self.history.blocks_for(longest)} blocks and the engine has "
                f"{self.pool.count}; ask for fewer tokens, or give the engine more memory."
            )
        sequences = [self._sequence(request, index) for index in range(request.parameters.n)]
        first, others = sequences[0], sequences[1:]
        first.siblings = others  # they fork from the first once its prompt is computed
        self._waiting[first.job] = first
        return sequences

    def cancel(self, sequence: SequenceState, reason: FinishReason = "cancelled") -> None:
        """End a sequence at the next step, and free all it holds. One that has ended stays as it is."""
        sequence.cancelled = reason

    @property
    def idle(self) -> bool:
        """There is nothing to do."""
        return not self._running and not self._waiting

    @property
    def free_slots(self) -> int:
        """Sequences that could start now."""
        return len(self._free_slots)

    # -- a step ---------------------------------------------------------------------------------------------------

    def step(self) -> list[Event]:
        """Run one packed step -> what came of it. A failure ends the sequences that took part, and no others."""
        events = self._end_cancelled()
        self._admit()
        granted = self._with_blocks(share(self._running, self.limits.policy))
        for job in (*self._running, *self._waiting):
            job.waited += 1
        if not granted:
            return events
        taking_part = [(self._running[job], rows) for job, rows in granted]
        for sequence, _ in taking_part:
            sequence.job.waited = 0
        self.stats.steps += 1
        try:
            logits = self._forward(taking_part)
        except Exception as error:  # whatever it was: nobody may be left waiting for a sequence that cannot go on
            return events + [self._end(sequence, "error", error) for sequence, _ in taking_part]
        for sequence, rows in taking_part:
            sequence.job.computed += rows
            self.stats.computed += rows
            self._remember(sequence)
            if not sequence.produced:
                events.append(Prefilled(sequence, sequence.job.computed, sequence.reused))
        for sequence, row in logits:
            events += self._draw(sequence, row)
        return events

    @torch.inference_mode()
    def _forward(self, taking_part: list[tuple[SequenceState, int]]) -> list[tuple[SequenceState, Tensor]]:
        """-> logits [V] of every sequence whose next token can be drawn."""
        segments, ids, ends = [], [], []
        for sequence, rows in taking_part:
            job = sequence.job
            assert job.slot is not None
            segments.append(self.history.segment(rows, job.slot))
            ids += sequence.tokens[job.computed : job.computed + rows]
            ends.append(len(ids) - 1)
        tokens = torch.tensor(ids, device=self._device)
        streams = self.network(tokens, positions_of(segments, self._device), segments, self.history)
        drawing = [
            (sequence, end)
            for (sequence, rows), end in zip(taking_part, ends, strict=True)
            if sequence.job.missing == rows
        ]
        if not drawing:
            return []
        logits = self.network.logits(streams[torch.tensor([end for _, end in drawing], device=self._device)]).cpu()
        return [(sequence, row) for (sequence, _), row in zip(drawing, logits, strict=True)]

    def _draw(self, sequence: SequenceState, logits: Tensor) -> list[Event]:
        """The next token of a sequence, and of those that fork from it here."""
        siblings, sequence.siblings = sequence.siblings, []
        events: list[Event] = []
        for sibling in siblings:
            self._fork(sequence, sibling)
            events += self._draw(sibling, logits)
        try:
            mask = None if sequence.grammar is None else sequence.grammar.mask()
            sampled = sequence.sampler.draw(logits, mask)
            ended = sampled.token == self.network.config.eos_token_id
            if sequence.grammar is not None and not ended:
                sequence.grammar.advance(sampled.token)
        except NarrowsError as error:
            return [*events, self._end(sequence, "error", error)]
        token = sampled.token
        sequence.sampler.accept(token)
        self.stats.drawn += 1
        if ended:
            return [*events, self._end(sequence, "stop")]
        sequence.tokens.append(token)
        sequence.job.length += 1
        piece = sequence.text.push(token)
        events.append(Drawn(sequence, token, piece, sampled.logprob, sampled.alternatives))
        if sequence.text.stopped:
            events.append(self._end(sequence, "stop"))
        elif (
            sequence.produced == sequence.request.parameters.max_tokens
            or len(sequence.tokens) == self.network.config.max_position_embeddings
        ):
            events.append(self._end(sequence, "length"))
        return events

    # -- slots and blocks -----------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give free slots to those who wait, and take some from lower priorities."""
        admitted, parked = admit(self._waiting, list(self._running), len(self._free_slots), self.limits.policy)
        for job in parked:
            self._park(self._running[job], give_up_blocks=False)
        for job in admitted:
            if not self._start(self._waiting[job]):
                break  # the next in line may be smaller, but would starve this one

    def _start(self, sequence: SequenceState) -> bool:
        """Move a waiting sequence into a slot, if blocks for all its known tokens can be had."""
        job = sequence.job
        if sequence.parked is None and not sequence.blocks:
            self._resume_from_prefix(sequence)
        wanted = self.history.blocks_for(job.length) - len(sequence.blocks)
        if not self._make_room(wanted) and self._running:
            return False
        slot = self._free_slots.pop()
        self.history.reset(slot)
        if sequence.parked is not None:
            state, contents = sequence.parked.state, sequence.parked.contents
            if contents is not None:
                needed = self.history.blocks_for(state.length)
                if not self._make_room(needed):
                    self._free_slots.append(slot)
                    return False
                sequence.blocks = self.pool.allocate(needed)
                self.history.write(sequence.blocks, contents)
            self.history.restore(slot, state, sequence.blocks)
            sequence.parked = None
        job.slot = slot
        del self._waiting[job]
        self._running[job] = sequence
        return True

    def _resume_from_prefix(self, sequence: SequenceState) -> None:
        """Take over the blocks of the longest known prefix that has a snapshot and leaves a token to compute."""
        job, size = sequence.job, self.history.block_tokens
        whole = sequence.tokens[: (job.length - 1) // size * size]
        path = self.tree.match(whole)
        if self._store is not None:
            known = max((node.depth for node in path if node.snapshot is not None), default=0)
            if pieces := self._store.get(whole, longer_than=known * size):
                self._load(pieces, whole)
                path = self.tree.match(whole)
        forks = [len(path) * size]
        while path and path[-1].snapshot is None:
            path.pop()
        sequence.job.boundaries = boundaries(job.length, size, self.limits.snapshot_every, forks)
        if not path:
            return
        deepest = path[-1]
        assert deepest.snapshot is not None
        sequence.blocks = [node.block for node in path]
        self.pool.share(sequence.blocks)
        self._pin(sequence, deepest)
        sequence.parked = Parked(deepest.snapshot, None)
        job.computed = sequence.reused = deepest.snapshot.length
        self.stats.reused += sequence.reused

    def _with_blocks(self, granted: list[tuple[Job, int]]) -> list[tuple[Job, int]]:
        """Give everyone the blocks for his rows; where there are none left, the last in rank give theirs up."""
        given: list[tuple[Job, int]] = []
        for job, rows in sorted(granted, key=lambda one: rank(one[0], self.limits.policy)):
            sequence = self._running.get(job)
            if sequence is None:  # parked for the sake of an earlier one
                continue
            wanted = self.history.blocks_for(job.computed + rows) - len(sequence.blocks)
            while not self._make_room(wanted):
                last = max(self._running, key=lambda other: rank(other, self.limits.policy))
                if rank(last, self.limits.policy) <= rank(job, self.limits.policy):
                    break
                self._park(self._running[last], give_up_blocks=True)
            if self.pool.free < wanted:
                continue  # it keeps its slot and waits for the others to end
            if wanted > 0:
                blocks = self.pool.allocate(wanted)
                self.history.clear(blocks)
                sequence.blocks += blocks
                assert job.slot is not None
                self.history.bind(job.slot, blocks)
            given.append((job, rows))
        return given

    def _make_room(self, wanted: int) -> bool:
        """See to it that so many blocks are free, at the cost of known prefixes and of parked sequences' blocks."""
        if wanted > self.pool.free:
            self.stats.evicted += self.tree.evict(wanted - self.pool.free)
        for sequence in list(self._waiting.values()):
            if wanted <= self.pool.free:
                break
            if sequence.parked is not None and sequence.parked.contents is None and sequence.blocks:
                self._give_up_blocks(sequence)
                self.stats.evicted += self.tree.evict(max(0, wanted - self.pool.free))
        return wanted <= self.pool.free

    def _park(self, sequence: SequenceState, *, give_up_blocks: bool) -> None:
        """Take a sequence out of its slot; it goes on later, without computing anything again."""
        job = sequence.job
        assert job.slot is not None
        sequence.parked = Parked(self.history.state(job.slot), None)
        self._release_slot(sequence)
        self._waiting[job] = sequence
        self.stats.parked += 1
        if give_up_blocks:
            self._give_up_blocks(sequence)

    def _give_up_blocks(self, sequence: SequenceState) -> None:
        """Copy a parked sequence's entries out of the pool."""
        assert sequence.parked is not None
        needed = self.history.blocks_for(sequence.parked.state.length)
        sequence.parked = replace(sequence.parked, contents=self.history.read(sequence.blocks[:needed]))
        self._release_blocks(sequence)

    def _fork(self, sequence: SequenceState, sibling: SequenceState) -> None:
        """Let `sibling` go on from where `sequence` is: full blocks shared, an unfinished one copied."""
        job = sequence.job
        assert job.slot is not None
        full = job.computed // self.history.block_tokens if self.history.blocks_for(1) else 0
        unfinished = sequence.blocks[full:]
        sibling.job.computed = job.computed
        self._waiting[sibling.job] = sibling
        if self._make_room(len(unfinished)):
            copies = self.pool.allocate(len(unfinished))
            for source, target in zip(unfinished, copies, strict=True):
                self.history.copy(source, target)
            self.pool.share(sequence.blocks[:full])
            sibling.blocks = sequence.blocks[:full] + copies
            sibling.parked = Parked(self.history.state(job.slot), None)
        else:
            sibling.parked = Parked(self.history.state(job.slot), self.history.read(sequence.blocks))
        if sequence.node is not None:
            self._pin(sibling, sequence.node)

    # -- known prefixes -------------------------------------------------------------------------------------------

    def _remember(self, sequence: SequenceState) -> None:
        """Enter the blocks that are now full into the tree, and a snapshot where one is wanted."""
        job, size = sequence.job, self.history.block_tokens
        assert job.slot is not None
        node = sequence.node or self.tree.root
        for start in range(node.depth * size, job.computed // size * size, size):
            block = sequence.blocks[start // size] if sequence.blocks else -1
            if block < 0:
                return  # no layer has entries: there is nothing to share but states
            node = self.tree.extend(node, tuple(sequence.tokens[start : start + size]), block)
            self._pin(sequence, node)
        if job.computed % size or sequence.node is None:
            return
        if job.computed in job.boundaries:
            self.tree.attach(node, self.history.state(job.slot))
            self._keep(sequence, node)
        elif sequence.produced:
            if sequence.output_snapshot is not None:
                self.tree.detach(sequence.output_snapshot)
                sequence.output_snapshot = None
            if node.snapshot is None:
                self.tree.attach(node, self.history.state(job.slot))
                sequence.output_snapshot = node

    def _load(self, pieces: Sequence[Piece], tokens: Sequence[int]) -> None:
        """Enter what the disk kept of `tokens` into the tree, as far as there is room."""
        size, node = self.history.block_tokens, self.tree.root
        try:
            for piece in pieces:
                for start in range(piece.start, piece.state.length, size):
                    key = tuple(tokens[start : start + size])
                    node.pins += 1  # making room must not take what is being built upon
                    try:
                        if key in node.children:
                            behind = node.children[key]
                        elif self._make_room(1):
                            (block,) = self.pool.allocate(1)
                            self.history.write([block], piece.contents.block((start - piece.start) // size))
                            behind = self.tree.extend(node, key, block)
                            self.pool.release([block])
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
            blocks = sequence.blocks[start // self.history.block_tokens : node.depth]
            self._store.put(tokens, Piece(start, self.history.read(blocks), node.snapshot))

    def _pin(self, sequence: SequenceState, node: Node[State] | None) -> None:
        """The sequence's deepest known block, which must not be evicted while it holds blocks."""
        if sequence.node is not None:
            sequence.node.pins -= 1
        sequence.node = node
        if node is not None:
            node.pins += 1

    # -- the end --------------------------------------------------------------------------------------------------

    def _end_cancelled(self) -> list[Event]:
        now = self._clock()
        ended: list[Event] = []
        for sequence in (*self._running.values(), *self._waiting.values()):
            deadline = sequence.request.deadline
            late: FinishReason | None = "deadline" if deadline is not None and now >= deadline else None
            for sibling in list(sequence.siblings):
                if reason := sibling.cancelled or late:
                    sequence.siblings.remove(sibling)
                    ended.append(self._end(sibling, reason))
            if reason := sequence.cancelled or late:
                ended.append(self._end(sequence, reason))
        return ended

    def _end(self, sequence: SequenceState, reason: FinishReason, error: Exception | None = None) -> Finished:
        """Free all that a sequence holds."""
        sequence.cancelled = reason
        if sequence.output_snapshot is not None and sequence.blocks:
            self._keep(sequence, sequence.output_snapshot)
        self._release_slot(sequence)
        self._release_blocks(sequence)
        self._waiting.pop(sequence.job, None)
        sequence.parked = None
        if sequence.siblings:  # they wait to fork from it: one of them takes its place
            first, *others = sequence.siblings
            first.siblings, sequence.siblings = others, []
            self._waiting[first.job] = first
        return Finished(sequence, reason, sequence.text.finish(), error)

    def _release_slot(self, sequence: SequenceState) -> None:
        if sequence.job.slot is not None:
            self.history.reset(sequence.job.slot)
            self._free_slots.append(sequence.job.slot)
            sequence.job.slot = None
        self._running.pop(sequence.job, None)

    def _release_blocks(self, sequence: SequenceState) -> None:
        self._pin(sequence, None)
        self.pool.release(sequence.blocks)
        sequence.blocks = []

    def _sequence(self, request: Request, index: int) -> SequenceState:
        self._arrived += 1
        vocab = self.network.config.vocab_size
        return SequenceState(
            request=request,
            index=index,
            job=Job(self._arrived, len(request.prompt), request.priority),
            sampler=Sampler(request.parameters, vocab, request.prompt, index),
            text=TextStream(self.tokenizer, request.parameters.stop),
            grammar=None if request.grammar is None else request.grammar(),
            tokens=list(request.prompt),
        )
