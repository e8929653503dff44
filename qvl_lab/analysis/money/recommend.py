"""What to run instead: the cheapest measured setting within limits, and what it saves."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from qvl_lab.analysis.frame import SETTINGS
from qvl_lab.analysis.money.comparable import LeftOut, comparable, matching, spelled
from qvl_lab.analysis.money.confirmed import (
    head_to_head,
    is_confirmed,
    paired_with,
    saving,
    surely_cheaper,
)
from qvl_lab.analysis.money.cost import cost_column
from qvl_lab.analysis.money.steps import Step, steps
from qvl_lab.analysis.quality.kept import (
    FEWEST_SCORED,
    Kept,
    Unusable,
    may_be_recommended,
    more_answers,
    quality_kept,
    why_unusable,
)
from qvl_lab.analysis.stats.estimates import Estimate
from qvl_lab.analysis.stats.intervals import Comparison, compare
from qvl_lab.config import check_name
from qvl_lab.errors import ConfigError, LimitError

#: From the most to the least exact; the default baseline is the first that was measured.
PRECISION_ORDER = ("fp32", "bf16", "fp16", "int8", "fp8")
#: An agreement is with one of the rows that are alike in these.
REFERENCE_GROUP = (
    *("model", "revision", "max_new_tokens", "min_new_tokens"),
    *("workload_fingerprint", "environment"),
)

#: What may change the answers, and so stays as it is where quality is not known.
ANSWERS = (
    *("resolution", "precision", "task_resolutions", "max_image_pixels"),
    *("do_sample", "temperature", "top_k", "top_p", "repetition_penalty"),
)
#: How much larger than today's the share of items without an answer may be, unless told.
MORE_FAILED = 0.01

#: The fields that name a setting in a line.
_MAIN = ("engine", "precision", "resolution", "batch_size")


@dataclass(frozen=True, kw_only=True, repr=False)
class Recommendation:
    """A setting to move to.

    Attributes
    ----------
    current, best : Series
        Rows of the frame, their costs as of
        :func:`qvl_lab.analysis.money.confirmed.paired_with`.
    saving : Estimate
        Share of the cost that goes away (0-1); see
        :func:`qvl_lab.analysis.money.confirmed.saving`. None bounds mean a single pass.
    confirmed : bool
        Whether both were measured head to head after they were chosen, and their ratio is known to
        10% to either side. The saving of a setting that was chosen for being the cheapest is a
        little too large until it is.
    steps : list of Step
        Lever by lever from ``current`` to ``best``, as far as the settings between were measured.
    held : tuple of str
        Fields kept at today's value.
    excluded : dict
        How many settings each limit ruled out.
    cheaper : Series or None
        The cheapest setting if the held fields were free and quality did not matter, where that
        is another one.
    runner_up : Series or None
        The next cheapest setting within the same limits.
    quality : Comparison or None
        How much better ``best`` answers the same items than ``current``; None if quality was not
        measured.
    quality_kept : str or None
        "shown", "not shown" or "lost": whether ``best`` keeps today's quality, less
        ``max_quality_loss``; see :mod:`qvl_lab.analysis.quality.kept`. None if that is not known,
        or if one setting has the other's scores, being taken to answer alike.
    more_answers : int or None
        About how many more scored answers would show it; 0 where it is shown.
    quality_unusable : str or None
        Why quality did not guide the choice: "random weights", "not scored", "few answers" or
        "nothing right".
    min_quality : float or None
        The limit on quality that was kept: as given, or today's less ``max_quality_loss``.
    max_quality_loss : float
        How much of today's quality (0-1) might be lost.
    cheaper_kept, cheaper_more_answers
        As ``quality_kept`` and ``more_answers``, of ``cheaper``.
    left_out : list of LeftOut
        Rows that were not compared, by what they differ in.
    """

    current: pd.Series
    best: pd.Series
    saving: Estimate
    confirmed: bool = False
    steps: list[Step] = field(default_factory=list)
    held: tuple[str, ...] = ()
    excluded: dict[str, int] = field(default_factory=dict)
    cheaper: pd.Series | None = None
    runner_up: pd.Series | None = None
    quality: Comparison | None = None
    quality_kept: Kept | None = None
    more_answers: int | None = None
    quality_unusable: Unusable | None = None
    min_quality: float | None = None
    max_quality_loss: float = 0.02
    cheaper_kept: Kept | None = None
    cheaper_more_answers: int | None = None
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def within_noise(self) -> bool:
        """Whether the saving's interval holds zero, or is unknown."""
        low, high = self.saving.low, self.saving.high
        return low is None or high is None or low <= 0 <= high

    def frame(self) -> pd.DataFrame:
        """Today's setting and the recommended one: what differs, what they cost, how good."""
        rows = pd.DataFrame([self.current, self.best], index=["today", "recommended"])
        shown = [name for name in _MAIN if name in rows]
        shown += [name for step in self.steps for name in step.changed if name not in shown]
        return rows[[*shown, *(n for n in (_cost_or_seconds(rows), "quality") if n in rows)]]

    def __repr__(self) -> str:
        low, high = self.saving.low, self.saving.high
        sure = "" if low is None or high is None else f" ({low:.0%} to {high:.0%})"
        noise = ", within noise" if self.within_noise else ""
        setting = ", ".join(f"{n}={spelled(self.best[n])}" for n in _MAIN if n in self.best)
        kept = {"not shown": ", quality not shown to be kept", "lost": ", quality lost"}
        risk = kept.get(self.quality_kept or "", "")
        left = sum(map(len, self.left_out))
        rest = f"; {left} rows not compared" if left else ""
        return f"<Recommendation {setting}: saves {self.saving.value:.0%}{sure}{noise}{risk}{rest}>"

    def _repr_html_(self) -> str:
        table: str = self.frame().T.to_html(border=0, float_format="{:.4g}".format, na_rep="")
        return f"{table}<p>{html.escape(repr(self)[1:-1])}</p>"


