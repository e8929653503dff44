"""Findings in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qvl_lab.analysis.limits.advice import Finding
from qvl_lab.runs.records import STAGES
from qvl_lab.show.locale import label

#: Evidence that is a share, 0-1.
_SHARES = ("share", "stage_share", "mfu", "bandwidth_share", "padded", "busy")


def finding_sentences(findings: Sequence[Finding], lang: str = "en") -> list[str]:
    """Each of :func:`qvl_lab.analysis.limits.advice.advise` as a sentence, English or Chinese.

    One sentence that says so if there are none.
    """
    return [_sentence(finding, lang) for finding in findings] or [label("findings_none", lang)]


def _sentence(finding: Finding, lang: str) -> str:
    words = {name: _worded(name, value, lang) for name, value in finding.evidence.items()}
    said = label(f"finding_{finding.rule}", lang, **words)
    if finding.gain is None:
        return said
    kind = "measured" if finding.measured else "most"
    worth = label(
        f"finding_{kind}_{'times' if finding.gain >= 2 else 'percent'}",
        lang,
        times=f"{finding.gain:.1f}",
        percent=f"{100 * (finding.gain - 1):.0f}%",
    )
    return label("finding_worth", lang, said=said.rstrip(".。"), worth=worth)


def _worded(name: str, value: Any, lang: str) -> str:
    if name == "stage":
        return (
            label(f"stage_{value or 'other'}", lang) if value in (*STAGES, "other", "") else value
        )
    if name in _SHARES:  # of a ceiling a little more than all of it can be reached
        return f"{100 * min(value, 1):.0f}%"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
