"""The stock engine: plain transformers, used as well as its documentation allows.

Batches are formed from requests of similar length, padded on the left, and answered with
``generate`` under inference mode; one by one is the same call with ``batch_size=1``. This is the
baseline of every comparison, so nothing here is faster than what a careful user would write.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from qvl_lab.config import EngineSpec, ImagePolicy, ModelSpec
from qvl_lab.engine.images import resize, resolution_for, target_size
from qvl_lab.engine.marks import StepWatch, marks
from qvl_lab.engine.model import Loaded, base_dtype, first_line, load_model, out_of_memory
from qvl_lab.errors import (
    ConfigError,
    DeviceMemoryError,
    InputError,
    ModelError,
    NumericalError,
    QvlError,
)
from qvl_lab.probe.stages import (
    Recorder,
    Total,
    end,
    listening,
    outermost,
    stage,
    stage_table,
    totals,
)
from qvl_lab.records import Work
from qvl_lab.workload import ImageLike, Item, decode_image, image_size, read_bytes

if TYPE_CHECKING:
    import pandas as pd

#: Requests that are looked at together to form batches; bounds the encoded bytes held at a time.
WINDOW = 512
MAX_PROMPT_CHARACTERS = 100_000


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
    """

    answers: list[Answer]
    wall_s: float = 0.0
    totals: dict[str, Total] = field(default_factory=dict)
    work: Work = field(default_factory=Work)
    batch_s: list[float] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

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
class _Request:
    """An item that passed its checks: where it goes, its bytes, its size in tokens."""

    index: int
    item: Item
    image: bytes | Image.Image
    size: tuple[int, int]
    visual_tokens: int
    text: str

    @property
    def length(self) -> int:
        return self.visual_tokens + len(self.text) // 3


