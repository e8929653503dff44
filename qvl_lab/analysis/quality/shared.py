"""Scores of settings that answer alike: measured once, and shared.

Answers depend on the model, its precision, the resolution and how tokens are chosen. Batch size and
engine change when they come, and next to nothing of what they say. So quality is scored once for
each model, precision and resolution; a setting with a resolution for each task has the scores that
each task got at its resolution.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qvl_lab.config import BY_TASK, digest
from qvl_lab.runs.records import Run, environment_key

#: What answers depend on, besides the resolution.
_ANSWERS = (
    *("model", "revision", "max_new_tokens", "min_new_tokens", "do_sample", "temperature"),
    *("top_k", "top_p", "repetition_penalty", "sampling_seed"),
)
Scores = Mapping[str, dict[str, Any]]


class SharedScores:
    """The scores of runs, found by what their answers depend on.

    Parameters
    ----------
    runs : iterable of Run
        Those with scores are shared.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        self._known: dict[str, dict[str, Run]] = {}
        for run in runs:
            resolution = run.config.get("resolution")
            if run.scores and resolution != BY_TASK:
                self._known.setdefault(_answers(run), {}).setdefault(str(resolution), run)

    def of(self, run: Run) -> tuple[Scores, list[str]]:
        """The scores of a run and the keys of the runs that they come from.

        Its own, if it has any. One that was measured without quality (``quality=False``) gets
        those of a run that answers alike; ({}, []) where none was scored, or a task of the table
        has a resolution at which it was not.
        """
        if run.scores:
            return run.scores, [run.key]
        if run.random_weights or run.status != "ok" or run.plan.get("quality") is not False:
            return {}, []
        known = self._known.get(_answers(run), {})
        if run.config.get("resolution") != BY_TASK:
            found = known.get(str(run.config.get("resolution")))
            return (found.scores, [found.key]) if found else ({}, [])
        table = run.config.get("task_resolutions") or {}
        tasks = next((list(found.scores) for found in known.values()), [])
        sources = {task: known.get(str(table.get(task))) for task in tasks}
        scores: dict[str, dict[str, Any]] = {}
        for task, found in sources.items():
            if found is None or task not in found.scores:
                return {}, []
            scores[task] = found.scores[task]
        return scores, list(dict.fromkeys(found.key for found in sources.values() if found))


def _answers(run: Run) -> str:
    """Equal for runs whose answers to the same items, at one resolution, are the same."""
    config = {name: run.config.get(name) for name in _ANSWERS}
    precision = run.resolved.get("precision", run.config.get("precision"))
    metrics, workload = run.plan.get("metrics"), run.workload.get("fingerprint")
    return digest([config, precision, metrics, workload, environment_key(run.environment)])
