"""Decodes images ahead of the model, in threads beside the GPU, within a bound on memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from torch import Tensor

from qvl_lab.backends.base import Request
from qvl_lab.backends.fast import pixels as pillow
from qvl_lab.backends.fast.sequence import DecodedImage, Sequence
from qvl_lab.config import ImagePolicy
from qvl_lab.probe.stages import stage
from qvl_lab.workloads.decode import decode_image
from qvl_lab.workloads.resize import resize

MOST_THREADS = 16
#: Bytes of pixels that are decoded ahead of the model.
AHEAD_BYTES = 512 * 2**20


class DecodePool:
    """Decodes the images of sequences, in threads or at once.

    Parameters
    ----------
    policy : ImagePolicy
    threads : bool
        Off: an image is decoded when it is asked for, and the device waits.
    pinned : bool
        Put the pixels into memory that a GPU reads by itself.
    in_rounds : bool
        Threads decode many images while the model waits, rather than beside it: where the model
        itself runs on all cores, a thread beside it holds up every operation.
    round_size : int
        Most images of a round.
    find_features : callable, optional
        Returns the features of an image key if they are known, which saves decoding; is called in
        threads.

    Attributes
    ----------
    ahead_bytes : int
        Size of the images that are decoded, or being decoded, and not encoded yet.
    in_rounds : bool
        As given, where there are threads.
    """

    def __init__(
        self,
        policy: ImagePolicy,
        *,
        threads: bool,
        pinned: bool,
        in_rounds: bool = False,
        round_size: int = 1,
        find_features: Callable[[str | None], Any] = lambda key: None,
    ) -> None:
        self._policy, self._pinned, self._find_features = policy, pinned, find_features
        self.in_rounds, self._round_size = threads and in_rounds, round_size
        workers = min(MOST_THREADS, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(workers, "qvl-decode") if threads else None
        self._queue: deque[Sequence] = deque()
        self.ahead_bytes = 0

    @property
    def is_idle(self) -> bool:
        """Whether no image is held or waited for."""
        return not (self.ahead_bytes or self._queue)

    def prefetch(self, sequence: Sequence) -> None:
        """Decode a sequence's image in a thread when its turn comes; nothing without threads."""
        if self._threads is not None:
            self._queue.append(sequence)

    def start_ahead(self) -> None:
        """Hand images to the threads, as far as the bound allows, unless they work in rounds."""
        if not self.in_rounds:
            self._start()

    def not_ready(self, sequence: Sequence) -> bool:
        """Whether the model does better to go on than to wait for a sequence's image."""
        decoded = sequence.decoded
        if self.in_rounds:
            return decoded is None and self._over_bound(sequence)
        if isinstance(decoded, Future):
            return not decoded.done()
        return self._threads is not None and decoded is None

    def fetch(self, sequence: Sequence) -> None:
        """Wait for a sequence's image.

        Raises
        ------
        ImageError
            If it cannot be used.
        """
        with stage("decode_image", bytes=sequence.request.encoded_bytes):
            if self.in_rounds and sequence.decoded is None:
                wait(self._start(self._round_size))
            if isinstance(sequence.decoded, Future):
                sequence.decoded = sequence.decoded.result()
            elif sequence.decoded is None:
                sequence.decoded = self._decode(sequence)
                self.ahead_bytes += sequence.pixel_bytes

    def drop(self, sequence: Sequence) -> None:
        """Release a sequence's image, or take it from the queue."""
        if sequence in self._queue:
            self._queue.remove(sequence)
        if sequence.decoded is not None:
            self.ahead_bytes -= sequence.pixel_bytes
            sequence.decoded = None

    def close(self) -> None:
        """End the threads; images in the queue are not decoded."""
        self._queue.clear()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def pixels(self, request: Request) -> Tensor:
        """An image's pixels, (height, width, 3 or 4) uint8, red, green and blue first.

        Raises
        ------
        ImageError
            If it cannot be used.
        """
        image = resize(decode_image(request.image, self._policy), request.size)
        return pillow.pixels(image, pinned=self._pinned)

    def _start(self, most: int | None = None) -> list[Future[DecodedImage]]:
        """Hand at most ``most`` images to the threads, as far as the bound allows."""
        started: list[Future[DecodedImage]] = []
        while self._queue and (most is None or len(started) < most):
            sequence = self._queue[0]
            if self._over_bound(sequence):
                break
            self._queue.popleft()
            if sequence.answer is None and sequence.decoded is None:
                assert self._threads is not None
                future = sequence.decoded = self._threads.submit(self._decode, sequence)
                self.ahead_bytes += sequence.pixel_bytes
                started.append(future)
        return started

    def _over_bound(self, sequence: Sequence) -> bool:
        """Whether a sequence's image would be one too many in memory; the first never is."""
        return bool(self.ahead_bytes) and self.ahead_bytes + sequence.pixel_bytes > AHEAD_BYTES

    def _decode(self, sequence: Sequence) -> DecodedImage:
        """Features if they are known, or else pixels; runs in threads."""
        features = self._find_features(sequence.image_key)
        if features is not None:
            return DecodedImage(features=features)
        return DecodedImage(pixels=self.pixels(sequence.request))