def recommend(
    frame: pd.DataFrame,
    *,
    current: Mapping[str, Any] | None = None,
    hold: Sequence[str] | None = None,
    across: Sequence[str] = (),
    min_quality: float | None = None,
    max_quality_loss: float = 0.02,
    max_vram_gib: float | None = None,
    max_ttft_s: float | None = None,
    max_failed_share: float | None = None,
) -> Recommendation:
    """The cheapest setting within limits, compared with today's.

    Only rows that are like today's in model, workload, length of answers, what a pass answers and
    environment are looked at; ``left_out`` of the result names the others.

    Parameters
    ----------
    frame : DataFrame
        From ``Runs.frame()``, priced or not: with one price, money goes as seconds.
    current : mapping, optional
        Fields of today's setting, ``{"batch_size": 1, "precision": "fp32"}``. By default the
        serial run at the largest resolution and most exact precision measured, of the rows that
        are like the newest.
    hold : sequence of str, optional
        Fields that must stay as they are. By default nothing, but where quality is not known or
        can guide nothing, whatever may change the answers: resolution, precision, sampling.
    across : sequence of str
        In what rows may differ and be compared all the same, ``("model",)``; names are those of
        :data:`qvl_lab.analysis.money.comparable.ALIKE`.
    min_quality : float, optional
        Limit on quality (0-1), in place of ``max_quality_loss``.
    max_quality_loss : float
        How much of today's quality (0-1) may be lost. A setting passes if the comparison with
        today's answers shows that it loses less, or if it is too small to show it and no answer
        is worse; see :mod:`qvl_lab.analysis.quality.kept`. Today's setting always passes.
    max_vram_gib, max_ttft_s : float, optional
        Limits on peak memory (reserved by torch; process memory on a CPU) and on the time to first
        token of 95% of the items, waiting included (``ttft_p95_s``). A setting whose value is
        unknown does not pass a limit; in files of before version 0.1 the latter is.
    max_failed_share : float, optional
        Limit on the share of items without an answer (0-1), by default today's and 0.01.

    Raises
    ------
    ConfigError
        If nothing was measured, ``current`` names no measured setting, a limit on quality or
        failures is no number from 0 to 1, or ``min_quality`` is given where quality is not known,
        rests on fewer than 20 answers, or is 0 everywhere.
    LimitError
        If no setting passes.
    """
    limits = {
        "min_quality": min_quality,
        "max_vram_gib": max_vram_gib,
        "max_ttft_s": max_ttft_s,
        "max_failed_share": max_failed_share,
    }
    for name in ("min_quality", "max_failed_share"):
        _check_share(name, limits[name])
    _check_share("max_quality_loss", max_quality_loss)
    rows = measured(frame)
    rows = rows if rows.index.is_unique else rows.reset_index(drop=True)
    today = todays_row(rows, current, across)
    like_today, left_out = comparable(rows, today, across)
    rows = rows[like_today]
    unusable = why_unusable(rows, today, max_quality_loss)
    if min_quality is not None:
        _check_quality_can_be_limited(rows)
    ruled_out = _ruled_out(rows, today, limits)
    if min_quality is None and unusable is None:
        ruled_out["max_quality_loss"] = ~_may_replace(today, rows, max_quality_loss)
        min_quality = max(0.0, float(today["quality"]) - max_quality_loss)
    if hold is None:
        hold = () if min_quality is not None else _answer_fields(rows)
    passing = kept = _not_in(rows, ruled_out)
    for name in hold:
        check_name(name, SETTINGS)
        kept = matching(kept, {name: today[name]})
    excluded = {name: int(rows_out.sum()) for name, rows_out in ruled_out.items()}
    if kept.empty:
        raise LimitError(_nothing_passes(rows, excluded, () if passing.empty else hold))
    best, runner_up = _best_two(kept, today)
    on_quality = ("min_quality", "max_quality_loss")
    cheaper = _cheapest(_not_in(rows, {n: r for n, r in ruled_out.items() if n not in on_quality}))
    quality = quality_difference(today, best)
    verdict = _verdict(today, best, max_quality_loss, unusable)
    cheaper_verdict = _verdict(today, cheaper, max_quality_loss, unusable)
    rows = paired_with(rows, today)
    today, best, cheaper = (_same_row(rows, row) for row in (today, best, cheaper))
    return Recommendation(
        current=today,
        best=best,
        saving=saving(today, best),
        confirmed=is_confirmed(today, best),
        steps=steps(rows, today, best),
        held=tuple(hold),
        excluded=excluded,
        cheaper=None if cheaper["key"] == best["key"] else cheaper,
        runner_up=None if runner_up is None else _same_row(rows, runner_up),
        quality=quality,
        quality_kept=verdict[0],
        more_answers=verdict[1],
        quality_unusable=unusable,
        min_quality=min_quality,
        max_quality_loss=max_quality_loss,
        cheaper_kept=cheaper_verdict[0],
        cheaper_more_answers=cheaper_verdict[1],
        left_out=left_out,
    )


