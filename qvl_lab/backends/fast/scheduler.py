"""Which sequences run in the next step. Plain Python, no torch.

Requests wait in a queue. Each step prefills a bounded number of prompt tokens of the sequences
admitted last, and generates one token for every sequence that is prefilled. A sequence is admitted
when there is a slot for it and blocks for its prompt; it takes more blocks as its answer grows.
When none are left, the newest sequence is preempted: it gives its blocks back, waits again, and is
prefilled anew with the tokens that it had generated.

A step is planned before it runs. When memory for it runs out, :meth:`Scheduler.rollback` takes the
plan back and bounds the steps to come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qvl_lab.backends.fast.block_manager import BlockManager, Copy
from qvl_lab.backends.fast.sequence import Sequence

#: A chunk of this size or less that does not fit in memory alone is not cut into smaller ones.
LEAST_CHUNK = 256
#: Steps without a shortage of memory after which the bounds are doubled.
RECOVERY_STEPS = 64


@dataclass(frozen=True)
class Chunk:
    """Prompt tokens ``start`` to ``stop`` of a sequence, prefilled in one step."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def last(self) -> bool:
        """Whether the first token of the answer follows."""
        return self.stop == self.sequence.num_prefill_tokens

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Step:
    """What one forward pass of each kind does.

    Attributes
    ----------
    chunks : list of Chunk
        Prompts to prefill.
    decodes : list of Sequence
        Sequences that generate their next token.
    copies : list of Copy
        Blocks to duplicate first.
    grown : list of Sequence
        Those of ``decodes`` that got another block for it.
    preempted : list of Sequence
        Sequences that wait again, because there were too few blocks.
    """

    chunks: list[Chunk]
    decodes: list[Sequence]
    copies: list[Copy]
    grown: list[Sequence]
    preempted: list[Sequence]

    def __bool__(self) -> bool:
        return bool(self.chunks or self.decodes)


@dataclass(frozen=True)
class Rollback:
    """What became of sequences that memory did not suffice for.

    Attributes
    ----------
    tried, continued_with : int
        Sequences in the step that failed, and about how many the next one has at most.
    too_large : Sequence or None
        A sequence that does not fit even alone. It is as it was; the caller has to end it.
    """

    tried: int
    continued_with: int
    too_large: Sequence | None = None