class Lab:
    """A loaded model and the one call to use it; made by :func:`load`.

    Attributes
    ----------
    loaded : Loaded
        Model, tokenizer, image processor, resolved spec.
    used : bool
        Whether it has answered anything yet.
    heard : callable or None
        Hears the arguments of every finished :meth:`run`, as a dict, and its generation.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded, self.used = loaded, False
        self.heard: Callable[..., object] | None = None
        added = loaded.tokenizer.added_tokens_decoder.values()
        self._reserved = [str(token) for token in added if token.special]

    @property
    def spec(self) -> ModelSpec:
        """The model's settings with device and precision resolved."""
        return self.loaded.spec

    def generate_batch(
        self,
        images: Sequence[ImageLike | Item] | ImageLike,
        prompts: str | Sequence[str] | None = None,
        *,
        batch_size: int = 8,
        resolution: int | str = "native",
        max_new_tokens: int = 64,
        tasks: str | Sequence[str | None] | None = None,
        progress: bool = False,
        **options: Any,
    ) -> Generation:
        """Answer a question about each image.

        Parameters
        ----------
        images : sequence
            Paths, encoded bytes, PIL images, or workload items (which bring their questions).
        prompts : str or sequence of str
            One question for all, or one each.
        batch_size, resolution, max_new_tokens
            See :class:`~qvl_lab.config.EngineSpec` and :class:`~qvl_lab.config.ImagePolicy`;
            ``options`` takes their other fields.
        tasks : str or sequence of str, optional
            Used by ``resolution="by_task"``.
        progress : bool
            Show a progress bar.

        Returns
        -------
        Generation
            Answers in input order. An image that cannot be used has an error instead of a text,
            and the others go on. A batch that does not fit is halved; ``events`` tells.
        """
        items = _items(images, prompts, tasks)
        options |= {"batch_size": batch_size, "resolution": resolution}
        engine, policy = _split(options | {"max_new_tokens": max_new_tokens})
        return self.run(items, engine, policy, progress=progress)

    def run(
        self,
        items: Sequence[Item],
        engine: EngineSpec,
        policy: ImagePolicy,
        *,
        halve_on_oom: bool = True,
        max_batches: int | None = None,
        progress: bool = False,
        on_answer: Callable[[int, Answer], None] | None = None,
    ) -> Generation:
        """As :meth:`generate_batch`, from settings.

        Parameters
        ----------
        halve_on_oom : bool
            Go on with smaller batches when memory runs out, rather than raise.
        max_batches : int, optional
            Stop after so many batches, for a warm-up; the largest come first.
        on_answer : callable, optional
            Hears each (index, answer) as its batch finishes.

        Raises
        ------
        DeviceMemoryError
            If memory runs out and ``halve_on_oom`` is off.
        ModelError
            If the model fails for another reason.
        """
        answers: list[Answer | None] = [None] * len(items)
        result = Generation(answers=[])
        recorder = Recorder(cuda=self.loaded.device.type == "cuda")
        started = time.perf_counter()
        bar = tqdm(total=len(items), disable=not progress, unit="img")
        with _on_device(self.loaded.device), listening(recorder), bar:
            for index, answer in self._stream(
                items, engine, policy, result, recorder, halve_on_oom
            ):
                answers[index] = answer
                bar.update()
                if on_answer:
                    on_answer(index, answer)
                if max_batches and len(result.batch_s) >= max_batches:
                    break
        result.wall_s = time.perf_counter() - started
        result.answers = [answer for answer in answers if answer is not None]
        self.used = True
        if self.heard:
            call = {"items": list(items), "engine": engine, "policy": policy}
            self.heard(call | {"halve_on_oom": halve_on_oom, "max_batches": max_batches}, result)
        return result

    def _stream(
        self,
        items: Sequence[Item],
        engine: EngineSpec,
        policy: ImagePolicy,
        result: Generation,
        recorder: Recorder,
        halve: bool,
    ) -> Iterator[tuple[int, Answer]]:
        """Yield (index, answer) as batches finish; ``result`` gathers times and events."""
        size = engine.batch_size
        for first in range(0, len(items), WINDOW):
            requests = []
            with stage("decode_image"):
                for index in range(first, min(first + WINDOW, len(items))):
                    request = self._request(index, items[index], policy)
                    if isinstance(request, Answer):
                        yield index, request
                    else:
                        requests.append(request)
            requests.sort(key=lambda r: r.length, reverse=True)  # an OOM then shows early
            self._note(result, recorder)
            while requests:
                batch, requests = requests[:size], requests[size:]
                try:
                    done = self._answer(batch, engine, policy, result)
                except Exception as e:
                    if not out_of_memory(e):
                        raise _as_model_error(e) from e
                    failure = first_line(e)
                else:
                    yield from self._finish(done, result, recorder)
                    continue
                recorder.forget()
                free(self.spec.device)
                if not halve:
                    raise DeviceMemoryError(f"batch of {len(batch)}: {failure}")
                if len(batch) == 1:
                    yield batch[0].index, _too_large(batch[0])
                    continue
                size = (len(batch) + 1) // 2
                result.events.append(
                    {"event": "oom", "batch_size": len(batch), "continued_with": size}
                )
                requests = batch + requests

    def _request(self, index: int, item: Item, policy: ImagePolicy) -> _Request | Answer:
        """Check one item from its header; an Answer says why it cannot be used."""
        try:
            image = read_bytes(item.image, policy)
            size = target_size(
                image_size(image, policy), resolution_for(policy, item.task), self.loaded.limits
            )
            text = self._prompt(item.question)
        except (InputError, ConfigError) as e:
            return Answer(id=item.id, error=str(e))
        tokens = size[0] * size[1] // self.loaded.limits.factor**2
        return _Request(index, item, image, size, tokens, text)

    def _prompt(self, question: str) -> str:
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

    def _answer(
        self,
        batch: Sequence[_Request],
        engine: EngineSpec,
        policy: ImagePolicy,
        result: Generation,
    ) -> list[tuple[_Request, Answer]]:
        """Decode, preprocess, generate and detokenize one batch; ``result`` hears of the work."""
        started = time.perf_counter()
        failed: list[tuple[_Request, Answer]] = []
        requests: list[_Request] = []
        pictures: list[Image.Image] = []
        for request in batch:  # one full-size image in memory at a time
            try:
                with stage("decode_image", bytes=_encoded_bytes(request)):
                    picture = decode_image(request.image, policy)
            except InputError as e:
                failed.append((request, Answer(id=request.item.id, error=str(e))))
                continue
            with stage("preprocess"):
                pictures.append(resize(picture, request.size))
            requests.append(request)
        if not requests:
            return failed
        with stage("preprocess") as preprocess:
            inputs = self._inputs(pictures, requests)
            preprocess.amounts["bytes"] = inputs["pixel_values"].nbytes
        prompt_tokens = inputs["attention_mask"].sum(1).tolist()
        patches = inputs["image_grid_thw"].prod(1).tolist()
        with stage("transfer", bytes=sum(value.nbytes for value in inputs.values())):
            inputs = {name: value.to(self.loaded.device) for name, value in inputs.items()}
            inputs["pixel_values"] = inputs["pixel_values"].to(base_dtype(self.spec))
        tokens, finite = self._generate(inputs, engine)
        with stage("detokenize", tokens=tokens.numel()):
            texts = self.loaded.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        latency_s = time.perf_counter() - started
        result.work += _work(patches, prompt_tokens, inputs["input_ids"].shape[1], tokens.shape[1])
        answers = []
        for row, request in enumerate(requests):
            count = self._count(tokens[row])
            error = None if finite[row] else _overflow(self.spec.precision)
            answer = Answer(
                id=request.item.id,
                text=None if error else texts[row].strip(),
                error=error,
                prompt_tokens=prompt_tokens[row],
                visual_tokens=request.visual_tokens,
                new_tokens=count,
                latency_s=latency_s,
            )
            answers.append((request, answer))
        return failed + answers

    def _inputs(
        self, pictures: list[Image.Image], requests: list[_Request]
    ) -> dict[str, torch.Tensor]:
        """Tensors on the CPU: ``input_ids`` (batch, length), ``pixel_values`` (patches, 1536)."""
        loaded = self.loaded
        pad = loaded.tokenizer.convert_ids_to_tokens(loaded.model.config.image_token_id)
        texts = [r.text.replace(pad, pad * r.visual_tokens, 1) for r in requests]
        encoded = loaded.tokenizer(
            texts, padding=True, return_tensors="pt", add_special_tokens=False
        )
        pixels = loaded.image_processor(images=pictures, do_resize=False, return_tensors="pt")
        ids = encoded["input_ids"]
        return {
            "input_ids": ids,
            "attention_mask": encoded["attention_mask"],
            "mm_token_type_ids": (ids == loaded.model.config.image_token_id).int(),
            "pixel_values": pixels["pixel_values"],
            "image_grid_thw": pixels["image_grid_thw"],
        }

    def _generate(
        self, inputs: dict[str, torch.Tensor], engine: EngineSpec
    ) -> tuple[torch.Tensor, list[bool]]:
        """New token ids (batch, new) on the CPU, and per row whether all scores were finite."""
        static = engine.cache_implementation == "static"
        ids = inputs["input_ids"]
        watch = StepWatch(ids, sampling=not static)
        visual = len(inputs["pixel_values"]) // self.loaded.image_processor.merge_size**2
        amounts = {"vision": {"tokens": visual}, "prefill": {"tokens": ids.numel()}}
        least = engine.min_new_tokens
        if least is None:
            least = engine.max_new_tokens if self.loaded.random_weights else 0
        options: dict[str, Any] = {}
        if static:
            options["cache_implementation"] = "static"
        with torch.inference_mode(), marks(self.loaded.model, steps=not static, **amounts):
            sequences = self.loaded.model.generate(
                **inputs,
                max_new_tokens=engine.max_new_tokens,
                min_new_tokens=least,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                logits_processor=[watch],
                **options,
            )
            end("sampling", gpu=True)
            end("decode", gpu=True, tokens=len(ids) * (watch.steps - 1))
        finite = watch.finite.tolist()
        return sequences[:, ids.shape[1] :].cpu(), finite

    def _count(self, tokens: torch.Tensor) -> int:
        """Tokens up to and including the first end-of-sequence token."""
        stop = self.loaded.model.generation_config.eos_token_id
        stops = torch.tensor(stop if isinstance(stop, list) else [stop])
        ended = torch.isin(tokens, stops).nonzero()
        return int(ended[0]) + 1 if len(ended) else len(tokens)

    @staticmethod
    def _note(result: Generation, recorder: Recorder) -> float | None:
        """Add the recorder's spans to the result; returns when the prefill ended, if it did."""
        spans = recorder.spans()
        totals(spans, into=result.totals)
        first_token_s = next((span.end_s for span in spans if span.path == "prefill"), None)
        if first_token_s is None:
            return None
        return first_token_s - min(span.start_s for span in spans)

    def _finish(
        self, done: list[tuple[_Request, Answer]], result: Generation, recorder: Recorder
    ) -> Iterator[tuple[int, Answer]]:
        ttft_s = self._note(result, recorder)
        result.batch_s.extend({a.latency_s for _, a in done if a.latency_s is not None})
        for request, answer in done:
            yield request.index, replace(answer, ttft_s=ttft_s if answer.text is not None else None)


