"""What torch.profiler saw of a piece of work: tables, and files for TensorBoard and Perfetto.

A trace is the JSON object that torch writes ("Chrome trace", Kineto schema 1) as a dict.
:class:`Recording` makes one and :func:`read` takes one from a file; each table is a function of
it, and needs no torch::

    with Recording(device="cuda") as recording:
        lab.generate_batch(...)
    kernels(recording.trace)
    tensorboard(recording.trace, "traces/")

Nothing is ever unpickled. A recording slows down what it records: times of recorded work say what
the work consists of, not how long it takes without a profiler.
"""

from __future__ import annotations

from qvl_lab.probe.trace.events import Events, parse
from qvl_lab.probe.trace.files import chrome, tensorboard
from qvl_lab.probe.trace.groups import GROUPS, group
from qvl_lab.probe.trace.reading import Trace, read
from qvl_lab.probe.trace.recording import Ranges, Recording
from qvl_lab.probe.trace.tables import kernels, operators, stages
from qvl_lab.probe.trace.timeline import gaps, overlap

__all__ = [
    "GROUPS",
    "Events",
    "Ranges",
    "Recording",
    "Trace",
    "chrome",
    "gaps",
    "group",
    "kernels",
    "operators",
    "overlap",
    "parse",
    "read",
    "stages",
    "tensorboard",
]
