"""The vision tower's batches: which images are encoded together, and what that took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf

import torch

from qvl_lab.backends.fast.encoder_cache import EncoderCache
from qvl_lab.backends.fast.model_runner import ModelRunner
from qvl_lab.backends.fast.sequence import DecodedImage, Sequence
from qvl_lab.runs.records import Work

#: Visual tokens that the tower encodes together on a CPU. On 2 cores `tiny` answers 2 to 3% faster
#: at 512 px than without a bound, whose activations of many megabytes are mapped anew each time.
CPU_TOKENS = 512


class VisionRunner:
    """Gives sequences the features of their images.

    Parameters
    ----------
    packing : bool
        Encode several images in one pass.
    cache : EncoderCache
        Is asked first, and keeps what is encoded.
    """

    def __init__(self, model_runner: ModelRunner, cache: EncoderCache, *, packing: bool) -> None:
        self._model_runner, self._cache, self._packing = model_runner, cache, packing

    def encode(self, sequences: SequenceOf[Sequence], max_tokens: int) -> Work:
        """Set ``features`` of sequences whose images are decoded, each image encoded once.

        Parameters
        ----------
        max_tokens : int
            Visual tokens that the tower encodes together; one image may have more.
        """
        work = Work()
        unknown = [sequence for sequence in sequences if not self._take_known(sequence)]
        if self._cache.is_on:
            unknown = list({sequence.image_key: sequence for sequence in unknown}.values())
        for group in self._groups(unknown, max_tokens):
            work += self._encode(group)
        for sequence in sequences:
            if sequence.features is None:  # another of these has the same image
                sequence.features = self._cache.pending(sequence.image_key)
        return work

    def _take_known(self, sequence: Sequence) -> bool:
        """Set the features of an image that was encoded before; False if it was not."""
        assert isinstance(sequence.decoded, DecodedImage)
        pending = self._cache.pending(sequence.image_key)
        sequence.features = sequence.decoded.features if pending is None else pending
        return sequence.features is not None

    def _encode(self, sequences: list[Sequence]) -> Work:
        pixels = [sequence.decoded.pixels for sequence in sequences]  # type: ignore[union-attr]
        stop = _start_timer(self._model_runner.device)
        self._model_runner.encode_images(pixels, sequences)
        if self._cache.is_on:
            self._cache.add({str(s.image_key): s.features for s in sequences}, stop())
        patches = [sequence.grid[0] * sequence.grid[1] for sequence in sequences]
        squared = sum(n * n for n in patches)
        return Work(images=len(sequences), patches=sum(patches), patches_squared=squared)

    def _groups(self, sequences: list[Sequence], max_tokens: int) -> Iterator[list[Sequence]]:
        """Images to encode together, those of equal size side by side."""
        if self._model_runner.device.type == "cpu":
            max_tokens = min(max_tokens, CPU_TOKENS)
        group: list[Sequence] = []
        for sequence in sorted(sequences, key=lambda sequence: sequence.grid):
            tokens = sum(len(other.image_tokens) for other in [*group, sequence])
            if group and (not self._packing or tokens > max_tokens):
                yield group
                group = []
            group = [*group, sequence]
        if group:
            yield group


def _start_timer(device: torch.device) -> Callable[[], Callable[[], float]]:
    """Start a timer. Calling the result stops it and returns a function that reads the seconds.

    On a GPU the seconds are the device's, and may be read once it has done the work.
    """
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
