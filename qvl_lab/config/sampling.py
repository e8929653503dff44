"""How the tokens of an answer are chosen."""

from __future__ import annotations

from dataclasses import dataclass

from qvl_lab.config.backends import EngineSpec
from qvl_lab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, in transformers' names: the most likely one unless ``do_sample``.

    Raises
    ------
    ConfigError
        For a value out of bounds.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_new_tokens <= self.max_new_tokens or self.max_new_tokens < 1:
            raise ConfigError(
                "0 <= min_new_tokens <= max_new_tokens and 1 <= max_new_tokens must hold, not "
                f"{self.min_new_tokens} and {self.max_new_tokens}"
            )
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(
                f"temperature must be over 0 and finite, not {self.temperature}; "
                "do_sample=False takes the most likely token"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be over 0 and at most 1, not {self.top_p}")
        if self.top_k is not None and self.top_k < 0:
            raise ConfigError(f"top_k must be at least 0, which keeps all, not {self.top_k}")

    @classmethod
    def of(cls, engine: EngineSpec, random_weights: bool) -> SamplingParams:
        """As the settings say; answers of random weights all have the full length."""
        least = engine.min_new_tokens
        if least is None:
            least = engine.max_new_tokens if random_weights else 0
        return cls(max_new_tokens=engine.max_new_tokens, min_new_tokens=least)
