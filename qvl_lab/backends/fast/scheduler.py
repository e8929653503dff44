"""Who runs next, and on which blocks of the key-value cache. Plain Python, no torch.

Requests wait in a queue. Each step takes a bounded number of prompt tokens from those admitted
last, and one token for every sequence whose prompt is read. A sequence is admitted when there is
a slot, and blocks for its prompt; its answer takes blocks as it grows. When none are left, the
newest sequence gives its blocks back and waits again: its tokens are read anew later.

Blocks are counted by reference, so that sequences and remembered prefixes can share them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(eq=False)
class Sequence:
    """A request on its way.

    Attributes
    ----------
    prompt : int
        Tokens to read, and after a preemption also those that were generated before it.
    limit : int
        Most tokens to generate, those before a preemption not counted.
    prefix, prefix_key : int, hashable
        The first so many tokens, at least one and fewer than ``prompt``, are the same for all
        sequences of one key; None shares nothing.
    slot : int or None
        Its row in the batch; None while it waits.
    blocks : list of int
        Where its keys and values lie, ``block_size`` tokens each.
    read : int
        Prompt tokens whose keys and values are in the cache.
    launched : int
        Tokens whose generation was launched.
    """

    id: Hashable
    prompt: int
    limit: int
    prefix: int = 0
    prefix_key: Hashable | None = None
    slot: int | None = None
    blocks: list[int] = field(default_factory=list)
    read: int = 0
    launched: int = 0

    @property
    def cached(self) -> int:
        """Tokens that have keys and values in the cache: all but the one generated last."""
        return self.read + max(0, self.launched - 1)

    @property
    def decoding(self) -> bool:
        """Whether its prompt is read and its answer is not complete."""
        return 0 < self.launched < self.limit


@dataclass(frozen=True)
class Chunk:
    """Prompt tokens ``start`` to ``stop`` of a sequence, to be read in one step."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def last(self) -> bool:
        """Whether the first token of the answer follows."""
        return self.stop == self.sequence.prompt


@dataclass(frozen=True)
class Copy:
    """Block ``source`` is to be copied to ``target`` before the step, to be written on."""

    source: int
    target: int


@dataclass(frozen=True)
class Step:
    """What one forward pass of each kind does.

    Attributes
    ----------
    chunks : list of Chunk
        Prompts to read.
    decodes : list of Sequence
        Sequences that generate their next token.
    copies : list of Copy
        Blocks to duplicate first.
    grown : list of Sequence
        Those of ``decodes`` that got another block for it.
    preempted : list of Sequence
        Sequences that wait again, for want of blocks.
    """

    chunks: list[Chunk]
    decodes: list[Sequence]
    copies: list[Copy]
    grown: list[Sequence]
    preempted: list[Sequence]

    def __bool__(self) -> bool:
        return bool(self.chunks or self.decodes)


class Blocks:
    """The blocks of a key-value cache, each free or held by some number of holders."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._free = list(range(count - 1, -1, -1))
        self._holders = [0] * count

    @property
    def free(self) -> int:
        """How many nobody holds."""
        return len(self._free)

    def needed(self, tokens: int) -> int:
        """Blocks that so many tokens fill."""
        return -(-tokens // self.size)

    def take(self, count: int) -> list[int]:
        """Hold so many free blocks; the caller has looked that there are."""
        taken = [self._free.pop() for _ in range(count)]
        self.hold(taken)
        return taken

    def hold(self, blocks: Iterable[int]) -> None:
        """One more holder for each."""
        for block in blocks:
            self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> list[int]:
        """One holder less for each; what nobody holds is free, and returned."""
        freed = []
        for block in blocks:
            self._holders[block] -= 1
            if not self._holders[block]:
                freed.append(block)
        self._free += freed
        return freed

    def shared(self, block: int) -> bool:
        """Whether more than one holds it."""
        return self._holders[block] > 1


@dataclass
class PrefixStats:
    """How often a prefix was there, and the tokens that were not read again."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    tokens_saved: int = 0