class Scheduler:
    """Admits, orders and preempts sequences.

    Parameters
    ----------
    slots : int
        Most sequences that run at once.
    blocks : BlockManager
    prefill_chunk : int
        Most prompt tokens in a step.
    packing : bool
        Prefill several prompts in a step; otherwise one at a time.
    least_chunk : int
        A prompt that does not fit in memory alone is not cut into smaller chunks than this.

    Attributes
    ----------
    waiting, running : deque, list of Sequence
        In the order of their arrival, and of their admission.
    prefill_chunk : int
        The bound on prompt tokens that holds now: less than was given after memory ran out.
    preemptions : int
        How often a sequence gave its blocks back.
    """

    def __init__(
        self,
        slots: int,
        blocks: BlockManager,
        prefill_chunk: int,
        *,
        packing: bool = True,
        least_chunk: int = LEAST_CHUNK,
    ) -> None:
        self.blocks, self.prefill_chunk, self._packing = blocks, prefill_chunk, packing
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._slots = list(range(slots - 1, -1, -1))
        self._max_running = self._most_running = slots
        self._most_chunk, self._least_chunk = prefill_chunk, min(least_chunk, prefill_chunk)
        self._steps_since_rollback = 0
        self._chunks_ran = False

    def fits(self, prompt_tokens: int, new_tokens: int) -> bool:
        """Whether a sequence could run to its end if it were alone."""
        return self.blocks.needed(prompt_tokens + new_tokens) <= self.blocks.num_blocks

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn."""
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence) -> bool:
        """Take a sequence out, whether it waits or runs; False if it is neither."""
        if sequence.slot is not None:
            self._stop(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        else:
            return False
        return True

    def next(self) -> Step:
        """Plan the next step; its tokens count as computed from here on."""
        self._raise_bounds()
        ran = list(self.running)
        grown = self._grow_decodes()
        decodes = [s for s in self.running if s.is_decoding]
        preempted = [s for s in ran if s.slot is None]
        chunks, copies = self._plan_chunks()
        for sequence in decodes:
            sequence.num_computed_tokens += 1
        for chunk in chunks:
            chunk.sequence.num_computed_tokens = chunk.stop
            self.blocks.keep_prefix(chunk.sequence)
        self._chunks_ran |= bool(chunks)
        return Step(chunks, decodes, copies, grown, preempted)

    def must_preempt(self) -> bool:
        """Whether :meth:`next` will preempt a sequence, whose tokens must all be known then."""
        missing = sum(self.blocks.is_full(s) for s in self.running if s.is_decoding)
        return missing > self.blocks.num_free and not self.blocks.can_make_room(missing)

    def rollback(
        self, *, decodes: Iterable[Sequence] = (), chunks: Iterable[Chunk] = ()
    ) -> Rollback | None:
        """Take back the decodes or the chunks of the last step, which ran out of memory.

        All tokens of earlier steps must be known. The newest half of the decoding sequences is
        preempted. Prompts are prefilled again from where they were: half as many tokens in a step,
        or, where the chunks were small already, the first one alone, until that has run.

        Returns
        -------
        Rollback or None
            None if all the sequences have ended meanwhile.
        """
        self._steps_since_rollback = 0
        self.blocks.evict_prefixes()  # those of the plan were not computed
        running = [sequence for sequence in decodes if sequence.slot is not None]
        alive = [chunk for chunk in chunks if chunk.sequence.slot is not None]
        if running:
            return self._rollback_decodes(running)
        return self._rollback_chunks(alive) if alive else None

    # ---- memory ran out

    def _rollback_decodes(self, running: list[Sequence]) -> Rollback:
        for sequence in running:
            sequence.num_computed_tokens -= 1
        if len(running) == 1:
            return Rollback(1, 0, running[0])
        half = self._max_running = len(running) // 2
        for sequence in reversed(running[half:]):
            self._preempt(sequence)
        return Rollback(len(running), half)

    def _rollback_chunks(self, chunks: list[Chunk]) -> Rollback:
        tokens, self._chunks_ran = sum(map(len, chunks)), False
        for chunk in chunks:
            chunk.sequence.num_computed_tokens = chunk.start
        if len(chunks) == 1 and tokens <= self._least_chunk:
            self._chunks_ran = True  # no need to prefill it alone
            return Rollback(1, 0, chunks[0].sequence)
        if tokens > self._least_chunk:
            self.prefill_chunk = max(self._least_chunk, tokens // 2)
        else:
            self.prefill_chunk = len(chunks[0])
        return Rollback(len(chunks), max(1, len(chunks) // 2))

    def _raise_bounds(self) -> None:
        """Allow twice as much after a while without a shortage of memory."""
        if self._chunks_ran:  # the first prompt was prefilled alone
            self.prefill_chunk = max(self.prefill_chunk, self._least_chunk)
        self._steps_since_rollback += 1
        if self._steps_since_rollback % RECOVERY_STEPS == 0:
            self._max_running = min(self._most_running, 2 * self._max_running)
            self.prefill_chunk = min(self._most_chunk, 2 * self.prefill_chunk)

    # ---- decoding

    def _grow_decodes(self) -> list[Sequence]:
        """Find a block for every next token, preempting the newest sequences if there are too few.

        Returns the sequences that got a block.
        """
        grown = []
        for sequence in [s for s in self.running if s.is_decoding]:  # oldest first
            while sequence.slot is not None and self.blocks.is_full(sequence):
                if self.blocks.append(sequence):
                    grown.append(sequence)
                else:
                    self._preempt(self.running[-1])
        return grown

    def _preempt(self, sequence: Sequence) -> None:
        """Put a sequence back to the front of the queue, to prefill what it generated as well."""
        assert sequence.num_computed_tokens < len(sequence.token_ids), "a token is not known yet"
        self._stop(sequence)
        sequence.num_prefill_tokens = len(sequence.token_ids)
        sequence.num_computed_tokens = 0
        sequence.features = None
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    # ---- prefill

    def _plan_chunks(self) -> tuple[list[Chunk], list[Copy]]:
        chunks: list[Chunk] = []
        copies: list[Copy] = []
        budget = self.prefill_chunk
        for sequence in self._prefilling(copies):
            start = sequence.num_computed_tokens
            rest = sequence.num_prefill_tokens - start
            if budget < rest <= self.prefill_chunk:
                break  # a prompt is not cut that fits into a step whole
            chunks.append(Chunk(sequence, start, start + min(rest, budget)))
            budget -= len(chunks[-1])
            if not budget or not self._packing:
                break
        return chunks, copies

    def _prefilling(self, copies: list[Copy]) -> Iterator[Sequence]:
        """Sequences with tokens to prefill: those that began, then new ones as they fit."""
        yield from [s for s in self.running if not s.is_prefilled]
        while (sequence := self._admissible()) is not None:
            found = self.blocks.allocate(sequence)
            if found is None:
                return
            copies += found
            sequence.slot = self._slots.pop()
            self.waiting.remove(sequence)
            self.running.append(sequence)
            yield sequence

    def _admissible(self) -> Sequence | None:
        """The first waiting sequence, of those whose prefix no other is computing just now."""
        if len(self.running) >= self._max_running:
            return None
        if not self.blocks.prefix_cache:
            return self.waiting[0] if self.waiting else None
        computing = {
            s.prefix_key
            for s in self.running
            if s.num_computed_tokens < s.num_prefix_tokens
            and not self.blocks.has_prefix(s.prefix_key)
        } - {None}
        return next((s for s in self.waiting if s.prefix_key not in computing), None)

    def _stop(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self.running.remove(sequence)
        self.blocks.free(sequence)
        self._slots.append(sequence.slot)
        sequence.slot = None
