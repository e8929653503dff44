"""What engines are asked and what they answer: requests, their checks, answers, timings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from PIL import Image

from qvl_lab.config import FIELDS, Config, EngineSpec, ImagePolicy, check_name
from qvl_lab.errors import (
    ConfigError,
    InputError,
    ModelError,
    NumericalError,
    QvlError,
)
from qvl_lab.models.load import LoadedModel
from qvl_lab.probe.stages import Total, outermost, stage, stage_table
from qvl_lab.runs.records import Work
from qvl_lab.workloads.decode import image_size, read_bytes
from qvl_lab.workloads.items import Item
from qvl_lab.workloads.resize import resolution_for, target_size

if TYPE_CHECKING:
    import pandas as pd

MAX_PROMPT_CHARACTERS = 100_000
#: Requests that are looked at together; bounds the encoded bytes held at a time.
WINDOW = 512


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One request's result: ``text``, or ``error`` in words.

    ``ttft_s`` and ``latency_s`` run from the start of the request's batch to its first and last
    token. ``prompt_tokens`` counts the visual tokens too.
    """

    id: str
    text: str | None = None
    error: str | None = None
    prompt_tokens: int = 0
    visual_tokens: int = 0
    new_tokens: int = 0
    ttft_s: float | None = None
    latency_s: float | None = None


@dataclass(kw_only=True)
class Generation(Sequence[Answer]):
    """Answers in input order, with what it took to get them.

    Attributes
    ----------
    wall_s : float
        Encoded bytes in, text out.
    totals : dict
        By stage, nested ones by their path: calls, seconds, tokens and bytes, over all batches.
    work : Work
        How much there was to compute.
    batch_s : list of float
        Wall time of each batch.
    events : list of dict
        Batches halved for want of memory.
    caches : dict
        Hits, misses and bytes of the caches that are on: "encoder_hits", "prefix_misses".
    """

    answers: list[Answer]
    wall_s: float = 0.0
    totals: dict[str, Total] = field(default_factory=dict)
    work: Work = field(default_factory=Work)
    batch_s: list[float] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    caches: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, index: Any) -> Any:
        return self.answers[index]

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def texts(self) -> list[str | None]:
        """The answers' texts; None where there is an error."""
        return [answer.text for answer in self.answers]

    @property
    def errors(self) -> list[dict[str, str]]:
        """``id`` and ``error`` of every request without an answer."""
        return [{"id": a.id, "error": a.error} for a in self.answers if a.error is not None]

    def frame(self) -> pd.DataFrame:
        """One row per request."""
        import pandas as pd

        return pd.DataFrame([vars(answer) for answer in self.answers])

    @property
    def stages_s(self) -> dict[str, float]:
        """Seconds per stage; "other" is what no stage covers, so that all sum to ``wall_s``."""
        seconds = {path: total.seconds for path, total in self.totals.items() if outermost(path)}
        return seconds | {"other": max(0.0, self.wall_s - sum(seconds.values()))}

    @property
    def parts_s(self) -> dict[str, float]:
        """Seconds per stage within a stage, by path: "decode/lm_head"."""
        return {path: t.seconds for path, t in self.totals.items() if not outermost(path)}

    def stages(self) -> pd.DataFrame:
        """Where the time went; see :func:`qvl_lab.probe.stages.stage_table`."""
        return stage_table(self.totals, self.wall_s)


@dataclass(frozen=True)
class Request:
    """An item that passed its checks: where it goes, its bytes, its size in tokens."""

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


class InputProcessor:
    """Checks items and puts their questions into the model's form."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._text_ids = lru_cache(maxsize=2 * WINDOW)(self._tokenize)
        added = loaded.tokenizer.added_tokens_decoder.values()
        self._reserved = [str(token) for token in added if token.special]

    def request(self, index: int, item: Item, policy: ImagePolicy) -> Request | Answer:
        """Check one item from its header; an Answer says why it cannot be used."""
        limits = self.loaded.limits
        try:
            image = read_bytes(item.image, policy)
            resolution = resolution_for(policy, item.task)
            size = target_size(image_size(image, policy), resolution, limits)
            text = self.prompt(item.question)
        except (InputError, ConfigError) as e:
            return Answer(id=item.id, error=str(e))
        return Request(index, item, image, size, size[0] * size[1] // limits.factor**2, text)

    def windows(
        self, items: Sequence[Item], policy: ImagePolicy
    ) -> Iterator[tuple[list[Request], list[tuple[int, Answer]]]]:
        """Requests in portions, each with the (index, answer) of the items that cannot be used."""
        for first in range(0, len(items), WINDOW):
            requests: list[Request] = []
            refused: list[tuple[int, Answer]] = []
            with stage("decode_image"):
                for index in range(first, min(first + WINDOW, len(items))):
                    request = self.request(index, items[index], policy)
                    if isinstance(request, Answer):
                        refused.append((index, request))
                    else:
                        requests.append(request)
            yield requests, refused

    def prompt(self, question: str) -> str:
        """The question in the model's chat template, after an image.

        Raises
        ------
        InputError
            If it is too long, no valid Unicode, or holds a reserved token.
        """
        tokenizer = self.loaded.tokenizer
        if len(question) > MAX_PROMPT_CHARACTERS:
            raise InputError(f"the question has over {MAX_PROMPT_CHARACTERS:,} characters")
        if not question.isascii() and _lone_surrogate(question):
            raise InputError("the question is not valid Unicode (it holds half a character)")
        if reserved := next((token for token in self._reserved if token in question), None):
            raise InputError(f"the question contains {reserved!r}, which is reserved")
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return text

    @property
    def stops(self) -> list[int]:
        """Tokens that end an answer."""
        stop = self.loaded.model.generation_config.eos_token_id
        return list(stop) if isinstance(stop, list) else [stop]

    def ids(self, request: Request) -> tuple[list[int], range]:
        """A request's tokens, and where among them its image's are."""
        ids = self._text_ids(request.text)
        pad = self.loaded.model.config.image_token_id
        at = ids.index(pad)
        image = range(at, at + request.visual_tokens)
        return [*ids[:at], *[pad] * len(image), *ids[at + 1 :]], image

    def length(self, request: Request) -> int:
        """How many tokens a request has."""
        return len(self._text_ids(request.text)) - 1 + request.visual_tokens

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"])


def settings_of(options: dict[str, Any]) -> tuple[EngineSpec, ImagePolicy]:
    """Settings by name, sorted into those of the engine and those of images."""
    allowed = [name for name, part in FIELDS.items() if part != "model"]
    for name in options:
        check_name(name, allowed, "option")
    config = Config().replace(**options)
    return config.engine, config.images


def _lone_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def as_model_error(error: Exception) -> Exception:
    """What a failing model raises, as an error of ours."""
    if isinstance(error, QvlError):
        return error
    return ModelError(f"the model failed: {type(error).__name__}: {error}")


def overflow(precision: str) -> str:
    """Scores were inf or NaN, in words."""
    return str(
        NumericalError(
            f"the model's scores overflowed to inf or NaN in {precision}; use precision='bf16' or "
            "'fp32'"
        )
    )


def too_large(request: Request) -> Answer:
    """A request that runs out of memory alone."""
    error = (
        f"out of memory even alone, with {request.visual_tokens:,} visual tokens; lower the "
        "resolution or the precision"
    )
    return Answer(id=request.item.id, error=error, visual_tokens=request.visual_tokens)
