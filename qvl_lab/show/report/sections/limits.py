"""How far the settings are from what the device can do, and what to change first."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Markdown

from qvl_lab.analysis.limits.advice import advise
from qvl_lab.analysis.limits.roofline import (
    Ceilings,
    ceilings,
    measured_ceilings,
    raised,
    roofline,
)
from qvl_lab.errors import ConfigError
from qvl_lab.probe.ceilings import beside, read_ceilings
from qvl_lab.runs.records import Run
from qvl_lab.show import plots
from qvl_lab.show.quantities import number
from qvl_lab.show.report.components import (
    folded,
    named_rows,
    picture,
    plain,
    section,
    table,
)
from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.report.finding_text import finding_sentences
from qvl_lab.show.report.selection import measured_gpu


def known_ceilings(path: str | Path | None, runs: Path | None, device: str) -> Any:
    """Measured ceilings of a device, or None.

    Raises
    ------
    ConfigError
        If the file that was named is of another device.
    InputError
        If it cannot be read.
    """
    if path is None:
        near = beside(runs) if runs else None
        if near is None or not near.exists():
            return None
        nearby = read_ceilings(near)
        return nearby if nearby["device"] == device else None
    named = read_ceilings(path)
    if named["device"] != device:
        raise ConfigError(
            f"{path} holds the ceilings of {named['device']}, and the runs are of {device}; "
            "measure that device with 'qvl-lab doctor --ceilings FILE'"
        )
    return named


def limits(context: ReportContext) -> list[Any]:
    """Today's and the recommended setting beside the device's limit, with what to do first."""
    if not context.recommendation:
        return []
    by_key = {run.key: run for run in context.runs}
    shown: list[Any] = [section(context, "limits_heading", "limits_note")]
    for name, row in named_rows(context.recommendation).items():
        heading = context.say("limits_of", name=context.say(name), setting=context.setting(row))
        shown += [Markdown(plain(heading)), *_one(context, by_key[row["key"]])]
    return shown


def _one(context: ReportContext, run: Run) -> list[Any]:
    if not run.architecture or not all(repeat.work for repeat in run.repeats if repeat.answered):
        return [Markdown(context.say("limits_older"))]
    caps = _of(context, run)
    try:
        stages = roofline(run, caps)
        advice = advise(run, caps, others=context.runs)
    except ConfigError as e:
        return [Markdown(plain(context.say("limits_none", reason=e)))]
    said = Markdown(
        "\n".join(f"- {plain(words)}" for words in finding_sentences(advice, context.lang))
    )
    seconds = context.say("limits_seconds", n=stages.attrs["images"])
    notes = context.say("sentence_pair", first=ceilings_said(context, run), second=seconds)
    return [
        picture(plots.limits(stages, lang=context.lang)),
        said,
        Markdown(plain(notes)),
        folded(context.say("limits_table"), stage_limits(context, stages)),
    ]


def _of(context: ReportContext, run: Run) -> Ceilings:
    """The ceilings of a run's precision, nowhere below what a stage of any run reached."""
    precision = run.resolved["precision"]
    if context.ceilings:
        known = measured_ceilings(context.ceilings, precision)
    else:
        known = ceilings(measured_gpu(context.frame), precision)
    return raised(known, (r for r in context.runs if r.resolved.get("precision") == precision))


def ceilings_said(context: ReportContext, run: Run) -> str:
    """What the device does at most in a run's precision, and how that is known."""
    caps, precision = _of(context, run), run.resolved["precision"]
    if caps.flops_per_s is None or caps.bytes_per_s is None:
        return context.say("ceilings_unknown", precision=precision, source=_source(context))
    said = context.say(
        "ceilings",
        precision=precision,
        tflops=number(caps.flops_per_s / 1e12),
        tb=number(caps.bytes_per_s / 1e12),
        source=_source(context),
    )
    for figure, path in caps.raised_by.items():
        words = context.say(f"ceilings_raised_{figure}", stage=_stage(context, path))
        said = context.say("sentence_pair", first=said, second=words)
    return said


def _source(context: ReportContext) -> str:
    """Where the ceilings are from, in the report's language."""
    if context.ceilings:
        named = context.options.ceilings
        file = Path(named) if named else beside(context.runs.path or Path())
        return context.say("ceilings_measured", device=context.ceilings["device"], file=file.name)
    gpu = measured_gpu(context.frame)
    if gpu is None:
        return context.say("ceilings_no_gpu")
    return context.say("ceilings_table", source=gpu.source)


def stage_limits(context: ReportContext, stages: pd.DataFrame) -> Any:
    """The roofline as a table in words."""
    wall_s = stages.attrs["wall_s"]
    names, columns = [], []
    for path, row in stages.iterrows():
        names.append("– " * ("/" in str(path)) + _stage(context, str(path)))
        columns.append(
            {
                "column_seconds": number(row["seconds"]),
                "column_share": f"{100 * row['seconds'] / wall_s:.1f}%",
                "column_least": _known(row["least_s"], number),
                "column_times": _known(row["times_slower"], lambda v: f"{v:.1f}"),
                "column_bound": context.say(f"bound_{row['bound']}")
                if isinstance(row["bound"], str)
                else "",
                "column_reached": _known(row["reached"], partial(_reached, context)),
                "column_if": _known(row["images_per_s_if"], number),
            }
        )
    frame = pd.DataFrame(columns)
    frame.insert(0, "column_stage", names)
    return table(context, frame)


def _stage(context: ReportContext, path: str) -> str:
    """The name of a stage, or of a stage within one."""
    outer, _, part = path.partition("/")
    return context.say(f"part_{part}" if part else f"stage_{outer}")


def _reached(context: ReportContext, share: float) -> str:
    """The share of the ceiling; a stage can set it, and one that is timed badly can pass it."""
    return context.say("at_ceiling") if share > 0.9995 else f"{100 * share:.0f}%"


def _known(value: Any, words: Any) -> str:
    return "" if pd.isna(value) else str(words(value))
