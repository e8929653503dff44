"""Everything a review's sections draw on, and how its rows are put into words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from qvl_lab.analysis.money.confirmed import saving
from qvl_lab.analysis.money.recommend import Recommendation
from qvl_lab.config import BY_TASK
from qvl_lab.probe.ceilings import MeasuredCeilings
from qvl_lab.runs.store import Runs
from qvl_lab.show.locale import label
from qvl_lab.show.plots.shared import CELL
from qvl_lab.show.quantities import amount, cost_or_time, counts_images, percent, score
from qvl_lab.show.report.options import ReviewOptions
from qvl_lab.show.report.selection import environment, on_gpu
from qvl_lab.show.wording import differing, doubt, setting, tables_of, told


@dataclass(frozen=True, kw_only=True)
class ReportContext:
    """Everything the report's sections draw on.

    Attributes
    ----------
    options : ReviewOptions
        What was asked for.
    all_rows : DataFrame
        Every row of the run file, priced.
    runs : Runs
        The runs that are compared.
    frame : DataFrame
        Their rows, priced: those of ``all_rows`` that are like the newest.
    recommendation : Recommendation or None
        None if nothing was measured to the end.
    notes : list of str
        What was left out.
    ceilings : dict or None
        What the device can do at most, where that was measured.
    """

    options: ReviewOptions
    all_rows: pd.DataFrame
    runs: Runs
    frame: pd.DataFrame
    recommendation: Recommendation | None
    notes: list[str]
    ceilings: MeasuredCeilings | None

    @property
    def lang(self) -> str:
        """The report's language, "en" or "zh"."""
        return self.options.lang

    @property
    def grid(self) -> pd.DataFrame:
        """Rows of one resolution for all tasks; all rows, if there are no others."""
        uniform = self.frame[self.frame["resolution"] != BY_TASK]
        kept = self.frame if uniform.empty else uniform.reset_index(drop=True)
        kept.attrs = self.frame.attrs
        return kept

    @property
    def cost(self) -> str:
        """The frame's cost column, or its seconds where no price is known."""
        return cost_or_time(self.frame)

    @property
    def unit(self) -> str:
        """What costs are quoted for: "100 images", or "100 answers" where images are not known."""
        return self.say("unit_images" if counts_images(self.frame) else "unit_answers")

    @property
    def priced(self) -> bool:
        """Whether a price is known; otherwise costs are in seconds."""
        return self.frame.attrs["price"] is not None

    @property
    def currency(self) -> str:
        """ISO code of the money."""
        return str(self.frame.attrs["currency"])

    @property
    def device(self) -> str:
        """What the runs ran on."""
        if on_gpu(self.frame):
            return environment(self.frame, "gpu") or "GPU"
        return self.say("device_cpu", name=environment(self.frame, "cpu") or "?")

    def say(self, key: str, **values: Any) -> str:
        """A text in the report's language."""
        return label(key, self.lang, **values)

    def setting(self, row: pd.Series) -> str:
        """A row's setting, with what else tells it from the other rows."""
        names = differing(self.frame, [*CELL, "engine"])
        more = told(row, names, self.lang, tables_of(self.frame))
        return self.say("between").join(filter(None, [setting(row, self.lang), more]))

    def cost_of(self, row: pd.Series) -> str:
        """What 100 images cost: "¥3.10"; "12.3 s" where no price is known."""
        return amount(row[self.cost], self.cost, self.lang)

    def cost_interval(self, row: pd.Series) -> str:
        """The cost's 95% interval: "¥3.00 – ¥3.20"; "?" after a single repeat."""
        value, *bounds = (float(row[f"{self.cost}{end}"]) for end in ("", "_low", "_high"))
        if any(pd.isna(bound) for bound in bounds):
            return "?"
        return " – ".join(amount(bound, self.cost, self.lang, like=value) for bound in bounds)

    def change(self, today: pd.Series, row: pd.Series) -> str:
        """What a row costs against today: "−60%", "within noise"; "-" for today itself."""
        if row["key"] == today["key"]:
            return "-"
        found = saving(today, row)
        return self.say("noise") if found.holds_zero else percent(1, 1 - found.value)

    def marked(self, row: pd.Series) -> str:
        """A row's setting, and what there is to say of it: today's, recommended, unstable."""
        return self._with(row, [*self._standing(row), doubt(row, self.lang)])

    def doubted(self, row: pd.Series) -> str:
        """A row's setting, and why its times are not to be relied on."""
        return self._with(row, [doubt(row, self.lang)])

    def _with(self, row: pd.Series, marks: list[str]) -> str:
        marks = [mark for mark in marks if mark]
        if not marks:
            return self.setting(row)
        return self.say("marked", setting=self.setting(row), marks=self.say("and").join(marks))

    def _standing(self, row: pd.Series) -> list[str]:
        advice = self.recommendation
        if advice is None:
            return []
        if row["key"] == advice.current["key"] == advice.best["key"]:
            return [self.say("today_recommended")]
        keys = {"today": advice.current["key"], "recommended": advice.best["key"]}
        marks = [self.say(name) for name, key in keys.items() if row["key"] == key]
        limit, quality = advice.min_quality, row["quality"]
        ruled_out = limit is not None and pd.notna(quality) and quality < limit - 1e-9
        return marks or [self.say("below_limit")] * ruled_out

    @staticmethod
    def scored(row: pd.Series, column: str) -> str:
        """A column of scores with its 95% interval: "0.95 (0.91–0.98)"."""
        value, low, high = (score(row[column + end]) for end in ("", "_low", "_high"))
        return value if value == "?" else f"{value} ({low}–{high})"
