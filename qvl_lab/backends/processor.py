"""From items to requests: checks, the chat template, token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from PIL import Image

from qvl_lab.backends.base import Answer, Request
from qvl_lab.config import FIELDS, Config, EngineSpec, ImagePolicy, check_name
from qvl_lab.errors import ConfigError, ImageError, InputError
from qvl_lab.models.load import LoadedModel
from qvl_lab.probe.stages import stage
from qvl_lab.workloads.decode import image_size, read_bytes
from qvl_lab.workloads.items import Item
from qvl_lab.workloads.resize import resolution_for, target_size

MAX_PROMPT_CHARACTERS = 100_000
#: Most requests that are checked, and held with their encoded images, at a time.
WINDOW = 512
#: Encoded bytes after which no further request is added to a window.
WINDOW_BYTES = 256 * 2**20


class InputProcessor:
    """Checks items and puts their questions into the model's form."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._text_ids = lru_cache(maxsize=2 * WINDOW)(self._tokenize)
        added = loaded.tokenizer.added_tokens_decoder.values()
        self._reserved = [str(token) for token in added if token.special]

    def request(self, index: int, item: Item, policy: ImagePolicy) -> Request | Answer:
        """Check one item from its header; an Answer says why it cannot be used.

        A PIL image is loaded here: its own loading is not safe where threads share the image.
        """
        limits = self.loaded.limits
        try:
            image = read_bytes(item.image, policy)
            resolution = resolution_for(policy, item.task)
            size = target_size(image_size(image, policy), resolution, limits)
            if not isinstance(image, bytes):
                _load(image)
            text = self.prompt(item.question)
        except (InputError, ConfigError) as e:
            return Answer(id=item.id, error=str(e))
        return Request(index, item, image, size, size[0] * size[1] // limits.factor**2, text)

    def windows(
        self, items: Sequence[Item], policy: ImagePolicy
    ) -> Iterator[tuple[list[Request], list[tuple[int, Answer]]]]:
        """Requests in portions, each with the (index, answer) of the items that cannot be used.

        A portion has at most ``WINDOW`` items, and ends with the image that makes its encoded bytes
        reach ``WINDOW_BYTES``.
        """
        start = 0
        while start < len(items):
            requests: list[Request] = []
            refused: list[tuple[int, Answer]] = []
            encoded_bytes = 0
            with stage("decode_image"):
                for index in range(start, min(start + WINDOW, len(items))):
                    start = index + 1
                    request = self.request(index, items[index], policy)
                    if isinstance(request, Answer):
                        refused.append((index, request))
                        continue
                    requests.append(request)
                    encoded_bytes += request.encoded_bytes
                    if encoded_bytes >= WINDOW_BYTES:
                        break
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
    def stop_token_ids(self) -> list[int]:
        """Tokens that end an answer."""
        stop = self.loaded.model.generation_config.eos_token_id
        return list(stop) if isinstance(stop, list) else [stop]

    def token_ids(self, request: Request) -> tuple[list[int], range]:
        """A request's tokens, and where among them its image's are."""
        ids = self._text_ids(request.text)
        pad = self.loaded.model.config.image_token_id
        at = ids.index(pad)
        image = range(at, at + request.visual_tokens)
        return [*ids[:at], *[pad] * len(image), *ids[at + 1 :]], image

    def num_tokens(self, request: Request) -> int:
        """How many tokens a request has."""
        return len(self._text_ids(request.text)) - 1 + request.visual_tokens

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"])


def settings_of(options: dict[str, Any]) -> tuple[EngineSpec, ImagePolicy]:
    """Settings by their flat names, sorted into those of the backend and those of images.

    ``seed`` is the sampling's, since the model is loaded already.
    """
    options = {"sampling_seed" if name == "seed" else name: v for name, v in options.items()}
    allowed = [name for name, part in FIELDS.items() if part != "model"]
    for name in options:
        check_name(name, allowed, "option")
    config = Config().replace(**options)
    return config.engine, config.images


def _load(image: Image.Image) -> None:
    """Decode a PIL image that was opened lazily, and its EXIF block, in this thread.

    Raises
    ------
    ImageError
        If it is truncated or damaged.
    """
    try:
        image.load()
    except MemoryError as e:
        raise ImageError("decoding ran out of memory (MemoryError)") from e
    except Exception as e:  # decoders fail on foreign bytes in many ways
        raise ImageError(f"cannot be decoded, truncated or damaged: {e}") from e
    with suppress(Exception):  # a damaged EXIF block: the pixels are fine
        image.getexif()


def _lone_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
