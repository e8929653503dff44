"""How the tokens of an answer are chosen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

from qvl_lab.config.checks import bounded
from qvl_lab.errors import ConfigError

#: Fields that mean nothing while the most likely token is taken.
ONLY_SAMPLING = ("temperature", "top_k", "top_p", "seed")


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, in transformers' names: the most likely one unless ``do_sample``.

    Parameters
    ----------
    max_new_tokens : int
        Upper bound on the answer's length.
    min_new_tokens : int, optional
        Lower bound. None means 0, and ``max_new_tokens`` for random weights, whose answers would
        otherwise end at random.
    do_sample : bool
        Draw tokens by their probability, instead of taking the most likely one.
    temperature : float
        Divides the logits before a token is drawn.
    top_k : int, optional
        Draw among so many of the most likely tokens; None and 0 keep all.
    top_p : float
        Draw among the most likely tokens whose probabilities sum to this.
    repetition_penalty : float
        Divides the positive logits of tokens that the prompt or the answer has already, and
        multiplies the negative ones; 1 changes nothing. It holds without ``do_sample`` too.
    seed : int, optional
        With ``do_sample``: the fast engine gives one request the same answer for the same seed,
        whatever is answered beside it; transformers gives one batch the same answers. None takes a
        seed from torch's random state.

    Raises
    ------
    ConfigError
        For a value out of bounds.
    """

    max_new_tokens: int = 64
    min_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = field(default=None, metadata={"flat": "sampling_seed"})

    def __post_init__(self) -> None:
        bounded("max_new_tokens", self.max_new_tokens, 1, 32768)
        if self.min_new_tokens is not None:
            bounded("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens)
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(
                f"temperature must be over 0 and finite, not {self.temperature}; "
                "do_sample=False takes the most likely token"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be over 0 and at most 1, not {self.top_p}")
        if self.top_k is not None and self.top_k < 0:
            raise ConfigError(f"top_k must be at least 0, which keeps all, not {self.top_k}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ConfigError(
                "repetition_penalty must be over 0 and finite, and over 1 against repetition, not "
                f"{self.repetition_penalty}"
            )
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be from 0 to 2**63 - 1, not {self.seed}")

    @property
    def is_plain_greedy(self) -> bool:
        """Whether each token is the most likely one of the model's own logits."""
        return not self.do_sample and self.repetition_penalty == 1

    def resolved(self, random_weights: bool, **chosen: Any) -> Self:
        """The same with a lower bound in tokens; answers of random weights have full length.

        Parameters
        ----------
        chosen
            Other fields by name. One that only matters while sampling, such as ``temperature``,
            turns sampling on; None leaves a field as it is.

        Raises
        ------
        ConfigError
            For a value out of bounds, or one that ``do_sample=False`` would ignore.
        """
        chosen = {name: value for name, value in chosen.items() if value is not None}
        ignored = [name for name in chosen if name in ONLY_SAMPLING]
        if ignored and not chosen.setdefault("do_sample", True):
            raise ConfigError(
                f"do_sample=False takes the most likely token and ignores {', '.join(ignored)}; "
                "leave out one or the other"
            )
        least = self.min_new_tokens
        if least is None:
            least = self.max_new_tokens if random_weights else 0
        return replace(self, min_new_tokens=least, **chosen)
