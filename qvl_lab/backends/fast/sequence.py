"""A request on its way through the fast engine."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from qvl_lab.backends.fast.model_runner import Prompt
from qvl_lab.backends.fast.scheduler import Sequence
from qvl_lab.backends.processor import Answer, Request


@dataclass(frozen=True)
class Picture:
    """An image on its way: ``pixels``, (height, width, 3 or 4), or ``features`` from a cache."""

    pixels: Tensor | None = None
    features: Tensor | None = None


@dataclass(eq=False)
class Job:
    """A request on its way.

    Attributes
    ----------
    key : str or None
        Names its image, where images are remembered.
    needs_image : bool
        False if it was known, when it came, that its image need not be read.
    tokens : list of int
        What was generated.
    picture : Future, Picture or None
        The decoded image or its features, once somebody began with it.
    started_s, first_s : float or None
        When it got its slot; when its first token was seen.
    answer : Answer or None
        Once it has ended.
    """

    request: Request
    prompt: Prompt
    sequence: Sequence
    key: str | None = None
    needs_image: bool = True
    picture: Future[Picture] | Picture | None = None
    tokens: list[int] = field(default_factory=list)
    started_s: float | None = None
    first_s: float | None = None
    answer: Answer | None = None

    @property
    def pixel_bytes(self) -> int:
        """Size of its decoded image."""
        width, height = self.request.size
        return width * height * 4

    def read_again(self) -> None:
        """Its sequence was preempted: what it generated is now part of its prompt."""
        prompt = self.prompt
        prompt.ids = prompt.ids[: len(prompt.ids) - prompt.generated] + self.tokens
        prompt.generated, prompt.features = len(self.tokens), None

    def finish(self, text: str | None = None, error: str | None = None) -> None:
        """Set the answer, or the error in its place."""
        started, first = self.started_s, self.first_s
        ran = error is None and started is not None and first is not None
        self.answer = Answer(
            id=self.request.item.id,
            text=text,
            error=error,
            prompt_tokens=len(self.prompt.ids) - self.prompt.generated,
            visual_tokens=self.request.visual_tokens,
            new_tokens=len(self.tokens),
            ttft_s=first - started if ran else None,  # type: ignore[operator]
            latency_s=time.perf_counter() - started if ran else None,  # type: ignore[operator]
        )