class Scheduler:
    """Admits, orders and preempts.

    Parameters
    ----------
    slots : int
        Sequences that run at once.
    blocks : Blocks
    prefill_chunk : int
        Most prompt tokens in a step.
    packing : bool
        Read several prompts in a step; otherwise one at a time.
    prefix_cache : bool
        Remember the blocks of prefixes, the least recently used ones forgotten first.
    """

    def __init__(
        self,
        slots: int,
        blocks: Blocks,
        prefill_chunk: int,
        *,
        packing: bool = True,
        prefix_cache: bool = False,
    ) -> None:
        self.blocks, self.prefill_chunk, self._packing = blocks, prefill_chunk, packing
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.most_running = slots  # lowered where memory for a step runs out
        self.preemptions = 0
        self.stats = PrefixStats()
        self._slots = list(range(slots - 1, -1, -1))
        self._prefixes: OrderedDict[Hashable, tuple[list[int], int]] | None = (
            OrderedDict() if prefix_cache else None
        )

    def fits(self, prompt: int, limit: int) -> bool:
        """Whether a sequence could run to its end if it were alone."""
        return self.blocks.needed(prompt + limit) <= self.blocks.count

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn."""
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is."""
        if sequence.slot is None:
            if sequence in self.waiting:
                self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self._give_back(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Back to the front of the queue, with what it generated as part of its prompt."""
        self.running.remove(sequence)
        self._give_back(sequence)
        sequence.prompt += sequence.launched
        sequence.limit -= sequence.launched
        sequence.read = sequence.launched = 0
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def next(self) -> Step:
        """The next step; its sequences count it as launched already."""
        ran = list(self.running)
        grown = self._room_for_decodes()
        decodes = [s for s in self.running if s.decoding]
        preempted = [s for s in ran if s.slot is None]
        chunks, copies = self._prompts()
        for sequence in decodes:
            sequence.launched += 1
        for chunk in chunks:
            chunk.sequence.read = chunk.stop
            chunk.sequence.launched = int(chunk.last)
            self._remember(chunk.sequence)
        return Step(chunks, decodes, copies, grown, preempted)

    def must_preempt(self) -> bool:
        """Whether :meth:`next` will take blocks from a sequence; its tokens must be known then."""
        missing = sum(self._lacks_block(s) for s in self.running if s.decoding)
        return missing > self.blocks.free and not self._obtainable(missing)

    def own_blocks(self, sequence: Sequence) -> list[int]:
        """Blocks that no other holds."""
        return [block for block in sequence.blocks if not self.blocks.shared(block)]

    def forget(self, key: Hashable | None) -> list[int]:
        """Let go of a prefix, if it is remembered; the blocks that nobody holds now."""
        if not self._prefixes or key not in self._prefixes:
            return []
        held, _ = self._prefixes.pop(key)
        return self.blocks.release(held)

    def forget_prefixes(self) -> None:
        """Let go of every remembered prefix."""
        for key in list(self._prefixes or ()):
            self.forget(key)

    def has_prefix(self, key: Hashable | None) -> bool:
        """Whether a prefix is remembered."""
        return bool(self._prefixes) and key in self._prefixes  # type: ignore[operator]

    def _room_for_decodes(self) -> list[Sequence]:
        """A block for every next token; for want of them the newest sequences have to go.

        Returns those that got one.
        """
        grown = []
        for sequence in [s for s in self.running if s.decoding]:  # oldest first
            while sequence.slot is not None and self._lacks_block(sequence):
                if self._available(1):
                    sequence.blocks += self.blocks.take(1)
                    grown.append(sequence)
                else:
                    self.preempt(self.running[-1])
        return grown

    def _prompts(self) -> tuple[list[Chunk], list[Copy]]:
        chunks: list[Chunk] = []
        copies: list[Copy] = []
        budget = self.prefill_chunk
        for sequence in self._readers(copies):
            rest = sequence.prompt - sequence.read
            if budget < rest <= self.prefill_chunk:
                break  # a prompt is not cut that fits into a step whole
            stop = sequence.read + min(rest, budget)
            chunks.append(Chunk(sequence, sequence.read, stop))
            budget -= stop - sequence.read
            if not budget or not self._packing:
                break
        return chunks, copies

    def _readers(self, copies: list[Copy]) -> Iterator[Sequence]:
        """Sequences with prompt left to read: those that began, then new ones as they fit."""
        yield from [s for s in self.running if s.read < s.prompt]
        while (sequence := self._admissible()) is not None:
            if not self._admit(sequence, copies):
                return
            yield sequence

    def _admissible(self) -> Sequence | None:
        """The first waiting sequence, of those whose prefix no other is reading just now."""
        if len(self.running) >= self.most_running:
            return None
        if self._prefixes is None:
            return self.waiting[0] if self.waiting else None
        reading = {s.prefix_key for s in self.running if s.read < s.prefix} - {None}
        reading -= self._prefixes.keys()
        return next((s for s in self.waiting if s.prefix_key not in reading), None)

    def _admit(self, sequence: Sequence, copies: list[Copy]) -> bool:
        """Give a sequence a slot and blocks for its prompt, if there are enough."""
        held, known = self._known(sequence)
        full = known // self.blocks.size  # whole blocks are shared, a begun one is copied
        shared, begun = held[:full], held[full:]
        self.blocks.hold(shared)  # so that making room does not free them
        lacking = self.blocks.needed(sequence.prompt + 1) - full
        if not self._available(lacking):
            self.blocks.release(shared)
            return False
        fresh = self.blocks.take(lacking)
        # a begun block may be free by now, but nothing is written before it is copied
        copies += [Copy(block, fresh[0]) for block in begun]
        sequence.blocks, sequence.read = shared + fresh, known
        sequence.slot = self._slots.pop()
        self.waiting.remove(sequence)
        self.running.append(sequence)
        self._count(sequence, known)
        return True

    def _remember(self, sequence: Sequence) -> None:
        """Keep the blocks of a prefix that is read, for those to come."""
        key, prefixes = sequence.prefix_key, self._prefixes
        if prefixes is None or key is None or key in prefixes or sequence.read < sequence.prefix:
            return
        held = sequence.blocks[: self.blocks.needed(sequence.prefix)]
        self.blocks.hold(held)
        prefixes[key] = held, sequence.prefix

    def _known(self, sequence: Sequence) -> tuple[list[int], int]:
        """Blocks of a remembered prefix, and its tokens."""
        if self._prefixes is None or sequence.prefix_key not in self._prefixes:
            return [], 0
        self._prefixes.move_to_end(sequence.prefix_key)
        return self._prefixes[sequence.prefix_key]

    def _count(self, sequence: Sequence, known: int) -> None:
        if self._prefixes is not None and sequence.prefix_key is not None:
            self.stats.hits += bool(known)
            self.stats.misses += not known
            self.stats.tokens_saved += known

    def _lacks_block(self, sequence: Sequence) -> bool:
        """Whether the token generated last has no place for its keys and values."""
        return sequence.cached + 1 > len(sequence.blocks) * self.blocks.size

    def _available(self, count: int) -> bool:
        """Whether so many blocks are free, once prefixes are forgotten as far as it takes."""
        if self.blocks.free < count and self._obtainable(count):
            for key in list(self._prefixes or ()):  # used longest ago first
                if self.blocks.free < count and self._spare(key):
                    self.forget(key)
                    self.stats.evictions += 1
        return self.blocks.free >= count

    def _obtainable(self, count: int) -> bool:
        """Whether so many blocks would be free if every prefix were forgotten."""
        return self.blocks.free + sum(map(self._spare, self._prefixes or ())) >= count

    def _spare(self, key: Hashable) -> int:
        """Blocks that only a prefix holds. Its whole blocks have the same holders, all of them."""
        held, _ = self._prefixes[key]  # type: ignore[index]
        alone = [not self.blocks.shared(block) for block in (held[0], held[-1])]
        return (len(held) - 1) * alone[0] + alone[1]

    def _give_back(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self.blocks.release(sequence.blocks)
        self._slots.append(sequence.slot)
        sequence.blocks, sequence.slot = [], None
