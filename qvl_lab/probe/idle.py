"""When the GPU had nothing to do, and what the CPU did meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from qvl_lab.probe.stages import Span, outermost


def idle(spans: Iterable[Span]) -> pd.DataFrame:
    """The pauses between GPU stages.

    Within a stage the GPU may pause too; only a trace of its kernels tells.

    Parameters
    ----------
    spans : iterable of Span
        Of a :class:`~qvl_lab.probe.stages.Recorder` with CUDA events; without, there are no rows.

    Returns
    -------
    DataFrame
        One row per pause, in order of time: ``start_s``, ``seconds``, ``meanwhile``, the CPU stage
        that took the longest part of it ("" for what no stage covers), ``after`` and ``before``,
        the GPU stages around it.
    """
    outer = sorted((s for s in spans if outermost(s.path)), key=lambda span: span.start_s)
    gpu = [span for span in outer if span.on_gpu]
    cpu = [span for span in outer if not span.on_gpu]
    rows = []
    end_s = gpu[0].end_s if gpu else 0.0
    for before, after in zip(gpu[1:], gpu, strict=False):
        if before.start_s > end_s:
            rows.append(
                {
                    "start_s": end_s,
                    "seconds": before.start_s - end_s,
                    "meanwhile": _busiest(cpu, end_s, before.start_s),
                    "after": after.path,
                    "before": before.path,
                }
            )
        end_s = max(end_s, before.end_s)
    return pd.DataFrame(rows, columns=["start_s", "seconds", "meanwhile", "after", "before"])


def _busiest(cpu: Sequence[Span], start_s: float, end_s: float) -> str:
    shares: dict[str, float] = {"": end_s - start_s}  # what no stage covers
    for span in cpu:
        inside_s = min(span.end_s, end_s) - max(span.start_s, start_s)
        if inside_s > 0:
            shares[span.path] = shares.get(span.path, 0.0) + inside_s
            shares[""] -= inside_s
    return max(shares, key=lambda path: shares[path], default="")
