"""The running sequences as rows of tensors that stay in their places, and the choice of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from qvl_lab.backends.fast.model.qwen3_vl import KeyValues, Qwen3VLModel
from qvl_lab.config import SamplingParams

#: Columns of a slot's row, before its list of blocks.
TOKEN, LENGTH, POSITION, GENERATED, LEAST, TOP_K = range(6)
HEAD = 6
#: What stands for a token where the scores were inf or NaN.
OVERFLOW = -1


class InputBatch:
    """State of every slot, and the decoding step over some of them.

    The step reads and writes the same tensors each time, without a word from the CPU, so that it
    can be recorded as a CUDA graph. The last slot is nobody's.

    Parameters
    ----------
    slots, width : int
        Sequences at once, most blocks of one.
    nowhere : int
        A block that no sequence has.
    stops, suppressed : list of int
        Tokens that end an answer; tokens that are never chosen.

    Attributes
    ----------
    used_width : int
        Blocks to look at in a step; lowered on a CPU, where nothing is recorded.
    """

    def __init__(
        self,
        network: Qwen3VLModel,
        cache: KeyValues,
        slots: int,
        width: int,
        nowhere: int,
        stops: list[int],
        suppressed: list[int],
    ) -> None:
        self._network, self._cache, self._nobody = network, cache, slots
        device = network.device
        self._whole = torch.zeros(slots + 1, HEAD + width, dtype=torch.int64, device=device)
        self._whole[:, HEAD:] = nowhere
        self._warmth = torch.ones(slots + 1, 2, device=device)  # temperature, top_p
        self._stops = torch.tensor(stops, dtype=torch.int64, device=device)
        self._suppressed = torch.tensor(suppressed, dtype=torch.int64, device=device)
        self.used_width = width

    def put(self, rows: Tensor, state: Tensor, warmth: Tensor) -> None:
        """Put sequences into slots: (rows, HEAD + width) and (rows, 2) of temperature, top_p."""
        self._whole.index_copy_(0, rows, state)
        self._warmth.index_copy_(0, rows, warmth)

    def put_blocks(self, rows: Tensor, blocks: Tensor) -> None:
        """Replace the lists of blocks, (rows, width)."""
        self._whole[:, HEAD:].index_copy_(0, rows, blocks)

    def first(self, scores: Tensor, rows: Tensor, sampled: bool = False) -> Tensor:
        """Choose the token after each prompt, from its scores."""
        return self._choose(scores, rows, self._whole[rows], sampled)

    def step(self, rows: Tensor) -> Tensor:
        """One more token for each row, the most likely ones; ``OVERFLOW`` where there is none."""
        return self._step(rows, sampled=False)

    def sampled_step(self, rows: Tensor) -> Tensor:
        """One more token for each row, drawn where its sampling says so."""
        return self._step(rows, sampled=True)

    def _step(self, rows: Tensor, sampled: bool) -> Tensor:
        state = self._whole[rows]
        length = state[:, LENGTH]
        table = state[:, HEAD : HEAD + self.used_width].contiguous()
        scores = self._network.step(state[:, TOKEN], state[:, POSITION], length, table, self._cache)
        alive = (rows != self._nobody).long()
        state[:, LENGTH] += alive
        state[:, POSITION] += alive
        return self._choose(scores, rows, state, sampled)

    def _choose(self, scores: Tensor, rows: Tensor, state: Tensor, sampled: bool) -> Tensor:
        """Choose tokens and write the rows back."""
        scores.index_fill_(1, self._suppressed, -torch.inf)
        early = (state[:, GENERATED] < state[:, LEAST])[:, None]
        stops = scores[:, self._stops].masked_fill(early, -torch.inf)
        scores.index_copy_(1, self._stops, stops)
        best, token = scores.max(-1)
        if sampled:
            token = torch.where(
                state[:, TOP_K] < 0, token, draw(scores, state[:, TOP_K], self._warmth[rows])
            )
        finite = best.isfinite()
        state[:, TOKEN] = token * finite
        state[:, GENERATED] += 1
        self._whole.index_copy_(0, rows, state)
        return torch.where(finite, token, OVERFLOW)


def row_of(
    token: int, length: int, position: int, generated: int, sampling: SamplingParams
) -> list[int]:
    """The columns before the list of blocks; ``TOP_K`` is -1 for the most likely token."""
    top_k = (sampling.top_k or 0) if sampling.do_sample else -1
    return [token, length, position, generated, sampling.min_new_tokens, top_k]


def draw(scores: Tensor, top_k: Tensor, warmth: Tensor) -> Tensor:
    """A token each, with the probabilities that temperature, top_k and top_p leave.

    In transformers' order: the scores are divided by the temperature, all but the ``top_k`` best
    are dropped (0 or less keeps all), then all beyond the smallest set that holds ``top_p``.

    Parameters
    ----------
    scores : Tensor
        (rows, vocabulary).
    top_k : Tensor
        (rows,).
    warmth : Tensor
        (rows, 2) of temperature and top_p.
    """
    temperature, top_p = warmth[:, :1], warmth[:, 1:]
    ordered, tokens = (scores / temperature).sort(-1, descending=True)
    place = torch.arange(scores.shape[1], device=scores.device)
    kept = torch.where(top_k > 0, top_k, scores.shape[1])[:, None]
    shares = ordered.masked_fill(place >= kept, -torch.inf).softmax(-1)
    before = shares.cumsum(-1) - shares
    shares = shares.masked_fill(before >= top_p, 0)
    # the largest of shares / exponential noise is drawn with the shares' odds
    chosen = (shares / torch.empty_like(shares).exponential_()).argmax(-1, keepdim=True)
    return tokens.gather(1, chosen)[:, 0]
