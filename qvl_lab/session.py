"""A loaded model and the one call to use it, whichever engine answers."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from tqdm.auto import tqdm

from qvl_lab.backends.base import Answer, Backend
from qvl_lab.backends.fast.backend import FastBackend
from qvl_lab.backends.generation import Generation
from qvl_lab.backends.processor import InputProcessor, settings_of
from qvl_lab.backends.transformers import TransformersBackend
from qvl_lab.config import EngineSpec, Fast, ImagePolicy, ModelSpec, SamplingParams, Transformers
from qvl_lab.config.signatures import check_settings, names_settings
from qvl_lab.errors import ConfigError
from qvl_lab.models.load import LoadedModel, load_model, warn_of_emulation
from qvl_lab.models.memory import free
from qvl_lab.probe.stages import Recorder, listening
from qvl_lab.workloads.in_hand import Images, Prompts, items_in_hand
from qvl_lab.workloads.items import Item

#: Options of :meth:`Lab.generate_batch` that say how tokens are chosen.
_SAMPLING = tuple(f.name for f in fields(SamplingParams) if not f.name.endswith("_new_tokens"))
#: What a lab holds until it is closed.
_HELD = ("loaded", "processor", "stock", "fast")


class Lab:
    """A loaded model and the one call to use it; made by :func:`load`.

    Threads may share a lab: one call runs at a time, and the others wait for it. A lab holds the
    model until :meth:`close`, or the end of ``with ql.load(...) as lab``.

    Attributes
    ----------
    loaded : LoadedModel
        Model, tokenizer, image processor, resolved spec.
    used : bool
        Whether it has answered anything yet.
    listeners : list of callable
        Each is called after every :meth:`run`, in the thread that ran it, with the call's
        arguments as a dict and its generation.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded, self.used, self._spec = loaded, False, loaded.spec
        self.listeners: list[Callable[[dict[str, Any], Generation], object]] = []
        self._lock = _OwnerLock()
        self.processor = InputProcessor(loaded)
        self.fast = FastBackend(self.processor)
        self.stock = TransformersBackend(self.processor, make_room=self._close_fast)

    @property
    def spec(self) -> ModelSpec:
        """The model's settings with device and precision resolved."""
        return self._spec

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` has given the model back."""
        return "loaded" not in vars(self)

    def close(self) -> None:
        """Give back the memory of the model and its engines; waits for a call that is under way.

        What is asked of a closed lab raises a ConfigError. Closing twice is no error.
        """
        with self._lock:
            if not self.closed:
                self.fast.close()
                del self.loaded, self.processor, self.stock, self.fast
                free(self._spec.device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in _HELD:
                raise ConfigError(
                    f"this lab of {self._spec.model!r} is closed; load the model again, with "
                    "ql.load"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        if self.closed:
            return f"<Lab {self._spec.model}: closed>"
        weights = ", random weights" if self.loaded.random_weights else ""
        return f"<Lab {self._spec.model}: {self._spec.precision} on {self._spec.device}{weights}>"

    def _repr_html_(self) -> str:
        return f"<b>{html.escape(repr(self)[1:-1])}</b>"

    @names_settings(ImagePolicy, Transformers, Fast, without=("sampling_seed",))
    def generate_batch(
        self,
        images: Images,
        prompts: Prompts | None = None,
        *,
        batch_size: int | str = "auto",
        resolution: int | str = "native",
        max_new_tokens: int = 64,
        seed: int | None = None,
        tasks: str | Iterable[str | None] | None = None,
        progress: bool = False,
        **options: Any,
    ) -> Generation:
        """Answer a question about each image.

        Parameters
        ----------
        images : image, or iterable of images
            Paths, encoded bytes, PIL images, arrays of (height, width, 3) uint8, or workload items
            (which bring their questions); one, or many in a list, a generator such as
            ``Path.glob``, a pandas Series, a workload. URLs are not fetched.
        prompts : str or iterable
            One question for all, one each, or for each image a list of questions; for a single
            image also a list of questions.
        batch_size, resolution, max_new_tokens
            Fields of the settings, as are ``options``: see :class:`~qvl_lab.config.ImagePolicy`,
            :class:`~qvl_lab.config.SamplingParams`, :class:`~qvl_lab.config.Transformers` and,
            with ``engine="fast"``, :class:`~qvl_lab.config.Fast`.
        do_sample, temperature, top_p, top_k, seed, repetition_penalty
            As in transformers, see :class:`~qvl_lab.config.SamplingParams`: the most likely token
            is taken unless ``do_sample``. A temperature, ``top_p``, ``top_k`` or seed turns
            sampling on, and is refused together with ``do_sample=False``, which would ignore it.
        tasks : str or sequence of str, optional
            Used by ``resolution="by_task"``.
        progress : bool
            Show a progress bar.

        Returns
        -------
        Generation
            Answers in input order, each with the id of its image: the file's name, or its path
            where two files have the same name. An image that cannot be used has an error instead
            of a text, and the others go on. A batch that does not fit is halved; ``events`` tells.
        """
        handed_over_s = time.perf_counter()
        items = items_in_hand(images, prompts, tasks)
        options |= {"batch_size": batch_size, "resolution": resolution}
        options |= {"max_new_tokens": max_new_tokens}
        check_settings(Lab.generate_batch, options)
        chosen = {name: options.pop(name) for name in _SAMPLING if name in options}
        chosen |= {"seed": seed}
        engine, policy = settings_of(options)
        sampling = engine.sampling.resolved(self.loaded.random_weights, **chosen)
        return self.run(
            items,
            engine,
            policy,
            sampling=sampling,
            progress=progress,
            handed_over_s=handed_over_s,
        )

    def run(
        self,
        items: Sequence[Item],
        engine: EngineSpec,
        policy: ImagePolicy,
        *,
        sampling: SamplingParams | None = None,
        halve_on_oom: bool = True,
        max_batches: int | None = None,
        progress: bool = False,
        on_answer: Callable[[int, Answer], None] | None = None,
        handed_over_s: float | None = None,
    ) -> Generation:
        """As :meth:`generate_batch`, from settings.

        Parameters
        ----------
        sampling : SamplingParams, optional
            How tokens are chosen; by default the most likely one.
        halve_on_oom : bool
            Go on with smaller batches when memory runs out, rather than raise.
        max_batches : int, optional
            Stop after so many batches, for a warm-up; the largest come first.
        on_answer : callable, optional
            Is called with each (index, answer) as its batch finishes. It cannot use this lab.
        handed_over_s : float, optional
            When the items were handed over, on the clock of :func:`time.perf_counter`; by default
            now, before waiting for a call of another thread. The times of answers run from there.

        Raises
        ------
        ConfigError
            If it is called from ``on_answer``, while the lab is at work for the same thread.
        DeviceMemoryError
            If memory runs out and ``halve_on_oom`` is off.
        ModelError
            If the model fails for another reason.
        """
        handed_over_s = time.perf_counter() if handed_over_s is None else handed_over_s
        with self._lock:
            result = self._run(
                items,
                engine,
                policy,
                sampling,
                halve_on_oom,
                max_batches,
                progress,
                on_answer,
                handed_over_s,
            )
        if self.listeners:
            call: dict[str, Any] = {"items": list(items), "engine": engine, "policy": policy}
            call |= {"sampling": sampling, "halve_on_oom": halve_on_oom, "max_batches": max_batches}
            for listener in tuple(self.listeners):
                listener(call, result)
        return result

    def _run(
        self,
        items: Sequence[Item],
        engine: EngineSpec,
        policy: ImagePolicy,
        sampling: SamplingParams | None,
        halve_on_oom: bool,
        max_batches: int | None,
        progress: bool,
        on_answer: Callable[[int, Answer], None] | None,
        handed_over_s: float,
    ) -> Generation:
        answers: list[Answer | None] = [None] * len(items)
        backend: Backend = self.fast if engine.engine == "fast" else self.stock
        recorder = Recorder(cuda=self.loaded.device.type == "cuda")
        started = time.perf_counter()
        bar = tqdm(total=len(items), disable=not progress, unit="img")
        with _on_device(self.loaded.device), listening(recorder), bar:
            stream = backend.stream(
                items,
                engine,
                policy,
                recorder,
                sampling=sampling,
                halve_on_oom=halve_on_oom,
                max_batches=max_batches,
                handed_over_s=handed_over_s,
            )
            for index, answer in stream:
                answers[index] = answer
                bar.update()
                if on_answer:
                    on_answer(index, answer)
        wall_s = time.perf_counter() - started
        self.used = True
        return Generation(
            answers=[answer for answer in answers if answer is not None],
            wall_s=wall_s,
            **vars(backend.stats()),
        )

    def clear_caches(self) -> None:
        """Empty the fast engine's caches in memory; a folder of features keeps its files."""
        with self._lock:
            self.fast.clear_caches()

    def _close_fast(self) -> bool:
        """Give back the fast engine's memory; whether there was any."""
        held = self.fast.engine is not None
        self.fast.close()
        return held


class _OwnerLock:
    """A lock that tells a thread that it already holds it, where a plain one would deadlock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None

    def __enter__(self) -> None:
        if self._owner == threading.get_ident():
            raise ConfigError(
                "this lab is answering a call of the same thread: on_answer must not use the lab; "
                "collect what it is given, and ask again after the call"
            )
        self._lock.acquire()
        self._owner = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self._owner = None
        self._lock.release()


@names_settings(ModelSpec)
def load(model: str | ModelSpec = "tiny", **settings: Any) -> Lab:
    """Load a model: ``"tiny"``, ``"random:8b"``, a folder, or a hub id.

    ``settings`` are the fields of :class:`~qvl_lab.config.ModelSpec`. Errors as
    :func:`qvl_lab.models.load.load_model`.
    """
    check_settings(load, settings)
    spec = replace(model, **settings) if isinstance(model, ModelSpec) else None
    spec = spec or ModelSpec(model=str(model), **settings)
    warn_of_emulation(spec)
    return Lab(load_model(spec))


@contextmanager
def _on_device(device: torch.device) -> Iterator[None]:
    """Make the model's GPU the current one, so that events are recorded on its stream."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield
