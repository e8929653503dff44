"""What the engine does about images: decoding ahead, the vision tower, remembered features."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from qvl_lab.backends.fast.decode_pool import DecodePool
from qvl_lab.backends.fast.model_runner import ModelRunner
from qvl_lab.backends.fast.sequence import Job, Picture
from qvl_lab.caching.tensor_cache import TensorCache
from qvl_lab.config import EngineSpec
from qvl_lab.probe.stages import stage
from qvl_lab.runs.records import Work

#: Bytes of pixels that are decoded ahead of the model.
AHEAD_BYTES = 512 * 2**20
#: Visual tokens that the tower sees together on a CPU. On 2 cores `tiny` answers 2 to 3% faster at
#: 512 px than without a bound, whose activations of many megabytes are mapped anew each time.
CPU_TOKENS = 512


@dataclass(frozen=True)
class _Seen:
    """Features to remember, by key, once it is known what they took."""

    features: dict[str, Tensor]
    seconds: Callable[[], float]


class VisionRunner:
    """Gives jobs the features of their images.

    Parameters
    ----------
    features : TensorCache or None
        Where they are remembered.

    Attributes
    ----------
    ahead_bytes : int
        Size of the pictures that are decoded, or being decoded, and not seen yet.
    in_rounds : bool
        Threads decode many images while the model waits, rather than beside it: where the model
        itself runs on all cores, a thread beside it holds up every operation.
    """

    def __init__(
        self,
        forward: ModelRunner,
        pictures: DecodePool,
        spec: EngineSpec,
        features: TensorCache | None,
    ) -> None:
        self._forward, self._pictures = forward, pictures
        self._packing, self._threads, self._round = spec.packing, spec.overlap, spec.batch_size
        self.in_rounds = self._threads and forward.device.type == "cpu"
        self._cache = features
        self._unbegun: deque[Job] = deque()
        self._seen: deque[list[_Seen]] = deque()  # by step, since their times are known later
        self._fresh: dict[str, Tensor] = {}  # features on their way into the cache
        self.ahead_bytes = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is held for any job."""
        return not (self.ahead_bytes or self._fresh or self._unbegun)

    def expect(self, job: Job) -> None:
        """Decode this job's image in a thread when its turn comes."""
        self._unbegun.append(job)

    def begin(self) -> None:
        """Decode ahead of the model, beside it."""
        if not self.in_rounds:
            self._start()

    def _start(self, most: int | None = None) -> list[Future[Picture]]:
        """Hand images, at most so many, to the threads, as far as the bound on pixels allows."""
        started: list[Future[Picture]] = []
        while self._unbegun and (most is None or len(started) < most):
            job = self._unbegun[0]
            if self._too_much(job):
                break
            self._unbegun.popleft()
            if job.answer is None and job.picture is None:
                job.picture = self._pictures.start(self._picture, job)
                self.ahead_bytes += job.pixel_bytes
                started.append(job.picture)
        return started

    def late(self, job: Job) -> bool:
        """Whether the model does better to go on than to wait for a job's picture."""
        picture = job.picture
        if self.in_rounds:
            return picture is None and self._too_much(job)
        return not picture.done() if isinstance(picture, Future) else self._threads and not picture

    def _too_much(self, job: Job) -> bool:
        """Whether a job's picture would be one too many in memory."""
        return bool(self.ahead_bytes) and self.ahead_bytes + job.pixel_bytes > AHEAD_BYTES

    def fetch(self, job: Job) -> None:
        """Wait for a job's picture.

        Raises
        ------
        ImageError
            If it cannot be had.
        """
        with stage("decode_image", bytes=job.request.encoded_bytes):
            if self.in_rounds and job.picture is None:
                wait(self._start(self._round))
            if isinstance(job.picture, Future):
                job.picture = job.picture.result()
            elif job.picture is None:
                job.picture = self._picture(job)
                self.ahead_bytes += job.pixel_bytes

    def drop(self, job: Job) -> None:
        """Let go of a job's picture, or of the wish for it."""
        if job in self._unbegun:
            self._unbegun.remove(job)
        if job.picture is not None:
            self.ahead_bytes -= job.pixel_bytes
            job.picture = None

    def see(self, jobs: Sequence[Job], most_tokens: int) -> Work:
        """Give jobs, whose pictures were fetched, their features.

        Parameters
        ----------
        most_tokens : int
            Visual tokens of images that the tower sees together.
        """
        work = Work()
        unknown = [job for job in jobs if not self._known(job)]
        if self._cache is not None:  # each image once
            unknown = list({job.key: job for job in unknown}.values())
        for group in self._groups(unknown, most_tokens):
            work += self._look(group)
        for job in jobs:
            if job.prompt.features is None:  # another of these has the same image
                job.prompt.features = self._fresh[str(job.key)]
            self.drop(job)
        return work

    def open_step(self) -> None:
        """What is seen from here on belongs to another step."""
        self._seen.append([])

    def close_step(self) -> None:
        """The oldest step is done on the device: remember what was seen in it."""
        for seen in self._seen.popleft():
            cost_s = seen.seconds() / len(seen.features)
            for key, features in seen.features.items():
                if self._cache is not None:
                    self._cache.put(key, {"features": features}, cost_s)
                self._fresh.pop(key, None)

    def close(self) -> None:
        """Forget what is on its way, and end the threads."""
        self._unbegun.clear()
        self._seen.clear()
        self._fresh.clear()
        self._pictures.close()

    def _picture(self, job: Job) -> Picture:
        """Features if they are known, or else pixels; called in threads."""
        if self._cache is not None and job.key is not None:
            if (fresh := self._fresh.get(job.key)) is not None:
                return Picture(features=fresh)
            if (found := self._cache.get(job.key)) is not None:
                return Picture(features=found["features"])
        return Picture(pixels=self._pictures.pixels(job.request))

    def _known(self, job: Job) -> bool:
        """Take a job's features, if they were seen before."""
        assert isinstance(job.picture, Picture)
        fresh = self._fresh.get(job.key) if job.key is not None else None
        job.prompt.features = job.picture.features if fresh is None else fresh
        return job.prompt.features is not None

    def _look(self, jobs: list[Job]) -> Work:
        """Let the tower see images; what it saw will be remembered."""
        pixels = [job.picture.pixels for job in jobs]  # type: ignore[union-attr]
        stop = _stopwatch(self._forward.device)
        self._forward.encode_images(pixels, [job.prompt for job in jobs])  # type: ignore[arg-type]
        if self._cache is not None:
            features = {str(job.key): job.prompt.features for job in jobs}
            self._fresh |= features  # type: ignore[arg-type]
            self._seen[-1].append(_Seen(features, stop()))  # type: ignore[arg-type]
        patches = [job.prompt.grid[0] * job.prompt.grid[1] for job in jobs]
        squared = sum(n * n for n in patches)
        return Work(images=len(jobs), patches=sum(patches), patches_squared=squared)

    def _groups(self, jobs: list[Job], most_tokens: int) -> Iterator[list[Job]]:
        """Images for the tower to see together."""
        if self._forward.device.type == "cpu":
            most_tokens = min(most_tokens, CPU_TOKENS)
        group: list[Job] = []
        for job in sorted(jobs, key=lambda job: job.prompt.grid):  # equal sizes side by side
            tokens = sum(len(other.prompt.image) for other in [*group, job])
            if group and (not self._packing or tokens > most_tokens):
                yield group
                group = []
            group = [*group, job]
        if group:
            yield group


def _stopwatch(device: torch.device) -> Callable[[], Callable[[], float]]:
    """Stops when called; what that gives tells the device's seconds, once it has done the work."""
    if device.type == "cpu":
        started = time.perf_counter()

        def stop() -> Callable[[], float]:
            taken = time.perf_counter() - started
            return lambda: taken

        return stop
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    first.record()

    def stop_on_gpu() -> Callable[[], float]:
        last.record()
        return lambda: float(first.elapsed_time(last)) / 1e3

    return stop_on_gpu
