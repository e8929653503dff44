"""The running sequences as rows of tensors that keep their addresses, and the choice of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from qvl_lab.backends.fast.model.qwen3_vl import KVCache, Qwen3VLModel
from qvl_lab.backends.fast.sampling import penalised, sample, uniform
from qvl_lab.config.sampling import SamplingParams

#: Columns of a slot's row before its block table.
TOKEN, LENGTH, POSITION, GENERATED, MIN_NEW_TOKENS, TOP_K, SEED = range(7)
HEADER = 7
#: The token of a row whose logits were inf or NaN.
OVERFLOW = -1


class InputBatch:
    """The state of every slot, and the decoding step over some of them.

    A step reads and writes the same tensors each time and needs nothing from the CPU, so that it
    can be recorded as a CUDA graph. The last slot belongs to no sequence: rows that fill up a batch
    point to it.

    Parameters
    ----------
    max_num_seqs, max_blocks : int
        Sequences at once, and blocks of one sequence.
    null_block : int
        A block that belongs to no sequence.
    stop_token_ids, suppressed_token_ids : list of int
        Tokens that end an answer, and tokens that are never chosen.

    Attributes
    ----------
    used_blocks : int
        Columns of the block table that a step looks at. It is lowered on a CPU only, where no
        graph is recorded.
    """

    def __init__(
        self,
        model: Qwen3VLModel,
        cache: KVCache,
        max_num_seqs: int,
        max_blocks: int,
        null_block: int,
        stop_token_ids: list[int],
        suppressed_token_ids: list[int],
    ) -> None:
        self._model, self._cache, self._null_slot = model, cache, max_num_seqs
        device, slots = model.device, max_num_seqs + 1
        self._state = torch.zeros(slots, HEADER + max_blocks, dtype=torch.int64, device=device)
        self._state[:, HEADER:] = null_block
        self._temperature_top_p_penalty = torch.ones(slots, 3, device=device)
        self._seen: Tensor | None = None  # (slots, vocabulary), once a request has a penalty
        self._stop = torch.tensor(stop_token_ids, dtype=torch.int64, device=device)
        self._suppressed = torch.tensor(suppressed_token_ids, dtype=torch.int64, device=device)
        self.used_blocks = max_blocks

    def add(self, slots: Tensor, state: Tensor, temperature_top_p_penalty: Tensor) -> None:
        """Put sequences into slots.

        Parameters
        ----------
        slots : Tensor
            (sequences,).
        state : Tensor
            (sequences, HEADER + max_blocks): :func:`row_header` and the block table of each.
        temperature_top_p_penalty : Tensor
            (sequences, 3): temperature, top_p and repetition penalty.
        """
        self._state.index_copy_(0, slots, state)
        self._temperature_top_p_penalty.index_copy_(0, slots, temperature_top_p_penalty)

    def penalise(self, slot: int, token_ids: Tensor, vocabulary: int) -> None:
        """Remember which tokens the sequence in a slot has, for its repetition penalty.

        The table for all slots, a byte a token of the vocabulary, is made at the first call.
        """
        if self._seen is None:
            shape = len(self._state), vocabulary
            self._seen = torch.zeros(shape, dtype=torch.bool, device=self._state.device)
        self._seen[slot].zero_()
        self._seen[slot].index_fill_(0, token_ids, True)

    def set_block_table(self, slots: Tensor, block_table: Tensor) -> None:
        """Replace block tables, (sequences, max_blocks)."""
        self._state[:, HEADER:].index_copy_(0, slots, block_table)

    def first_tokens(self, logits: Tensor, slots: Tensor, plain: bool = True) -> Tensor:
        """Choose the token after each prompt from its logits, (sequences, vocabulary).

        ``plain`` takes the most likely ones, whatever the sequences' sampling parameters.
        """
        return self._choose(logits, slots, self._state[slots], plain)

    def decode(self, slots: Tensor) -> Tensor:
        """Choose the most likely next token of each slot; ``OVERFLOW`` where there is none."""
        return self._decode(slots, plain=True)

    def decode_sampled(self, slots: Tensor) -> Tensor:
        """Choose the next token of each slot by its own sampling parameters."""
        return self._decode(slots, plain=False)

    def _decode(self, slots: Tensor, plain: bool) -> Tensor:
        state = self._state[slots]
        length = state[:, LENGTH]
        block_table = state[:, HEADER : HEADER + self.used_blocks].contiguous()
        logits = self._model.decode(
            state[:, TOKEN], state[:, POSITION], length, block_table, self._cache
        )
        in_use = (slots != self._null_slot).long()
        state[:, LENGTH] += in_use
        state[:, POSITION] += in_use
        return self._choose(logits, slots, state, plain)

    def _choose(self, logits: Tensor, slots: Tensor, state: Tensor, plain: bool) -> Tensor:
        """Choose tokens and write the rows back."""
        if not plain and self._seen is not None:
            penalty = self._temperature_top_p_penalty[slots, 2:]
            logits = penalised(logits, self._seen[slots], penalty)
        logits.index_fill_(1, self._suppressed, -torch.inf)
        too_early = (state[:, GENERATED] < state[:, MIN_NEW_TOKENS])[:, None]
        stop_logits = logits[:, self._stop].masked_fill(too_early, -torch.inf)
        logits.index_copy_(1, self._stop, stop_logits)
        best, token = logits.max(-1)
        if not plain:
            token = self._sampled(logits, slots, state, token)
        finite = best.isfinite()
        state[:, TOKEN] = token * finite
        state[:, GENERATED] += 1
        self._state.index_copy_(0, slots, state)
        return torch.where(finite, token, OVERFLOW)

    def _sampled(self, logits: Tensor, slots: Tensor, state: Tensor, best: Tensor) -> Tensor:
        """Draw a token for each row that samples, and remember all for repetition penalties."""
        top_k = state[:, TOP_K]
        noise = uniform(state[:, SEED], state[:, GENERATED])
        drawn = sample(logits, top_k, self._temperature_top_p_penalty[slots, :2], noise)
        token = torch.where(top_k < 0, best, drawn)
        if self._seen is not None:
            self._seen.index_put_((slots, token), self._seen.new_ones(()))
        return token


def row_header(
    token: int, length: int, position: int, generated: int, sampling: SamplingParams
) -> list[int]:
    """A row's columns before the block table; ``TOP_K`` is -1 for the most likely token.

    A request that samples without a seed gets one from torch's random state.
    """
    top_k = (sampling.top_k or 0) if sampling.do_sample else -1
    seed = sampling.seed
    if seed is None:
        seed = int(torch.randint(2**63 - 1, ())) if sampling.do_sample else 0
    return [token, length, position, generated, sampling.min_new_tokens or 0, top_k, seed]
