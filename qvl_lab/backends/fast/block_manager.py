"""The blocks of the key-value cache: who holds them, and which prefixes are kept in them.

Blocks are counted by reference, so that running sequences and kept prefixes can share them.
Evicting a prefix drops one reference and never takes a block from a running sequence.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from qvl_lab.backends.fast.sequence import Sequence


@dataclass(frozen=True)
class Copy:
    """Block ``source`` is to be copied to ``target`` before the step, which writes on the copy."""

    source: int
    target: int


@dataclass
class PrefixStats:
    """How often a prefix was found, and the tokens whose prefill that saved."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    tokens_saved: int = 0


class BlockManager:
    """Allocates blocks to sequences and keeps those of prefixes for sequences to come.

    Parameters
    ----------
    num_blocks, block_size : int
        Blocks of the cache, tokens in a block.
    prefix_cache : bool
        Keep the blocks of prefixes; the least recently used ones are evicted to make room.

    Attributes
    ----------
    stats : PrefixStats
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_cache: bool = False) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.prefix_cache = prefix_cache
        self.stats = PrefixStats()
        self._free = list(range(num_blocks - 1, -1, -1))
        self._references = [0] * num_blocks
        #: By key: blocks and number of tokens, the least recently used first.
        self._prefixes: OrderedDict[Hashable, tuple[list[int], int]] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def num_kept(self) -> int:
        """Blocks that kept prefixes hold, together or alone."""
        return len({block for blocks, _ in self._prefixes.values() for block in blocks})

    def needed(self, num_tokens: int) -> int:
        """Blocks that a number of tokens fills."""
        return -(-num_tokens // self.block_size)

    # ---- sequences

    def allocate(self, sequence: Sequence) -> list[Copy] | None:
        """Give a sequence blocks for its prompt and one more token, if there is room.

        Whole blocks of a kept prefix are shared. A partly filled one is copied, since the sequence
        writes on it. ``sequence.num_computed_tokens`` becomes the length of the prefix found.

        Returns
        -------
        list of Copy or None
            Blocks to duplicate before the step; None if there is no room, and nothing changed.
        """
        kept, num_tokens = self._find_prefix(sequence.prefix_key)
        num_shared = num_tokens // self.block_size
        shared, partial = kept[:num_shared], kept[num_shared:]
        self._hold(shared)  # so that making room does not free them
        lacking = self.needed(sequence.num_prefill_tokens + 1) - num_shared
        if not self._make_room(lacking):
            self._release(shared)
            return None
        fresh = self._take(lacking)
        sequence.block_table, sequence.num_computed_tokens = shared + fresh, num_tokens
        if self.prefix_cache and sequence.prefix_key is not None:
            self.stats.hits += bool(num_tokens)
            self.stats.misses += not num_tokens
            self.stats.tokens_saved += num_tokens
        # a partial block may be free by now, but nothing is written before it is copied
        return [Copy(block, fresh[0]) for block in partial]

    def append(self, sequence: Sequence) -> bool:
        """Give a sequence one more block; False if there is no room."""
        if not self._make_room(1):
            return False
        sequence.block_table += self._take(1)
        return True

    def free(self, sequence: Sequence) -> None:
        """Take back all blocks of a sequence."""
        self._release(sequence.block_table)
        sequence.block_table = []

    def is_full(self, sequence: Sequence) -> bool:
        """Whether the token generated last has no place for its keys and values."""
        return sequence.num_computed_tokens + 1 > len(sequence.block_table) * self.block_size

    def own_blocks(self, sequence: Sequence) -> list[int]:
        """Blocks of a sequence that nobody else holds."""
        return [block for block in sequence.block_table if not self._is_shared(block)]

    def can_make_room(self, count: int) -> bool:
        """Whether ``count`` blocks would be free if every prefix were evicted."""
        return self.num_free + sum(map(self._freed_by_evicting, self._prefixes)) >= count

    # ---- prefixes

    def keep_prefix(self, sequence: Sequence) -> None:
        """Keep the blocks of a sequence's prefix, once its keys and values are computed."""
        key, num_tokens = sequence.prefix_key, sequence.num_prefix_tokens
        computed = sequence.num_computed_tokens >= num_tokens
        if not self.prefix_cache or key is None or key in self._prefixes or not computed:
            return
        blocks = sequence.block_table[: self.needed(num_tokens)]
        self._hold(blocks)
        self._prefixes[key] = blocks, num_tokens

    def has_prefix(self, key: Hashable | None) -> bool:
        """Whether a prefix is kept."""
        return key in self._prefixes

    def evict_prefix(self, key: Hashable | None) -> list[int]:
        """Evict a prefix and return the blocks this freed; none if the key is unknown."""
        if key not in self._prefixes:
            return []
        blocks, _ = self._prefixes.pop(key)
        return self._release(blocks)

    def evict_prefixes(self) -> None:
        """Evict every prefix."""
        for key in list(self._prefixes):
            self.evict_prefix(key)

    def _find_prefix(self, key: Hashable | None) -> tuple[list[int], int]:
        """Blocks and tokens of a prefix, which becomes the most recently used; empty if unknown."""
        if key not in self._prefixes:
            return [], 0
        self._prefixes.move_to_end(key)
        return self._prefixes[key]

    # ---- references

    def _take(self, count: int) -> list[int]:
        """Hold ``count`` free blocks; the caller has checked that there are as many."""
        taken = [self._free.pop() for _ in range(count)]
        self._hold(taken)
        return taken

    def _hold(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._references[block] += 1

    def _release(self, blocks: Iterable[int]) -> list[int]:
        """Drop one reference to each block and return those that are free now."""
        freed = []
        for block in blocks:
            self._references[block] -= 1
            if not self._references[block]:
                freed.append(block)
        self._free += freed
        return freed

    def _is_shared(self, block: int) -> bool:
        return self._references[block] > 1

    def _make_room(self, count: int) -> bool:
        """Have ``count`` blocks free, evicting prefixes as far as that helps."""
        if self.num_free < count and self.can_make_room(count):
            for key in list(self._prefixes):  # the least recently used first
                if self.num_free < count and self._freed_by_evicting(key):
                    self.evict_prefix(key)
                    self.stats.evictions += 1
        return self.num_free >= count

    def _freed_by_evicting(self, key: Hashable) -> int:
        """Blocks that only this prefix holds. Its whole blocks are always shared together."""
        blocks, _ = self._prefixes[key]
        alone = [not self._is_shared(block) for block in (blocks[0], blocks[-1])]
        return (len(blocks) - 1) * alone[0] + alone[1]
