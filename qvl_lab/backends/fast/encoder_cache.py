"""Features of images that were encoded before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from qvl_lab.caching.tensor_cache import TensorCache


@dataclass(frozen=True)
class _Encoded:
    """Features by image key; ``seconds`` gives what they took once the device is done."""

    features: dict[str, Tensor]
    seconds: Callable[[], float]


class EncoderCache:
    """The vision tower's outputs by image key, also those that the device still computes.

    Features enter the tensor cache once the step that computed them is known to be done, since
    only then their cost is known. Until then they are found here.

    Parameters
    ----------
    cache : TensorCache or None
        None keeps nothing.
    """

    def __init__(self, cache: TensorCache | None) -> None:
        self._cache = cache
        self._steps: deque[list[_Encoded]] = deque()
        self._pending: dict[str, Tensor] = {}

    @property
    def is_on(self) -> bool:
        """Whether features are kept."""
        return self._cache is not None

    @property
    def is_idle(self) -> bool:
        """Whether no features are on their way into the cache."""
        return not self._pending

    def get(self, key: str | None) -> Tensor | None:
        """The features of an image, from the device's step, memory or disk; None if unknown."""
        if self._cache is None or key is None:
            return None
        if (pending := self._pending.get(key)) is not None:
            return pending
        found = self._cache.get(key)
        return None if found is None else found["features"]

    def pending(self, key: str | None) -> Tensor | None:
        """The features of an image if they are on their way into the cache."""
        return None if key is None else self._pending.get(key)

    def add(self, features: dict[str, Tensor], seconds: Callable[[], float]) -> None:
        """Keep features that the open step computes.

        Parameters
        ----------
        seconds : callable
            Returns the seconds that all of them took; called when the step is closed.
        """
        self._pending |= features
        self._steps[-1].append(_Encoded(features, seconds))

    def open_step(self) -> None:
        """Features added from here on belong to another step."""
        self._steps.append([])

    def close_step(self) -> None:
        """The device is done with the oldest step: put its features into the cache."""
        for encoded in self._steps.popleft():
            cost_s = encoded.seconds() / len(encoded.features)
            for key, features in encoded.features.items():
                if self._cache is not None:
                    self._cache.put(key, {"features": features}, cost_s)
                self._pending.pop(key, None)

    def drop_steps(self) -> None:
        """Drop what the device still computes; the cache keeps what it has."""
        self._steps.clear()
        self._pending.clear()
