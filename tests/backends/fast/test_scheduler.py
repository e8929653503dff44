"""Admission, order, preemption and sharing, on a cache that knows whose token lies where."""

from __future__ import annotations

from collections import deque
from itertools import count

import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from qvl_lab.backends.base import Request
from qvl_lab.backends.fast.block_manager import BlockManager, Copy
from qvl_lab.backends.fast.scheduler import Chunk, Scheduler, Step
from qvl_lab.backends.fast.sequence import Sequence
from qvl_lab.config import SamplingParams
from qvl_lab.workloads.items import Item

#: Lengths of the prefixes that the random requests share.
PREFIXES = {"a": 3, "b": 6, "c": 9}


def sequence_of(index: int, prompt: int, limit: int, key: str | None, prefix: int) -> Sequence:
    """A sequence of a prompt that begins with an image of ``prefix`` tokens."""
    request = Request(index, Item(str(index), b""), b"", (32, 32), prefix, "")
    sampling = SamplingParams(max_new_tokens=limit)
    image = range(prefix)
    return Sequence(request, sampling, [0] * prompt, image, (2, 2), prefix_key=key)


class Engine:
    """Drives a scheduler as engine.py and model_runner.py do, and checks every token it prefills.

    A place of the cache holds the name of a token: (prefix key, index) for one that several
    sequences share, (sequence id, index) for others. Tokens are known ``late`` steps after they
    were launched; a sequence turns out to end after ``ends[sequence]`` tokens.
    """

    def __init__(
        self,
        slots: int = 4,
        blocks: int = 20,
        size: int = 4,
        chunk: int = 100,
        late: int = 1,
        packing: bool = True,
        prefix_cache: bool = False,
        least_chunk: int = 256,
    ) -> None:
        self.blocks = BlockManager(blocks, size, prefix_cache=prefix_cache)
        self.scheduler = Scheduler(
            slots, self.blocks, chunk, packing=packing, least_chunk=least_chunk
        )
        self.slots, self.size, self.late, self.packing = slots, size, late, packing
        self.places: list[list[object]] = [[None] * size for _ in range(blocks)]
        self.table: dict[int, list[int]] = {}  # what the device knows of each slot's blocks
        self.outputs: deque[list[Sequence]] = deque()
        self.asked: dict[Sequence, tuple[int, int]] = {}
        self.ends: dict[Sequence, int] = {}
        self.live: list[Sequence] = []
        self._ids = count()

    def add(
        self, prompt: int, limit: int = 3, key: str | None = None, prefix: int = 0, ends: int = 0
    ) -> Sequence:
        sequence = sequence_of(next(self._ids), prompt, limit, key, prefix)
        self.asked[sequence] = prompt, limit
        self.ends[sequence] = ends or limit
        self.live.append(sequence)
        self.scheduler.add(sequence)
        return sequence

    def step(self, fails: str = "") -> Step:
        """One step; ``fails`` names what goes wrong in it."""
        if self.scheduler.must_preempt():
            self.collect(0)
        foreseen = self.scheduler.must_preempt()
        waiting = list(self.scheduler.waiting)
        ready = [s for s in self.scheduler.running if s.is_decoding]
        step = self.scheduler.next()
        assert foreseen == bool(step.preempted)
        self.check_plan(step, waiting, ready)
        for copy in step.copies:
            self.places[copy.target] = list(self.places[copy.source])
        for sequence in step.grown:
            self.table[sequence.slot] = list(sequence.block_table)
        self.outputs.append([])
        if fails == "decodes":
            self.recover(decodes=step.decodes)
        else:
            self.decode(step.decodes)
        if fails == "chunks":
            self.recover(chunks=step.chunks)
        else:
            self.prefill(self.without_a_bad_image(step.chunks, fails == "image"))
        self.collect(self.late if step else 0)
        return step

    def without_a_bad_image(self, chunks: list[Chunk], fails: bool) -> list[Chunk]:
        """An image that cannot be decoded is noticed when its tokens are about to be prefilled."""
        if not fails or not chunks or chunks[0].start >= chunks[0].sequence.num_prefix_tokens:
            return chunks
        self.blocks.evict_prefix(chunks[0].sequence.prefix_key)
        self.end(chunks[0].sequence)
        return chunks[1:]

    def recover(self, **planned) -> None:
        """Memory ran out for what was planned: nothing of it was launched."""
        self.collect(0)
        self.outputs.append([])
        rollback = self.scheduler.rollback(**planned)
        if rollback is not None and rollback.too_large is not None:
            self.end(rollback.too_large)

    def decode(self, sequences) -> None:
        tables = [self.table[s.slot][: len(s.block_table)] for s in sequences]
        for sequence, table in zip(sequences, tables, strict=True):
            computed = sequence.num_computed_tokens
            self.write(sequence, table, computed - 1, computed)
        for sequence, table in zip(sequences, tables, strict=True):
            self.check_tokens(sequence, table, sequence.num_computed_tokens)
        self.outputs[-1] += sequences

    def prefill(self, chunks) -> None:
        for chunk in chunks:
            self.write(chunk.sequence, chunk.sequence.block_table, chunk.start, chunk.stop)
        for chunk in chunks:
            self.check_tokens(chunk.sequence, chunk.sequence.block_table, chunk.stop)
            if chunk.last:
                self.table[chunk.sequence.slot] = list(chunk.sequence.block_table)
                self.outputs[-1].append(chunk.sequence)

    def collect(self, leave: int) -> None:
        while len(self.outputs) > leave:
            for sequence in self.outputs.popleft():
                if sequence in self.live:
                    sequence.token_ids.append(0)
                    if sequence.num_output_tokens == self.ends[sequence]:
                        self.end(sequence)

    def end(self, sequence: Sequence) -> None:
        assert self.scheduler.finish(sequence)
        self.live.remove(sequence)

    def run(self) -> None:
        """To the end. The oldest that runs goes on in every step, which bounds their number."""
        for _ in range(sum(sum(self.asked[s]) + self.late + 2 for s in self.live)):
            if not self.live:
                return
            self.step()
            self.check()
        assert not self.live, "a request does not come to its end"

    # ---- what must hold

    def token(self, sequence: Sequence, index: int) -> tuple[object, int]:
        shared = sequence.prefix_key is not None and index < sequence.num_prefix_tokens
        return (sequence.prefix_key if shared else sequence.request.index), index

    def write(self, sequence: Sequence, blocks: list[int], start: int, stop: int) -> None:
        for index in range(start, stop):
            block = blocks[index // self.size]
            self.places[block][index % self.size] = self.token(sequence, index)

    def check_tokens(self, sequence: Sequence, blocks: list[int], stop: int) -> None:
        held = [token for block in blocks for token in self.places[block]][:stop]
        assert held == [self.token(sequence, index) for index in range(stop)]

    def check_plan(self, step: Step, waiting: list[Sequence], ready: list[Sequence]) -> None:
        sizes = [chunk.stop - chunk.start for chunk in step.chunks]
        assert sum(sizes) <= self.scheduler.prefill_chunk and 0 not in sizes
        assert len(sizes) <= 1 or self.packing is not False
        assert step.decodes == [s for s in ready if s not in step.preempted]
        entered = [s for s in self.scheduler.running if s in waiting]
        if not self.blocks._prefixes:
            assert entered == waiting[: len(entered)]
        for sequence in step.preempted:
            prompt, limit = self.asked[sequence]
            assert sequence.num_prefill_tokens == prompt + sequence.num_output_tokens
            assert sequence.num_output_tokens < limit

    def check(self) -> None:
        scheduler, blocks = self.scheduler, self.blocks
        references = [0] * blocks.num_blocks
        tables = [s.block_table for s in scheduler.running]
        for held in tables + [held for held, _ in blocks._prefixes.values()]:
            for block in held:
                references[block] += 1
        assert blocks._references == references
        assert sorted(blocks._free) == [block for block, n in enumerate(references) if not n]
        slots = [sequence.slot for sequence in scheduler.running]
        assert sorted(slots + scheduler._slots) == list(range(self.slots))
        assert {*scheduler.running, *scheduler.waiting} == set(self.live)
        assert all(not s.block_table and s.slot is None for s in scheduler.waiting)
        for key, (held, tokens) in blocks._prefixes.items():
            found = [token for block in held for token in self.places[block]][:tokens]
            assert found == [(key, index) for index in range(tokens)]

    def check_empty(self) -> None:
        self.blocks.evict_prefixes()
        assert self.blocks.num_free == self.blocks.num_blocks


class Requests(RuleBasedStateMachine):
    """Random requests that come, share, stop early, are cancelled, overflow and lack memory."""

    engine: Engine | None = None

    @initialize(
        slots=st.integers(1, 4),
        blocks=st.integers(4, 16),
        size=st.integers(1, 5),
        chunk=st.integers(1, 12),
        late=st.integers(0, 1),
        packing=st.booleans(),
        prefix_cache=st.sampled_from([True, True, False]),
        least_chunk=st.integers(1, 12),
    )
    def start(self, **options) -> None:
        self.engine = Engine(**options)

    @rule(
        key=st.sampled_from([None, *PREFIXES]),
        own=st.integers(1, 8),
        limit=st.integers(1, 8),
        ends=st.integers(1, 8),
    )
    def add(self, key, own: int, limit: int, ends: int) -> None:
        prefix = PREFIXES[key] if key else own // 2
        prompt = prefix + own if key else own
        assume(self.engine.scheduler.fits(prompt, limit))
        self.engine.add(prompt, limit, key, prefix, min(ends, limit))

    @rule(times=st.integers(1, 3))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.engine.step()
            self.engine.check()

    @rule(what=st.sampled_from(["decodes", "chunks", "image"]))
    def fail(self, what: str) -> None:
        self.engine.step(fails=what)

    @precondition(lambda self: self.engine and self.engine.live)
    @rule(data=st.data())
    def cancel(self, data) -> None:
        self.engine.end(data.draw(st.sampled_from(self.engine.live)))

    @precondition(lambda self: self.engine and any(s.is_prefilled for s in self.engine.live))
    @rule(data=st.data())
    def overflow(self, data) -> None:
        """Logits were NaN: what only this sequence uses is cleared."""
        launched = [s for s in self.engine.live if s.is_prefilled]
        sequence = data.draw(st.sampled_from(launched))
        freed = self.engine.blocks.evict_prefix(sequence.prefix_key)
        for block in freed + self.engine.blocks.own_blocks(sequence):
            self.engine.places[block] = [None] * self.engine.size
        self.engine.end(sequence)

    @rule()
    def evict(self) -> None:
        self.engine.blocks.evict_prefixes()

    @invariant()
    def holds(self) -> None:
        if self.engine:
            self.engine.check()
            for sequence in self.engine.scheduler.running:
                computed = sequence.num_computed_tokens
                self.engine.check_tokens(sequence, sequence.block_table, computed)

    def teardown(self) -> None:
        if self.engine:
            self.engine.run()
            self.engine.check_empty()


def test_whatever_comes_every_request_reads_its_own_tokens_and_ends():
    run_state_machine_as_test(
        Requests,
        settings=settings(
            max_examples=300, stateful_step_count=30, derandomize=True, deadline=None, database=None
        ),
    )


# ---- admission and order


def names(sequences) -> list[int]:
    return [sequence.request.index for sequence in sequences]


def pieces(step: Step) -> list[tuple[int, int, int]]:
    return [(chunk.sequence.request.index, chunk.start, chunk.stop) for chunk in step.chunks]


def test_first_come_first_served_and_a_small_one_waits_behind_a_large_one():
    engine = Engine(slots=3, blocks=6, size=4)
    for prompt in (11, 15, 1):
        engine.add(prompt)
    step = engine.step()
    assert pieces(step) == [(0, 0, 11)]
    assert names(engine.scheduler.waiting) == [1, 2]
    assert engine.blocks.num_free == 3
    engine.run()


def test_no_more_run_than_there_are_slots():
    engine = Engine(slots=2, late=0)
    for _ in range(3):
        engine.add(2, limit=2)
    assert len(engine.step().chunks) == 2
    assert pieces(engine.step()) == []
    assert pieces(engine.step()) == [(2, 0, 2)]  # those before ended in the last step


def test_prompts_share_a_budget_of_tokens():
    engine = Engine(chunk=10, prefix_cache=True)
    for _ in range(3):
        engine.add(17, prefix=15)  # without a key it is shared with nobody
    steps = [pieces(engine.step()) for _ in range(6)]
    assert steps[0] == [(0, 0, 10)]
    assert steps[1] == [(0, 10, 17), (1, 0, 3)]
    assert steps[2] == [(1, 3, 13)]
    assert steps[3] == [(1, 13, 17), (2, 0, 6)]
    assert steps[4] == [(2, 6, 16)]
    assert steps[5] == [(2, 16, 17)]


def test_prompts_that_fit_into_a_step_are_not_cut():
    engine = Engine(slots=8, blocks=40, chunk=10)
    for tokens in (7, 3, 4, 8, 12):
        engine.add(tokens)
    steps = [pieces(engine.step()) for _ in range(4)]
    assert steps == [[(0, 0, 7), (1, 0, 3)], [(2, 0, 4)], [(3, 0, 8), (4, 0, 2)], [(4, 2, 12)]]


def test_without_packing_one_prompt_is_read_at_a_time():
    engine = Engine(chunk=5, packing=False)
    engine.add(7)
    engine.add(2)
    assert [pieces(engine.step()) for _ in range(3)] == [[(0, 0, 5)], [(0, 5, 7)], [(1, 0, 2)]]


def test_a_long_prompt_does_not_hold_up_those_that_answer():
    engine = Engine(blocks=40, chunk=3)
    early = engine.add(2, limit=30)
    engine.step()
    engine.add(60)
    for _ in range(20):
        step = engine.step()
        assert step.decodes == [early]
        assert [chunk.stop - chunk.start for chunk in step.chunks] == [3]


def test_a_step_says_whether_there_is_anything_to_do():
    engine = Engine(late=0)
    assert not engine.step()
    engine.add(4, limit=1)
    assert engine.step()
    assert not engine.step()


# ---- blocks


def test_blocks_for_the_prompt_and_its_first_token_then_one_at_a_time():
    engine = Engine(size=4, late=0)
    sequence = engine.add(7, limit=6)
    full = engine.add(8, limit=2)
    engine.step()
    assert (len(sequence.block_table), len(full.block_table)) == (2, 3)
    held = []
    while engine.live:
        engine.step()
        held.append(len(sequence.block_table))
    assert held == [2, 3, 3, 3, 0]
    engine.check_empty()


def test_what_could_not_end_even_alone_does_not_fit():
    scheduler = Scheduler(2, BlockManager(3, 4), 100)
    assert scheduler.fits(11, 1)
    assert scheduler.fits(1, 11)
    assert not scheduler.fits(11, 2)
    assert not scheduler.fits(12, 1)


def test_the_newest_goes_back_and_is_read_again_with_what_it_generated():
    engine = Engine(slots=2, blocks=3, size=4, late=0)
    old, new = engine.add(3, limit=9), engine.add(6, limit=4)
    last = engine.add(1)
    engine.step()
    assert engine.step().decodes == [old, new]
    step = engine.step()
    assert (step.preempted, step.decodes) == ([new], [old])
    assert (new.num_prefill_tokens, new.num_computed_tokens, new.slot) == (8, 0, None)
    assert names(engine.scheduler.waiting) == [new.request.index, last.request.index]
    assert engine.scheduler.preemptions == 1
    while new in engine.scheduler.waiting:
        step = engine.step()
    assert pieces(step)[0] == (new.request.index, 0, 8)
    engine.run()
    assert new.num_output_tokens == 4


def test_looking_ahead_at_a_preemption_changes_nothing():
    engine = Engine(slots=2, blocks=3, size=2, late=0, prefix_cache=True)
    engine.add(3, limit=1, key="a", prefix=2)
    engine.step()
    engine.add(1, limit=5)
    engine.step()
    assert engine.blocks.has_prefix("a")
    for _ in range(3):
        assert not engine.scheduler.must_preempt()
    assert engine.blocks.has_prefix("a")
    engine.run()


# ---- prefixes


def sharing(**options) -> Engine:
    """An engine that has read prefix "a", six tokens in blocks of four, for sequence 0."""
    engine = Engine(prefix_cache=True, **options)
    engine.add(8, limit=20, key="a", prefix=6)
    engine.step()
    return engine


def test_whole_blocks_of_a_known_prefix_are_shared_and_a_begun_one_is_copied():
    engine = sharing()
    first = engine.live[0]
    second = engine.add(9, limit=2, key="a", prefix=6)
    step = engine.step()
    assert pieces(step) == [(second.request.index, 6, 9)]
    assert len(second.block_table) == 3
    assert second.block_table[0] == first.block_table[0]
    assert second.block_table[1] not in first.block_table
    assert step.copies == [Copy(first.block_table[1], second.block_table[1])]
    stats = engine.blocks.stats
    assert (stats.hits, stats.misses, stats.tokens_saved) == (1, 1, 6)
    engine.run()


def test_a_prefix_of_whole_blocks_needs_no_copy():
    engine = Engine(prefix_cache=True)
    engine.add(9, key="a", prefix=8)
    engine.step()
    engine.add(9, key="a", prefix=8)
    step = engine.step()
    assert (pieces(step), step.copies) == ([(1, 8, 9)], [])
    engine.run()


def test_prefixes_are_remembered_only_when_asked_for():
    engine = Engine(late=0)
    for _ in range(2):
        engine.add(9, limit=1, key="a", prefix=8)
        assert pieces(engine.step())[0][1:] == (0, 9)
    assert not engine.blocks.has_prefix("a")


def test_who_needs_a_prefix_that_is_being_read_waits_and_others_pass():
    engine = Engine(prefix_cache=True)
    engine.add(8, key="a", prefix=6)
    engine.add(9, key="a", prefix=6)
    engine.add(3, key="b", prefix=2)
    engine.add(1)
    assert pieces(engine.step()) == [(0, 0, 8), (2, 0, 3), (3, 0, 1)]
    assert pieces(engine.step()) == [(1, 6, 9)]


def test_who_needs_a_known_prefix_waits_for_nobody_who_reads_it_anew():
    engine = Engine(chunk=6, prefix_cache=True)
    engine.add(8, key="a", prefix=6)
    engine.step()
    engine.blocks.evict_prefix("a")
    engine.add(8, key="a", prefix=6)
    assert pieces(engine.step()) == [(0, 6, 8), (1, 0, 4)]  # the first one's is known again
    engine.add(8, key="a", prefix=6)
    assert pieces(engine.step()) == [(1, 4, 8), (2, 6, 8)]


def test_who_waits_for_a_reader_that_is_cancelled_reads_the_prefix():
    engine = Engine(chunk=4, prefix_cache=True)
    reader, waits = (engine.add(8, key="a", prefix=6) for _ in range(2))
    engine.step()
    engine.end(reader)
    assert pieces(engine.step()) == [(waits.request.index, 0, 4)]
    engine.run()


def kept(blocks: BlockManager) -> str:
    return "".join(key for key in "abc" if blocks.has_prefix(key))


def test_what_was_used_longest_ago_is_forgotten_as_far_as_room_is_needed():
    engine = Engine(blocks=10, size=4, late=0, prefix_cache=True)
    for key in "abca":  # three blocks each with its question, two of them kept
        engine.add(9, limit=1, key=key, prefix=8)
        engine.step()
    assert (kept(engine.blocks), engine.blocks.num_free) == ("abc", 4)
    engine.add(18, limit=1)
    engine.step()
    assert kept(engine.blocks) == "ac"
    assert engine.blocks.stats.evictions == 1


def test_a_prefix_in_use_would_make_no_room_and_stays():
    engine = Engine(blocks=9, size=4, late=0, prefix_cache=True)
    engine.add(9, limit=9, key="b", prefix=8)  # three blocks
    engine.step()
    engine.add(9, limit=1, key="a", prefix=8)  # two blocks after its end
    engine.step()
    large = engine.add(23, limit=1)  # six blocks
    assert pieces(engine.step()) == [(large.request.index, 0, 23)]
    assert kept(engine.blocks) == "b"
    engine.run()


def test_nothing_is_forgotten_as_long_as_that_does_not_make_room():
    engine = Engine(blocks=8, size=4, late=0, prefix_cache=True)
    engine.add(9, limit=1, key="a", prefix=8)
    engine.step()
    engine.add(9, limit=9, key="b", prefix=8)
    large = engine.add(23, limit=1)
    engine.step()
    assert large.slot is None
    assert kept(engine.blocks) == "ab"
    engine.run()


def test_a_prefix_forgotten_while_it_is_shared_stays_with_those_who_share_it():
    engine = sharing(late=0)
    first, second = engine.live[0], engine.add(9, limit=20, key="a", prefix=6)
    engine.step()
    engine.blocks.evict_prefixes()
    assert not engine.blocks.has_prefix("a")
    engine.end(first)
    engine.add(30, limit=9)  # would write over what is free too early
    engine.run()
    assert second.num_output_tokens == 20
    engine.check_empty()


def test_a_prefix_that_fills_the_cache_gives_way_to_the_one_who_knows_it():
    """Its begun block is copied, so it and its copy are more than the cache has."""
    engine = Engine(blocks=3, size=4, late=0, prefix_cache=True)
    for _ in range(2):
        engine.add(7, limit=5, key="a", prefix=6)
        engine.run()
    assert engine.blocks.stats.hits == 1


# ---- ending


@pytest.mark.parametrize("steps", range(5))
def test_a_cancelled_request_leaves_nothing_behind_wherever_it_is(steps):
    """Waiting, half read, answering, ended."""
    engine = Engine(slots=1, chunk=4, late=0)
    first, second = engine.add(6, limit=2), engine.add(6, limit=2)
    for _ in range(steps):
        engine.step()
    for sequence in (second, first):
        engine.scheduler.finish(sequence)
        engine.scheduler.finish(sequence)
    engine.live.clear()
    engine.check()
    engine.check_empty()


def test_blocks_of_ones_own_are_those_that_nobody_shares():
    engine = sharing()
    first, second = engine.live[0], engine.add(9, limit=20, key="a", prefix=6)
    engine.step()
    blocks = engine.blocks
    assert blocks.own_blocks(second) == second.block_table[1:]
    assert blocks.own_blocks(first) == first.block_table[2:]
    assert blocks.evict_prefix("a") == []
    assert blocks.own_blocks(first) == first.block_table[1:]
    engine.end(second)
    assert blocks.own_blocks(first) == first.block_table


def test_forgetting_says_which_blocks_nobody_holds_now():
    engine = sharing()
    first = engine.live[0]
    held = first.block_table[:2]
    engine.end(first)
    assert engine.blocks.evict_prefix("b") == []
    assert engine.blocks.evict_prefix("a") == held
    engine.check_empty()
