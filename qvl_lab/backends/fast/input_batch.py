"""The running sequences as rows of tensors that keep their addresses, and the choice of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from qvl_lab.backends.fast.model.qwen3_vl import KVCache, Qwen3VLModel
from qvl_lab.config.sampling import SamplingParams

#: Columns of a slot's row before its block table.
TOKEN, LENGTH, POSITION, GENERATED, MIN_NEW_TOKENS, TOP_K = range(6)
HEADER = 6
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
        self._temperature_top_p = torch.ones(slots, 2, device=device)
        self._stop = torch.tensor(stop_token_ids, dtype=torch.int64, device=device)
        self._suppressed = torch.tensor(suppressed_token_ids, dtype=torch.int64, device=device)
        self.used_blocks = max_blocks

    def add(self, slots: Tensor, state: Tensor, temperature_top_p: Tensor) -> None:
        """Put sequences into slots.

        Parameters
        ----------
        slots : Tensor
            (sequences,).
        state : Tensor
            (sequences, HEADER + max_blocks): :func:`row_header` and the block table of each.
        temperature_top_p : Tensor
            (sequences, 2).
        """
        self._state.index_copy_(0, slots, state)
        self._temperature_top_p.index_copy_(0, slots, temperature_top_p)

    def set_block_table(self, slots: Tensor, block_table: Tensor) -> None:
        """Replace block tables, (sequences, max_blocks)."""
        self._state[:, HEADER:].index_copy_(0, slots, block_table)

    def first_tokens(self, logits: Tensor, slots: Tensor, sampled: bool = False) -> Tensor:
        """Choose the token after each prompt from its logits, (sequences, vocabulary)."""
        return self._choose(logits, slots, self._state[slots], sampled)

    def decode(self, slots: Tensor) -> Tensor:
        """Choose the most likely next token of each slot; ``OVERFLOW`` where there is none."""
        return self._decode(slots, sampled=False)

    def decode_sampled(self, slots: Tensor) -> Tensor:
        """Choose the next token of each slot by its own sampling parameters."""
        return self._decode(slots, sampled=True)

    def _decode(self, slots: Tensor, sampled: bool) -> Tensor:
        state = self._state[slots]
        length = state[:, LENGTH]
        block_table = state[:, HEADER : HEADER + self.used_blocks].contiguous()
        logits = self._model.decode(
            state[:, TOKEN], state[:, POSITION], length, block_table, self._cache
        )
        in_use = (slots != self._null_slot).long()
        state[:, LENGTH] += in_use
        state[:, POSITION] += in_use
        return self._choose(logits, slots, state, sampled)

    def _choose(self, logits: Tensor, slots: Tensor, state: Tensor, sampled: bool) -> Tensor:
        """Choose tokens and write the rows back."""
        logits.index_fill_(1, self._suppressed, -torch.inf)
        too_early = (state[:, GENERATED] < state[:, MIN_NEW_TOKENS])[:, None]
        stop_logits = logits[:, self._stop].masked_fill(too_early, -torch.inf)
        logits.index_copy_(1, self._stop, stop_logits)
        best, token = logits.max(-1)
        if sampled:
            top_k = state[:, TOP_K]
            drawn = sample(logits, top_k, self._temperature_top_p[slots])
            token = torch.where(top_k < 0, token, drawn)
        finite = best.isfinite()
        state[:, TOKEN] = token * finite
        state[:, GENERATED] += 1
        self._state.index_copy_(0, slots, state)
        return torch.where(finite, token, OVERFLOW)


def row_header(
    token: int, length: int, position: int, generated: int, sampling: SamplingParams
) -> list[int]:
    """A row's columns before the block table; ``TOP_K`` is -1 for the most likely token."""
    top_k = (sampling.top_k or 0) if sampling.do_sample else -1
    return [token, length, position, generated, sampling.min_new_tokens, top_k]


def sample(logits: Tensor, top_k: Tensor, temperature_top_p: Tensor) -> Tensor:
    """Draw a token a row from the probabilities that temperature, top_k and top_p leave.

    As in transformers, the logits are divided by the temperature, then all but the ``top_k`` best
    are dropped (0 or less keeps all), then all beyond the smallest set that holds ``top_p``.

    Parameters
    ----------
    logits : Tensor
        (rows, vocabulary).
    top_k : Tensor
        (rows,).
    temperature_top_p : Tensor
        (rows, 2).
    """
    temperature, top_p = temperature_top_p[:, :1], temperature_top_p[:, 1:]
    ordered, tokens = (logits / temperature).sort(-1, descending=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    kept = torch.where(top_k > 0, top_k, logits.shape[1])[:, None]
    shares = ordered.masked_fill(rank >= kept, -torch.inf).softmax(-1)
    before = shares.cumsum(-1) - shares
    shares = shares.masked_fill(before >= top_p, 0)
    # the largest of shares / exponential noise is drawn with the shares' odds
    chosen = (shares / torch.empty_like(shares).exponential_()).argmax(-1, keepdim=True)
    return tokens.gather(1, chosen)[:, 0]
