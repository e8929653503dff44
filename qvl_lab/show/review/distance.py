"""How far the settings are from what the device can do, and what to change first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Markdown

from qvl_lab.analysis.advice import advise
from qvl_lab.analysis.roofline import (
    Ceilings,
    ceilings,
    measured_ceilings,
    roofline,
)
from qvl_lab.errors import ConfigError
from qvl_lab.probe.ceilings import read_ceilings
from qvl_lab.records import Run
from qvl_lab.show import plots
from qvl_lab.show.finding_text import sentences
from qvl_lab.show.review.basis import measured_gpu
from qvl_lab.show.review.findings import Findings
from qvl_lab.show.review.parts import picture, plain, section, table
from qvl_lab.show.text import number


def beside(runs: Path) -> Path:
    """Where ceilings of the runs' device are looked for: ``runs.ceilings.json``."""
    return runs.with_suffix(".ceilings.json")


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
        found = read_ceilings(near)
        return found if found["device"] == device else None
    found = read_ceilings(path)
    if found["device"] != device:
        raise ConfigError(
            f"{path} holds the ceilings of {found['device']}, and the runs are of {device}; "
            "measure that device with 'qvl-lab doctor --ceilings FILE'"
        )
    return found


def limits(found: Findings) -> list[Any]:
    """Today's and the recommended setting beside the device's limit, with what to do first."""
    if not found.recommendation:
        return []
    rows = {"row_today": found.recommendation.current, "row_recommended": found.recommendation.best}
    by_key = {run.key: run for run in found.runs}
    shown: list[Any] = []
    seen: set[str] = set()
    for name, row in rows.items():
        if row["key"] not in seen:
            seen.add(row["key"])
            heading = found.say("limits_of", name=found.say(name), setting=found.setting(row))
            shown += [Markdown(plain(heading)), *_one(found, by_key[row["key"]])]
    note = found.say("limits_note", source=_of(found, by_key[row["key"]]).source)
    return [section(found, "limits_heading"), Markdown(plain(note)), *shown]


def _one(found: Findings, run: Run) -> list[Any]:
    caps = _of(found, run)
    try:
        stages = roofline(run, caps)
        advice = advise(run, caps, others=found.runs)
    except ConfigError as e:
        return [Markdown(plain(found.say("limits_none", reason=e)))]
    said = sentences(advice, found.lang)
    shown: list[Any] = [Markdown("\n".join(f"- {plain(words)}" for words in said))]
    if caps.flops_per_s is None:
        shown.append(Markdown(plain(found.say("limits_unknown", source=caps.source))))
    return [picture(plots.limits(stages, lang=found.lang)), *shown, stage_limits(found, stages)]


def _of(found: Findings, run: Run) -> Ceilings:
    precision = run.resolved["precision"]
    if found.ceilings:
        return measured_ceilings(found.ceilings, precision)
    return ceilings(measured_gpu(found.frame), precision)


def stage_limits(found: Findings, stages: pd.DataFrame) -> Any:
    """The roofline as a table in words."""
    wall_s = stages.attrs["wall_s"]
    names, columns = [], []
    for path, row in stages.iterrows():
        outer, _, part = str(path).partition("/")
        names.append(f"– {found.say(f'part_{part}')}" if part else found.say(f"stage_{outer}"))
        columns.append(
            {
                "column_seconds": number(row["seconds"]),
                "column_share": f"{100 * row['seconds'] / wall_s:.1f}%",
                "column_least": _known(row["least_s"], number),
                "column_times": _known(row["times_slower"], lambda v: f"{v:.1f}"),
                "column_bound": found.say(f"bound_{row['bound']}")
                if isinstance(row["bound"], str)
                else "",
                "column_reached": _known(row["reached"], lambda v: f"{100 * v:.0f}%"),
                "column_if": _known(row["images_per_s_if"], number),
            }
        )
    frame = pd.DataFrame(columns)
    frame.insert(0, "column_stage", names)
    return table(found, frame)


def _known(value: Any, words: Any) -> str:
    return "" if pd.isna(value) else str(words(value))
