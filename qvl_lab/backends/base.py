"""What every backend is asked and what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from qvl_lab.config import EngineSpec, ImagePolicy, SamplingParams
from qvl_lab.probe.stages import Recorder, Total
from qvl_lab.runs.records import Work
from qvl_lab.workloads.items import Item


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One request's result: ``text``, or ``error`` in words.

    All times run from the moment the request was handed over, the same for every backend:
    ``queue_s`` until work on it starts, ``ttft_s`` until its first token is known, ``e2e_s`` until
    the answer is complete. Waiting and reading the image are part of them. An error has none.
    ``prompt_tokens`` counts the visual tokens too, and ``image_size`` is the width and height in
    pixels of the image as the model saw it; None of an image that could not be read.
    """

    id: str
    text: str | None = None
    error: str | None = None
    prompt_tokens: int = 0
    visual_tokens: int = 0
    image_size: tuple[int, int] | None = None
    new_tokens: int = 0
    queue_s: float | None = None
    ttft_s: float | None = None
    e2e_s: float | None = None

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name == "latency_s":
                raise AttributeError(
                    "latency_s is e2e_s now: from the moment the request was handed over, so that "
                    "it counts the time in the queue too (queue_s)"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


@dataclass(frozen=True)
class Request:
    """An item that passed its checks.

    Attributes
    ----------
    index : int
        Its place in the input.
    image : bytes or PIL image
        Encoded bytes, or an image that was given decoded.
    size : (int, int)
        Width and height in pixels that the image is resized to.
    visual_tokens : int
        Tokens that the image takes in the prompt.
    text : str
        The question in the model's chat template.
    """

    index: int
    item: Item
    image: bytes | Image.Image
    size: tuple[int, int]
    visual_tokens: int
    text: str

    @property
    def encoded_bytes(self) -> int:
        """Bytes of the encoded image, 0 where it came decoded."""
        return len(self.image) if isinstance(self.image, bytes) else 0

    @property
    def length(self) -> int:
        """About how many tokens, to sort by."""
        return self.visual_tokens + len(self.text) // 3


@dataclass(kw_only=True)
class BackendStats:
    """What it took to answer the items of one call.

    Attributes
    ----------
    totals : dict
        By stage, nested ones by their path: calls, seconds, tokens and bytes, over all batches.
    work : Work
        How much there was to compute.
    batch_s : list of float
        Wall time of each batch; empty where requests are not answered in batches.
    events : list of dict
        Batches that were halved because memory ran out.
    caches : dict
        Hits, misses and bytes of the caches that are on: "encoder_hits", "prefix_misses".
    batch_size : int or None
        Most requests answered at once, as the backend decided; None before.
    """

    totals: dict[str, Total] = field(default_factory=dict)
    work: Work = field(default_factory=Work)
    batch_s: list[float] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    caches: dict[str, int] = field(default_factory=dict)
    batch_size: int | None = None


class Backend(Protocol):
    """Whatever answers questions about images: transformers, the fast engine, a server."""

    def stream(
        self,
        items: Sequence[Item],
        spec: EngineSpec,
        policy: ImagePolicy,
        recorder: Recorder,
        *,
        sampling: SamplingParams | None = None,
        halve_on_oom: bool = True,
        max_batches: int | None = None,
        handed_over_s: float | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        """Yield (index, answer) of every item, in the order in which they are answered.

        An item that cannot be answered has an error instead of a text.

        Parameters
        ----------
        recorder : Recorder
            Hears the stages of this call; its spans are summed up in :meth:`stats`.
        sampling : SamplingParams, optional
            How tokens are chosen; by default the most likely one, at the lengths of ``spec``.
        halve_on_oom : bool
            Go on with less at a time when memory runs out, rather than raise.
        max_batches : int, optional
            Stop after this many batches.
        handed_over_s : float, optional
            When the items were handed over, on the clock of :func:`time.perf_counter`; by default
            when the first answer is asked for.

        Raises
        ------
        ConfigError
            If the backend cannot run the model with these settings.
        DeviceMemoryError
            If memory runs out and ``halve_on_oom`` is off.
        ModelError
            If the model fails for another reason.
        """
        ...

    def stats(self) -> BackendStats:
        """What the latest :meth:`stream` took so far; complete once it has ended."""
        ...

    def clear_caches(self) -> None:
        """Empty the caches in memory, so that the next call finds nothing in them."""
        ...

    def close(self) -> None:
        """Give back memory and threads; the next call takes them anew."""
        ...