def _same_row(rows: pd.DataFrame, row: pd.Series) -> pd.Series:
    """The row of another frame with the same label."""
    return rows[rows.index == row.name].iloc[0]


def todays_row(
    rows: pd.DataFrame, current: Mapping[str, Any] | None = None, across: Sequence[str] = ()
) -> pd.Series:
    """Today's setting: the one that ``current`` names, or else the baseline.

    It is looked for among the rows that are like the newest, and what is named then among all.

    Raises
    ------
    ConfigError
        As :func:`find_row`.
    """
    newest = rows[comparable(rows, across=across)[0]]
    if not current:
        return baseline(newest)
    try:
        return find_row(newest, current)
    except ConfigError:
        return find_row(rows, current)


def _check_share(name: str, value: float | None) -> None:
    if value is not None and not 0 <= value <= 1:
        raise ConfigError(f"{name} must be a number from 0 to 1, not {value!r}")


def _check_quality_can_be_limited(rows: pd.DataFrame) -> None:
    """Refuse a limit on a quality that is not there."""
    known = with_quality(rows)
    if (most := int(known["quality_items"].max())) < FEWEST_SCORED:
        raise ConfigError(
            f"quality rests on {most} scored answers, which cannot tell settings apart; score "
            f"{FEWEST_SCORED} or more, or leave min_quality out"
        )
    if known["quality"].max() <= 0:
        raise ConfigError(
            "no answer of any setting is right, so that quality cannot guide a choice; look at "
            "the answers and their metric, or leave min_quality out"
        )


