"""The engine's core: requests in, tokens out, one packed step at a time, in one thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from narrows.engine.allocator import return_free_memory
from narrows.engine.blocks import BlockPool
from narrows.engine.known_prefixes import KnownPrefixes
from narrows.engine.limits import Limits
from narrows.engine.paged_history import PagedHistory, State
from narrows.engine.prefix_tree import PrefixTree
from narrows.engine.request import check_prompt
from narrows.engine.sampling import Sampled, Sampler, score
from narrows.engine.scheduler import Job, admit, rank, share
from narrows.engine.sequence import (
    Drawn,
    Event,
    Finished,
    FinishReason,
    Parked,
    Prefilled,
    Request,
    Scored,
    SequenceState,
)
from narrows.engine.speculation import Drafter, Followed
from narrows.engine.store import Prefixes
from narrows.engine.text import TextStream
from narrows.engine.thinking import Thinking
from narrows.errors import NarrowsError, UsageError
from narrows.model.forward import Forward
from narrows.model.precision import Precision
from narrows.model.segments import positions_of
from narrows.text.tokenizer import Tokenizer

# Rows between two tidyings, which cost some 20 ms: less than a hundredth of the time that so many rows take.
_TIDY_EVERY = 1 << 14

# Logits of a prompt that are in memory at once.
_SCORED_LOGITS = 1 << 22

_log = logging.getLogger("narrows")

_End = tuple[FinishReason, Exception | None]


@dataclass
class Stats:
    """Counted since the beginning: tokens computed, tokens that a known prefix saved, tokens drawn, steps, sequences
    parked, blocks given up by known prefixes, tokens drafted, and drafts that came true."""

    computed: int = 0
    reused: int = 0
    drawn: int = 0
    steps: int = 0
    parked: int = 0
    evicted: int = 0
    drafted: int = 0
    accepted: int = 0


class Core:
    """Runs requests on one network. Not thread-safe: `Engine` is."""

    def __init__(
        self,
        network: Forward,
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
        self._device = network.device
        drafts = limits.drafts if network.mtp else 0
        kept: dict[str, Any] = {"dtype": network.dtype, "precision": cache or network.cache, "rollback": drafts}
        try:
            shape = PagedHistory(network.config, slots=0, blocks=0, **kept)
        except ValueError as error:  # which only a precision of its own can be the reason of
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
        self.history = PagedHistory(network.config, slots=limits.slots, blocks=blocks, device=self._device, **kept)
        self.pool = BlockPool(blocks)
        store = None if prefixes is None else prefixes.open(network, self.history.block_tokens, cache)
        tree: PrefixTree[State] = PrefixTree(self.pool, self.history.block_tokens, snapshots)
        self.known = KnownPrefixes(self.history, self.pool, tree, store, limits.snapshot_every, self._make_room)
        self._drafter = Drafter(network, limits.slots, drafts) if drafts else None
        self.stats = Stats()
        self._free_slots = list(range(limits.slots - 1, -1, -1))
        self._running: dict[Job, SequenceState] = {}
        self._waiting: dict[Job, SequenceState] = {}
        self._arrived = self._untidied = 0

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
            self._tidy(0)
            return events
        taking_part = [(self._running[job], rows) for job, rows in granted]
        for sequence, _ in taking_part:
            sequence.job.waited = 0
        self.stats.steps += 1
        before = [sequence.job.computed for sequence, _ in taking_part]
        try:
            streams, logits = self._forward(taking_part)
        except Exception as error:  # whatever it was: nobody may be left waiting for a sequence that cannot go on
            return events + [self._end(sequence, "error", error) for sequence, _ in taking_part]
        for (sequence, rows), computed, drawn_from in zip(taking_part, streams, logits, strict=True):
            events += self._score(sequence, computed)
            events += self._advance(sequence, rows, drawn_from)
        self._tidy(sum(rows for _, rows in taking_part))
        if self._drafter is not None:
            self._draft(
                [
                    (sequence, computed[: sequence.job.computed - start])
                    for (sequence, _), start, computed in zip(taking_part, before, streams, strict=True)
                    if sequence.job.slot is not None and sequence.produced
                ]
            )
        return events

    def _tidy(self, rows: int) -> None:
        """Hand memory back after many rows, and where nothing is left to do."""
        self._untidied += rows
        if self._untidied >= _TIDY_EVERY or (self.idle and self._untidied >= self.limits.policy.rows):
            self._untidied = 0
            return_free_memory()

    @torch.inference_mode()
    def _forward(self, taking_part: list[tuple[SequenceState, int]]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """-> of every sequence its rows' streams [rows, S, d], and logits [R, V] of its last known token and the drafts
        behind it; R is 0 where that token is not reached."""
        segments, ids, wanted = [], list[int](), []
        for sequence, rows in taking_part:
            job = sequence.job
            assert job.slot is not None
            segments.append(self.history.segment(rows, job.slot))
            start = len(ids)
            ids += [*sequence.tokens[job.computed : job.computed + rows], *sequence.drafts][:rows]
            wanted.append(range(start + job.missing - 1, len(ids)))
        tokens = torch.tensor(ids, device=self._device)
        streams = self.network(tokens, positions_of(segments, self._device), segments, self.history)
        places = torch.tensor([row for rows in wanted for row in rows], dtype=torch.int64, device=self._device)
        # `streams[places]` would wake PyTorch's own threads, which then look for work where kernels should compute.
        logits = self.network.logits(streams.index_select(0, places)).cpu()
        return streams.split([rows for _, rows in taking_part]), logits.split([len(rows) for rows in wanted])

    @torch.inference_mode()
    def _score(self, sequence: SequenceState, streams: Tensor) -> list[Event]:
        """The log-probabilities of the prompt's tokens behind the rows of streams [R, S, d], where they are wanted."""
        alternatives, prompt = sequence.request.parameters.prompt_logprobs, sequence.request.prompt
        first = sequence.job.computed + 1
        if alternatives is None or first >= len(prompt):
            return []
        behind = prompt[first : first + len(streams)]
        at_once = max(1, _SCORED_LOGITS // self.network.config.vocab_size)
        scored: list[Sampled] = []
        for start in range(0, len(behind), at_once):
            rows = behind[start : start + at_once]
            logits = self.network.logits(streams[start : start + len(rows)]).cpu()
            scored += [score(token, row, alternatives) for token, row in zip(rows, logits, strict=True)]
        return [Scored(sequence, first, tuple(scored))]

    def _advance(self, sequence: SequenceState, rows: int, logits: Tensor) -> list[Event]:
        """Draw as many tokens as the step's rows decide: none within a prompt, one behind the last known token, and one
        behind every draft that came true. Drafts that did not are rolled back."""
        job = sequence.job
        drafts, sequence.drafts = sequence.drafts[: max(0, rows - job.missing)], []
        job.drafts = 0
        events: list[Event] = []
        if not drafts:
            self._settle(sequence, rows)
            if not sequence.produced:
                events.append(Prefilled(sequence, job.computed, sequence.reused))
        if len(logits):
            siblings, sequence.siblings = sequence.siblings, []
            for sibling in siblings:
                self._fork(sequence, sibling)
                drawn, ended = self._draw(sibling, logits[0])
                events += drawn
                if ended is not None:
                    events.append(self._end(sibling, *ended))
        stood, end = 0, None
        for row, draft in zip_longest(logits, drafts):
            drawn, end = self._draw(sequence, row)
            events += drawn
            if end is not None or sequence.tokens[-1] != draft:
                break
            stood += 1
        if drafts:
            self.stats.drafted += len(drafts)
            self.stats.accepted += stood
            sequence.success.record(len(drafts), stood)
            self._settle(sequence, rows, rejected=len(drafts) - stood)
        if end is not None:
            events.append(self._end(sequence, *end))
        return events

    def _settle(self, sequence: SequenceState, rows: int, rejected: int = 0) -> None:
        """Count the rows of a step, of which the last `rejected` are taken back."""
        job = sequence.job
        assert job.slot is not None
        self.stats.computed += rows
        if rejected:
            self.history.roll_back(job.slot, rejected)
        job.computed += rows - rejected
        self.known.remember(sequence)

    def _draw(self, sequence: SequenceState, logits: Tensor) -> tuple[list[Event], _End | None]:
        """The next token of a sequence, from logits [V], and whether it is the last."""
        try:
            sampled = sequence.sampler.draw(logits, sequence.mask())
            ended = sampled.token == self.network.config.eos_token_id
            if not ended:
                sequence.follow(sampled.token)
        except Exception as error:  # whatever it was: it is this sequence's, and ends no other
            return [], ("error", error)
        token = sampled.token
        sequence.sampler.accept(token)
        self.stats.drawn += 1
        if ended:
            sequence.last = sampled
            return [], ("stop", None)
        sequence.tokens.append(token)
        sequence.job.length += 1
        piece = sequence.text.push(token)
        events: list[Event] = [Drawn(sequence, token, piece, sampled.logprob, sampled.alternatives)]
        if sequence.text.stopped:
            return events, ("stop", None)
        return events, ("length", None) if self._room(sequence) == 0 else None

    def _room(self, sequence: SequenceState) -> int:
        """How many more tokens may be drawn."""
        asked = sequence.request.parameters.max_tokens - sequence.produced
        return min(asked, self.network.config.max_position_embeddings - len(sequence.tokens))

    @torch.inference_mode()
    def _draft(self, computed: Sequence[tuple[SequenceState, Tensor]]) -> None:
        """Guess on behind what was drawn. computed: streams [R, S, d] of the rows that a step added to a history."""
        assert self._drafter is not None
        size, useful = self.history.block_tokens, self.network.config.sliding_window
        members, followed = list[SequenceState](), list[Followed]()
        for sequence, streams in computed:
            job = sequence.job
            assert job.slot is not None
            wanted = sequence.success.wanted(self.limits.drafts, self.limits.draft_rate)
            if not wanted:
                self._drafter.forget(job.slot)
                continue
            # Not beyond the block: at its end the state is wanted, without rows that may be taken back.
            most = min(wanted, self._room(sequence) - 1, size - 1 - job.computed % size)
            rows = min(len(streams), useful)
            members.append(sequence)
            followed.append(Followed(job.slot, streams[-rows:], sequence.tokens[-rows:], most))

        def guess(number: int, logits: Tensor, ahead: int) -> int | None:
            sequence = members[number]
            try:
                return sequence.sampler.guess(logits, None if ahead else sequence.mask(), ahead)
            except NarrowsError:  # which the draw will report, if it is still so
                return None

        if not members:
            return
        try:
            drafts = self._drafter.draft(followed, guess)
        except Exception as error:  # the block itself fails: guesses are worth no request
            _log.warning("drafting failed and is off from now on (%s).", error)
            self._drafter = None
            return
        for sequence, guessed in zip(members, drafts, strict=True):
            sequence.drafts, sequence.job.drafts = guessed, len(guessed)

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
            self.known.resume(sequence)
            self.stats.reused += sequence.reused
        wanted = self.history.blocks_for(job.length) - len(sequence.blocks)
        if not self._make_room(wanted) and self._running:
            return False
        slot = self._free_slots.pop()
        self.history.reset(slot)
        if self._drafter is not None:
            self._drafter.forget(slot)
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
            self.stats.evicted += self.known.tree.evict(wanted - self.pool.free)
        for sequence in list(self._waiting.values()):
            if wanted <= self.pool.free:
                break
            if sequence.parked is not None and sequence.parked.contents is None and sequence.blocks:
                self._give_up_blocks(sequence)
                self.stats.evicted += self.known.tree.evict(max(0, wanted - self.pool.free))
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
            self.known.pin(sibling, sequence.node)

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
        self.known.leave(sequence)
        self._release_slot(sequence)
        self._release_blocks(sequence)
        self._waiting.pop(sequence.job, None)
        sequence.parked = None
        if sequence.siblings:  # they wait to fork from it: one of them takes its place
            first, *others = sequence.siblings
            first.siblings, sequence.siblings = others, []
            self._waiting[first.job] = first
        return Finished(sequence, reason, sequence.text.finish(), error, sequence.last)

    def _release_slot(self, sequence: SequenceState) -> None:
        if sequence.job.slot is not None:
            self.history.reset(sequence.job.slot)
            self._free_slots.append(sequence.job.slot)
            sequence.job.slot = None
        self._running.pop(sequence.job, None)

    def _release_blocks(self, sequence: SequenceState) -> None:
        self.known.pin(sequence, None)
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
            thinking=None if request.thinking is None else Thinking(request.thinking, vocab),
            tokens=list(request.prompt),
        )
