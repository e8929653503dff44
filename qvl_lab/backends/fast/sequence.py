"""One request on its way through the fast engine, from its arrival to its answer."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from qvl_lab.backends.base import Answer, Request
from qvl_lab.config import SamplingParams


@dataclass(frozen=True)
class DecodedImage:
    """``pixels`` of an image, (height, width, 3 or 4) uint8, or its ``features`` from a cache."""

    pixels: Any = None
    features: Any = None


@dataclass(eq=False)
class Sequence:
    """A request on its way.

    The scheduler alone writes ``slot``, ``block_table``, ``num_computed_tokens`` and
    ``num_prefill_tokens``. Nothing here needs torch; tensors are only carried along.

    Attributes
    ----------
    token_ids : list of int
        The prompt, its image's placeholders among them, then the tokens that were generated.
    image_tokens : range
        Places of the image's tokens in ``token_ids``.
    grid : (int, int)
        Rows and columns of the image's patches.
    image_key : str or None
        Names the image, where caches need to know it.
    prefix_key : str or None
        All sequences of one key begin with the same ``num_prefix_tokens`` tokens, at least one and
        fewer than the prompt has. None shares nothing.
    response_key : str or None
        Equal for requests that may share one response. None shares none.
    needs_image : bool
        False if it was known on arrival that another sequence computes the image's prefix or
        features first.
    decoded : Future, DecodedImage or None
        The decoded image or its features, once somebody began with it.
    features : Tensor or None
        (1 + DeepStack layers, visual tokens, hidden), while prefill needs them.
    slot : int or None
        Its row in the batch; None while it waits.
    block_table : list of int
        The blocks of its keys and values, in order.
    num_prompt_tokens, num_prefill_tokens : int
        Tokens of the prompt; tokens to prefill, which after a preemption includes those that were
        generated before it.
    num_computed_tokens : int
        Tokens whose keys and values are in the cache, or are computed by a step on its way.
    handed_over_s : float
        When it was handed over, on the clock of :func:`time.perf_counter`.
    started_s, first_token_s : float or None
        When the step began that prefills its first tokens; when its first token was known.
    answer : Answer or None
        Set once it has ended.
    """

    request: Request
    sampling: SamplingParams
    token_ids: list[int]
    image_tokens: range
    grid: tuple[int, int]
    image_key: str | None = None
    prefix_key: str | None = None
    response_key: str | None = None
    needs_image: bool = True
    decoded: Future[DecodedImage] | DecodedImage | None = None
    features: Any = None
    slot: int | None = None
    block_table: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    handed_over_s: float = field(default_factory=time.perf_counter)
    started_s: float | None = None
    first_token_s: float | None = None
    answer: Answer | None = None
    num_prompt_tokens: int = field(init=False)
    num_prefill_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = self.num_prefill_tokens = len(self.token_ids)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens up to the end of the image, which other questions about it share."""
        return self.image_tokens.stop

    @property
    def output_ids(self) -> list[int]:
        """The tokens generated so far."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_output_tokens(self) -> int:
        """How many tokens were generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_prefilled(self) -> bool:
        """Whether all tokens to prefill are computed, so that its tokens are generated now."""
        return self.num_computed_tokens >= self.num_prefill_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether it is prefilled and has not launched its last token."""
        most = self.num_prompt_tokens + self.sampling.max_new_tokens
        return self.is_prefilled and self.num_computed_tokens + 1 < most

    @property
    def pixel_bytes(self) -> int:
        """Size of its decoded image."""
        width, height = self.request.size
        return width * height * 4

    def finish(
        self, text: str | None = None, new_tokens: int | None = None, *, error: str | None = None
    ) -> None:
        """Set the answer, or the error in its place.

        Parameters
        ----------
        new_tokens : int, optional
            Tokens of a text that another sequence generated. It comes whole, after a wait.
        """
        now = time.perf_counter()
        started, first = (now if at is None else at for at in (self.started_s, self.first_token_s))
        times_s = {"queue_s": started, "ttft_s": first, "e2e_s": now} if error is None else {}
        self.answer = Answer(
            id=self.request.item.id,
            text=text,
            error=error,
            prompt_tokens=self.num_prompt_tokens,
            visual_tokens=self.request.visual_tokens,
            image_size=self.request.size,
            new_tokens=self.num_output_tokens if new_tokens is None else new_tokens,
            **{name: at - self.handed_over_s for name, at in times_s.items()},
        )
