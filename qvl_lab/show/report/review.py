"""A cost review: from a run file and a price to the context that its sections show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from qvl_lab.analysis.money.confirmed import paired_with
from qvl_lab.runs.records import environment_key
from qvl_lab.runs.store import Runs
from qvl_lab.show.locale import check_language
from qvl_lab.show.report import selection
from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.report.options import ReviewOptions
from qvl_lab.show.report.pricing import priced
from qvl_lab.show.report.sections.limits import known_ceilings


def review(
    runs: str | Path | Runs, options: ReviewOptions | None = None, **settings: Any
) -> ReportContext:
    """Price a run file and find what to run instead.

    Parameters
    ----------
    runs : path or Runs
    options : ReviewOptions, optional
        By default those that ``settings`` name.

    Returns
    -------
    ReportContext
        What each of :data:`qvl_lab.show.report.sections.SECTIONS` takes.

    Raises
    ------
    QvlError
        If the run file cannot be read, or an option cannot be used.
    """
    chosen = options or ReviewOptions.of(settings)
    check_language(chosen.lang)
    loaded = runs if isinstance(runs, Runs) else Runs.load(runs)
    rows = loaded.frame()
    compared, left_out, notes = selection.compared(rows, chosen)
    all_rows = priced(rows, compared, chosen)
    frame = all_rows[compared].reset_index(drop=True)
    left_out = [replace(left, rows=all_rows.loc[left.rows.index]) for left in left_out]
    advice = selection.recommended(frame, chosen, left_out)
    keys = set(zip(frame["key"], frame["environment"], strict=True))
    kept = [run for run in loaded if (run.key, environment_key(run.environment)) in keys]
    return ReportContext(
        options=chosen,
        all_rows=all_rows,
        runs=Runs(kept, path=loaded.path),
        frame=paired_with(frame, advice.current) if advice else frame,
        recommendation=advice,
        notes=[*loaded.notes, *notes, *selection.older_clock(frame, chosen.lang)],
        ceilings=known_ceilings(chosen.ceilings, loaded.path, selection.device(frame)),
    )


def settings_csv(context: ReportContext, path: Path) -> None:
    """Write all compared rows, as priced, for a spreadsheet; without the scores of single items."""
    context.frame.drop(columns=["scores", "score_images"]).to_csv(path, index=False)