def load(model: str | ModelSpec = "tiny", **fields: Any) -> Lab:
    """Load a model: ``"tiny"``, ``"random:8b"``, a folder, or a hub id.

    ``fields`` are those of :class:`~qvl_lab.config.ModelSpec`. Errors as
    :func:`qvl_lab.engine.model.load_model`.
    """
    spec = replace(model, **fields) if isinstance(model, ModelSpec) else None
    return Lab(load_model(spec or ModelSpec(model=str(model), **fields)))


def _work(patches: list[int], prompts: list[int], length: int, new: int) -> Work:
    """Of a batch: patches of each image, tokens of each prompt, of all padded, and generated."""
    rows, steps = len(prompts), max(0, new - 1)  # the prefill gives the first token
    return Work(
        images=len(patches),
        batches=1,
        patches=sum(patches),
        patches_squared=sum(n * n for n in patches),
        prompt_tokens=sum(prompts),
        prompt_tokens_squared=sum(n * n for n in prompts),
        padded_tokens=rows * length,
        padded_tokens_squared=rows * length**2,
        decode_steps=steps,
        decode_rows=rows * steps,
        context_tokens=rows * (steps * length + steps * (steps + 1) // 2),
    )


def _encoded_bytes(request: _Request) -> int:
    return len(request.image) if isinstance(request.image, bytes) else 0


def _items(
    images: Sequence[ImageLike | Item] | ImageLike,
    prompts: str | Sequence[str] | None,
    tasks: str | Sequence[str | None] | None,
) -> list[Item]:
    single = isinstance(images, str | bytes | Image.Image) or not isinstance(images, Sequence)
    pictures: list[Any] = [images] if single else list(images)  # type: ignore[arg-type]
    questions = _one_each("prompts", prompts, len(pictures))
    kinds = _one_each("tasks", tasks, len(pictures))
    items = []
    for i, picture in enumerate(pictures):
        item = picture if isinstance(picture, Item) else Item(f"image {i}", picture)
        item = replace(item, question=questions[i]) if questions[i] is not None else item
        items.append(replace(item, task=kinds[i]) if kinds[i] is not None else item)
    return items


def _one_each(name: str, value: Any, count: int) -> list[Any]:
    if value is None or isinstance(value, str):
        return [value] * count
    if len(value) != count:
        raise ConfigError(f"{len(value)} {name} for {count} images; give one, or one each")
    return list(value)


def _split(options: dict[str, Any]) -> tuple[EngineSpec, ImagePolicy]:
    from qvl_lab.config import FIELDS, Config
    from qvl_lab.errors import UnknownNameError

    allowed = [name for name, part in FIELDS.items() if part != "model"]
    for name in options:
        if name not in allowed:
            raise UnknownNameError("option", name, allowed)
    config = Config().replace(**options)
    return config.engine, config.images


def _lone_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _as_model_error(error: Exception) -> Exception:
    if isinstance(error, QvlError):
        return error
    return ModelError(f"the model failed: {type(error).__name__}: {error}")


def _overflow(precision: str) -> str:
    return str(
        NumericalError(
            f"the model's scores overflowed to inf or NaN in {precision}; use precision='bf16' or "
            "'fp32'"
        )
    )


def _too_large(request: _Request) -> Answer:
    error = (
        f"out of memory even alone, with {request.visual_tokens:,} visual tokens; lower the "
        "resolution or the precision"
    )
    return Answer(id=request.item.id, error=error, visual_tokens=request.visual_tokens)


@contextmanager
def _on_device(device: torch.device) -> Iterator[None]:
    """Make the model's GPU the current one, so that events are recorded on its stream."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


def free(device: str) -> None:
    """Give back memory that nothing refers to any more."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