def _answer_fields(rows: pd.DataFrame) -> tuple[str, ...]:
    """The fields that may change answers: resolution and precision, and which else differ."""
    always = ("resolution", "precision")
    return tuple(n for n in ANSWERS if n in always or rows[n].map(spelled).nunique() > 1)


def _may_replace(today: pd.Series, rows: pd.DataFrame, max_loss: float) -> pd.Series:
    """Which rows may be recommended by their answers; today's always may."""

    def may(row: pd.Series) -> bool:
        pair = quality_difference(today, row)
        same = row["key"] == today["key"]
        return same or (pair is not None and may_be_recommended(pair, max_loss))

    return pd.Series([may(row) for _, row in rows.iterrows()], rows.index, dtype=bool)


def _scored_by(row: pd.Series) -> list[str]:
    """The keys of the runs that a row's scores come from."""
    sources = row.get("quality_from")
    return sources if isinstance(sources, list) else [row["key"]]


def _verdict(
    today: pd.Series, row: pd.Series, max_loss: float, unusable: Unusable | None
) -> tuple[Kept | None, int | None]:
    """Whether a row keeps today's quality, and how many more answers would show it.

    Neither where the row has today's own scores, since only one of the two was asked.
    """
    if row["key"] == today["key"]:
        return "shown", 0
    pair = quality_difference(today, row)
    if pair is None or unusable or _scored_by(row) == _scored_by(today):
        return None, None
    return quality_kept(pair, max_loss), more_answers(pair, max_loss)


def with_quality(frame: pd.DataFrame) -> pd.DataFrame:
    """Measured rows whose quality is known.

    Raises
    ------
    ConfigError
        If there is none; it says what is missing.
    """
    rows = measured(frame)
    known = rows[rows["quality"].notna()]
    if not known.empty:
        return known
    if rows["random_weights"].eq(True).all():
        why = "the weights are random, so the answers mean nothing; use a trained model"
    else:
        why = "give the workload an 'answer' column, and do not sweep with quality=False"
    raise ConfigError(f"no setting has a quality: {why}")


def quality_difference(before: pd.Series, after: pd.Series) -> Comparison | None:
    """How much better ``after`` answers the same items than ``before``.

    None if that is not known, as between two workloads or two references of an agreement.
    """
    scores = [row["scores"] for row in (before, after)]
    shared = ["quality_kind", "workload_fingerprint"]
    if before["quality_kind"] == "agreement":
        shared += REFERENCE_GROUP
    if not all(isinstance(found, Mapping) for found in scores) or any(
        spelled(before[name]) != spelled(after[name]) for name in shared
    ):
        return None
    images = before.get("score_images")
    first, second = (list(found.values()) for found in scores)
    return compare(
        first,
        second,
        images=list(images.values()) if isinstance(images, Mapping) else None,
    )


def _nothing_passes(rows: pd.DataFrame, excluded: Mapping[str, int], held: Sequence[str]) -> str:
    counts = ", ".join(f"{name} rules out {n}" for name, n in excluded.items())
    kept = f"with today's {', '.join(held)} " if held else ""
    best = f" (best quality measured: {rows['quality'].max():.3f})" * ("min_quality" in excluded)
    unknown = int(rows["ttft_p95_s"].isna().sum()) if "max_ttft_s" in excluded else 0
    if unknown:
        best += (
            f" (the 95th percentile of the time to first token is not known of {unknown}: fewer "
            "than 20 answers, or measured by an older version from the start of the batch)"
        )
    return (
        f"no measured setting {kept}passes the limits: of {len(rows)}, {counts}{best}; "
        f"loosen {' or '.join(excluded)}, or measure other settings"
    )


