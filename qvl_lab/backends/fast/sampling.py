"""The choice of a token from logits: repetition penalty, temperature, top_k, top_p and noise.

The noise is a function of a request's seed and of how many tokens it has, so that its answer does
not depend on what is answered beside it, nor on whether it was preempted.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: SplitMix64 (Steele, Lea and Flood, 2014): its increment and its multipliers, as signed numbers.
_INCREMENT = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIERS = (30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64)
#: Bits of a uniform number, as many as a float has.
_BITS = 24


def uniform(seed: Tensor, step: Tensor) -> Tensor:
    """A number in [0, 1) a row, from the output number ``step`` of SplitMix64 with this seed.

    Parameters
    ----------
    seed, step : Tensor
        (rows,) int64 each.
    """
    noise: Tensor = _shifted(splitmix64(seed, step), 64 - _BITS).float() / 2**_BITS
    return noise


def splitmix64(seed: Tensor, step: Tensor) -> Tensor:
    """Output number ``step`` of SplitMix64, whose 64 bits are read as a signed number."""
    x = seed + (step + 1) * _INCREMENT
    for bits, multiplier in _MULTIPLIERS:
        x = (x ^ _shifted(x, bits)) * multiplier
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift to the right, zeros from the left, which int64 does not do by itself."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def penalised(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Apply a repetition penalty as transformers' ``RepetitionPenaltyLogitsProcessor`` does.

    Parameters
    ----------
    logits : Tensor
        (rows, vocabulary).
    seen : Tensor
        (rows, vocabulary) bool: the tokens that a row has already.
    penalty : Tensor
        (rows, 1); 1 changes nothing.
    """
    lowered = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, lowered, logits)


def sample(logits: Tensor, top_k: Tensor, temperature_top_p: Tensor, noise: Tensor) -> Tensor:
    """Draw a token a row from the probabilities that temperature, top_k and top_p leave.

    As in transformers, the logits are divided by the temperature, then all but the ``top_k`` best
    are dropped (0 or less keeps all), then all beyond the smallest set that holds ``top_p``. The
    token is the one at which the sum of probabilities, the largest first, exceeds the noise.

    Parameters
    ----------
    logits : Tensor
        (rows, vocabulary).
    top_k : Tensor
        (rows,).
    temperature_top_p : Tensor
        (rows, 2).
    noise : Tensor
        (rows,) in [0, 1).
    """
    temperature, top_p = temperature_top_p[:, :1], temperature_top_p[:, 1:]
    ordered, tokens = (logits / temperature).sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    kept = torch.where(top_k > 0, top_k, logits.shape[1])[:, None]
    shares = ordered.masked_fill(rank >= kept, -torch.inf).softmax(-1)
    before = shares.cumsum(-1) - shares
    shares = shares.masked_fill(before >= top_p, 0)
    cumulative = shares.cumsum(-1)
    chosen = torch.searchsorted(cumulative, noise[:, None] * cumulative[:, -1:], right=True)
    last = (shares > 0).sum(-1, keepdim=True) - 1  # where rounding would go beyond it
    return tokens.gather(1, torch.minimum(chosen, last.clamp(min=0)))[:, 0]
