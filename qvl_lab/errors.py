"""Every error that qvl_lab raises on purpose.

::

    QvlError                    base: catch this to catch all of them
    ├── ConfigError             a setting that cannot be used (also a ValueError)
    │   ├── UnknownNameError    a name that is not in its list; carries the nearest match
    │   └── LimitError          limits that no measured setting keeps
    ├── InputError              data from outside that cannot be used
    │   ├── ImageError          one image: empty, truncated, too large, not an image
    │   └── WorkloadError       a workload file or folder as a whole
    ├── QueueFullError          more requests wait than the engine was told to hold
    ├── ClosedError             something is used after it was closed
    ├── ModelError              a model that cannot be loaded or run
    │   ├── PrecisionError      the device lacks the precision that was asked for
    │   ├── NumericalError      inf or NaN came out of the model
    │   └── DeviceMemoryError   the device ran out of memory
    ├── StoreError              a run file that cannot be read, written or continued
    └── ReportError             the report stopped; what it had is kept

A message says what was wrong, what is allowed, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QvlError(Exception):
    """Base of all errors raised by qvl_lab."""


class ConfigError(QvlError, ValueError):
    """A setting that cannot be used."""


class LimitError(ConfigError):
    """Limits that no measured setting keeps."""


class UnknownNameError(ConfigError):
    """A name that is not among the allowed ones.

    Parameters
    ----------
    kind : str
        What the name stands for, as a reader would say it ("GPU", "precision").
    name : str
        What was given.
    allowed : iterable of str
        What would have been accepted.
    """

    def __init__(self, kind: str, name: object, allowed: Iterable[str]) -> None:
        self.kind, self.name, self.allowed = kind, name, sorted(map(str, allowed))
        self.nearest = nearest(str(name), self.allowed)
        hint = f" Did you mean {self.nearest!r}?" if self.nearest else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Allowed: {', '.join(self.allowed)}")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.kind, self.name, self.allowed)


class InputError(QvlError):
    """Data from outside that cannot be used."""


class ImageError(InputError):
    """One image that cannot be decoded or is over the limits."""


class QueueFullError(QvlError):
    """More requests wait for an answer than the engine was told to hold."""


class ClosedError(QvlError):
    """Something is used after it was closed."""


class WorkloadError(InputError):
    """A workload that cannot be read as a whole."""


class ModelError(QvlError):
    """A model that cannot be loaded or run."""


class PrecisionError(ModelError):
    """The device or the installation lacks the precision that was asked for."""


class NumericalError(ModelError):
    """The model produced inf or NaN instead of scores."""


class DeviceMemoryError(ModelError):
    """The device, or the limit that was set for it, ran out of memory."""


class StoreError(QvlError):
    """A run file that cannot be read, written or continued."""


class ReportError(QvlError):
    """The report notebook stopped; the message names the cell and the partial report."""


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name closest to ``name``, ignoring case, or None if none is close."""
    by_lower = {candidate.lower(): candidate for candidate in allowed}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[matches[0]] if matches else None
