"""The answers of one call, with what it took to get them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qvl_lab.backends.base import Answer, BackendStats
from qvl_lab.probe.stages import outermost, stage_table

if TYPE_CHECKING:
    import pandas as pd


#: Answers that a notebook shows.
SHOWN = 10


@dataclass(kw_only=True, repr=False)
class Generation(BackendStats, Sequence[Answer]):
    """Answers in input order, with what it took to get them.

    Attributes
    ----------
    answers : list of Answer
    wall_s : float
        From encoded bytes to text, of all answers.
    """

    answers: list[Answer]
    wall_s: float = 0.0

    def __getitem__(self, index: Any) -> Any:
        return self.answers[index]

    def __len__(self) -> int:
        return len(self.answers)

    def __repr__(self) -> str:
        failed = f", {len(self.errors)} failed" if self.errors else ""
        return f"<Generation: {len(self) - len(self.errors)} answers{failed}, {self.wall_s:.3g} s>"

    def _repr_html_(self) -> str:
        """The first answers as a table."""
        import pandas as pd

        rows = [
            (
                a.id,
                a.text if a.error is None else f"error: {a.error}",
                a.visual_tokens,
                a.new_tokens,
            )
            for a in self.answers[:SHOWN]
        ]
        columns = ["id", "answer", "visual tokens", "new tokens"]
        table: str = pd.DataFrame(rows, columns=columns).to_html(index=False, border=0)
        more = f"<p>and {len(self) - SHOWN:,} more</p>" if len(self) > SHOWN else ""
        return f"<b>{html.escape(repr(self)[1:-1])}</b>{table}{more}"

    @property
    def texts(self) -> list[str | None]:
        """The answers' texts; None where there is an error."""
        return [answer.text for answer in self.answers]

    @property
    def errors(self) -> list[dict[str, str]]:
        """``id`` and ``error`` of every request without an answer."""
        return [{"id": a.id, "error": a.error} for a in self.answers if a.error is not None]

    def at_limit(self, max_new_tokens: int) -> int:
        """Answers that ended because they had ``max_new_tokens`` tokens, so may be cut off."""
        return sum(a.text is not None and a.new_tokens >= max_new_tokens for a in self.answers)

    def frame(self) -> pd.DataFrame:
        """One row per request."""
        import pandas as pd

        return pd.DataFrame([vars(answer) for answer in self.answers])

    @property
    def stages_s(self) -> dict[str, float]:
        """Seconds per stage; "other" is what no stage covers, so that all sum to ``wall_s``."""
        seconds = {path: total.seconds for path, total in self.totals.items() if outermost(path)}
        return seconds | {"other": max(0.0, self.wall_s - sum(seconds.values()))}

    @property
    def parts_s(self) -> dict[str, float]:
        """Seconds per stage within a stage, by path: "decode/lm_head"."""
        return {path: t.seconds for path, t in self.totals.items() if not outermost(path)}

    def stages(self) -> pd.DataFrame:
        """Where the time went; see :func:`qvl_lab.probe.stages.stage_table`."""
        return stage_table(self.totals, self.wall_s)