def measured(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows with status "ok" and at least one answer.

    Raises
    ------
    ConfigError
        If there is none.
    """
    rows = frame[(frame["status"] == "ok") & frame["s_per_100_images"].notna()]
    if rows.empty:
        counts = frame["status"].value_counts().to_dict()
        raise ConfigError(f"no setting was measured to the end (statuses: {counts})")
    return rows


def baseline(frame: pd.DataFrame) -> pd.Series:
    """The smallest batch at the most visual tokens and the most exact precision."""
    ranks = pd.DataFrame(
        {
            "batch_size": frame["batch_size"].to_numpy(),
            "tokens": -frame["visual_tokens_per_image"].to_numpy(float),
            "precision": precision_rank(frame["precision"]).to_numpy(),
        }
    )
    ranked = ranks.sort_values(["batch_size", "tokens", "precision"], kind="stable")
    return frame.iloc[int(ranked.index[0])]


def find_row(frame: pd.DataFrame, wanted: Mapping[str, Any]) -> pd.Series:
    """The one row with these settings; fields not named are those of the baseline.

    Raises
    ------
    ConfigError
        If a field is unknown, or no such setting was measured.
    """
    rows = frame
    for name, value in wanted.items():
        check_name(name, SETTINGS)
        alike = matching(rows, {name: value})
        if alike.empty:
            have = ", ".join(sorted({spelled(v) for v in rows[name]}))
            raise ConfigError(f"no measured setting has {name}={value}; measured: {have}")
        rows = alike
    return baseline(rows)


def precision_rank(precisions: pd.Series) -> pd.Series:
    """0 for the most exact precision; those that are not known come last."""
    order = {name: i for i, name in enumerate(PRECISION_ORDER)}
    return precisions.map(order).fillna(len(order))


def _cheapest(rows: pd.DataFrame) -> pd.Series:
    return rows.iloc[int(rows[_cost_or_seconds(rows)].astype(float).argmin())]


def _best_two(rows: pd.DataFrame, today: pd.Series) -> tuple[pd.Series, pd.Series | None]:
    """The cheapest row, and the next one that is not today's.

    They change places where the rounds of a confirmation leave no doubt that the next is cheaper.
    """
    best = _cheapest(rows)
    others = rows[~rows["key"].isin([best["key"], today["key"]])]
    if others.empty:
        return best, None
    second = _cheapest(others)
    if head_to_head(today, second) and surely_cheaper(second, best):
        return second, best
    return best, second


def _cost_or_seconds(rows: pd.DataFrame) -> str:
    """The column of costs, or of seconds where there is no price."""
    try:
        return cost_column(rows)
    except ConfigError:
        return "s_per_100_images"


def _ruled_out(
    rows: pd.DataFrame, today: pd.Series, limits: Mapping[str, float | None]
) -> dict[str, pd.Series]:
    """For each limit, which rows do not pass it; what is unknown does not.

    More failed items than today are named only where there are rows with more.
    """
    passes = {  # NaN passes none of them
        "min_quality": lambda limit: rows["quality"].astype(float) >= limit - 1e-9,
        "max_vram_gib": lambda limit: peak_memory_bytes(rows) / 2**30 <= limit,
        "max_ttft_s": lambda limit: rows["ttft_p95_s"].astype(float) <= limit,
        "max_failed_share": lambda limit: rows["failed_share"].astype(float) <= limit + 1e-9,
    }
    found = {name: ~passes[name](limit) for name, limit in limits.items() if limit is not None}
    if "max_failed_share" not in found:
        more = ~passes["max_failed_share"](float(today["failed_share"]) + MORE_FAILED)
        found |= {"max_failed_share": more} if more.any() else {}
    return found


def _not_in(rows: pd.DataFrame, ruled_out: Mapping[str, pd.Series]) -> pd.DataFrame:
    """The rows that nothing rules out."""
    keep = pd.Series(True, index=rows.index)
    for rows_out in ruled_out.values():
        keep &= ~rows_out
    return rows[keep]


def peak_memory_bytes(frame: pd.DataFrame) -> pd.Series:
    """Peak bytes reserved on the GPU, or of the process where there is none; NaN if unknown."""
    reserved = pd.to_numeric(frame["peak_reserved_bytes"])
    return reserved.fillna(pd.to_numeric(frame["peak_process_bytes"]))
