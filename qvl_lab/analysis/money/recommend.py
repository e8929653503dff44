"""What to run instead: the cheapest measured setting within limits, and what it saves."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from qvl_lab.analysis.frame import SETTINGS, with_defaults
from qvl_lab.analysis.money.cost import cost_column
from qvl_lab.analysis.stats.estimates import Estimate, paired_ratio
from qvl_lab.analysis.stats.intervals import Comparison, compare
from qvl_lab.config import check_name
from qvl_lab.errors import ConfigError, LimitError

#: From the most to the least exact; the default baseline is the first that was measured.
PRECISION_ORDER = ("fp32", "bf16", "fp16", "int8", "fp8")
#: The order in which levers are pulled from today's setting to the recommended one.
LEVERS = (
    *("batch_size", "cache_implementation", "engine", "prefix_cache"),
    *("attn_implementation", "precision"),
)
#: An agreement is with one of the rows that are alike in these.
REFERENCE_GROUP = (
    *("model", "revision", "max_new_tokens", "min_new_tokens"),
    *("workload_fingerprint", "environment"),
)

#: The fields that name a setting in a line.
_MAIN = ("engine", "precision", "resolution", "batch_size")


@dataclass(frozen=True, kw_only=True, repr=False)
class Step:
    """One lever pulled: which fields changed, and seconds per 100 images before and after."""

    changed: dict[str, Any]
    before_s: float
    after_s: float
    row: pd.Series

    def __repr__(self) -> str:
        changed = ", ".join(f"{name}={_spelled(value)}" for name, value in self.changed.items())
        return f"<Step {changed}: {self.before_s:.3g} to {self.after_s:.3g} s per 100 images>"


@dataclass(frozen=True, kw_only=True, repr=False)
class Recommendation:
    """A setting to move to.

    Attributes
    ----------
    current, best : Series
        Rows of the frame.
    saving : Estimate
        Share of the cost that goes away (0-1); see :func:`saving`. None bounds mean a single pass.
    confirmed : bool
        Whether both were measured head to head after they were chosen. The saving of a setting
        that was chosen for being the cheapest is a little too large until it is.
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
    min_quality : float or None
        The limit on quality that was kept, given or derived.
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
    min_quality: float | None = None

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
        setting = ", ".join(f"{n}={_spelled(self.best[n])}" for n in _MAIN if n in self.best)
        return f"<Recommendation {setting}: saves {self.saving.value:.0%}{sure}{noise}>"

    def _repr_html_(self) -> str:
        table: str = self.frame().T.to_html(border=0, float_format="{:.4g}".format, na_rep="")
        return f"{table}<p>{html.escape(repr(self)[1:-1])}</p>"


def recommend(
    frame: pd.DataFrame,
    *,
    current: Mapping[str, Any] | None = None,
    hold: Sequence[str] | None = None,
    min_quality: float | None = None,
    max_quality_loss: float = 0.02,
    max_vram_gib: float | None = None,
    max_ttft_s: float | None = None,
) -> Recommendation:
    """The cheapest setting within limits, compared with today's.

    Parameters
    ----------
    frame : DataFrame
        From ``Runs.frame()``, priced or not: with one price, money goes as seconds.
    current : mapping, optional
        Fields of today's setting, ``{"batch_size": 1, "precision": "fp32"}``. By default the
        serial run at the largest resolution and most exact precision measured.
    hold : sequence of str, optional
        Fields that must stay as they are. By default nothing, but the resolution where quality is
        not known: what fewer pixels would lose is then not known either.
    min_quality : float, optional
        Limit on quality (0-1). By default today's less ``max_quality_loss``, where it is known.
    max_vram_gib, max_ttft_s : float, optional
        Limits on peak memory (reserved by torch; process memory on a CPU) and on the time to first
        token of 95% of the items, waiting included (``ttft_p95_s``). A setting whose value is
        unknown does not pass a limit; in files of before version 0.1 the latter is.

    Raises
    ------
    ConfigError
        If nothing was measured, ``current`` names no measured setting, or quality is limited by
        no number from 0 to 1 or not known.
    LimitError
        If no setting passes.
    """
    rows = measured(frame)
    today = find_row(rows, current) if current else baseline(rows)
    if min_quality is not None:
        if not 0 <= min_quality <= 1:
            raise ConfigError(f"min_quality must be a number from 0 to 1, not {min_quality!r}")
        with_quality(rows)
    elif pd.notna(today["quality"]):
        min_quality = float(today["quality"]) - max_quality_loss
    limits = {"min_quality": min_quality, "max_vram_gib": max_vram_gib, "max_ttft_s": max_ttft_s}
    passing, excluded = _within(rows, limits)
    if hold is None:
        hold = () if min_quality is not None else ("resolution",)
    kept = passing
    for name in hold:
        check_name(name, SETTINGS)
        kept = matching(kept, {name: today[name]})
    if kept.empty:
        raise LimitError(_nothing_passes(rows, excluded, () if passing.empty else hold))
    best = _cheapest(kept)
    others = kept[~kept["key"].isin([best["key"], today["key"]])]
    cheaper = _cheapest(_within(rows, limits | {"min_quality": None})[0])
    return Recommendation(
        current=today,
        best=best,
        saving=saving(today, best),
        confirmed=is_confirmed(today, best),
        steps=steps(rows, today, best),
        held=tuple(hold),
        excluded=excluded,
        cheaper=None if cheaper["key"] == best["key"] else cheaper,
        runner_up=None if others.empty else _cheapest(others),
        quality=quality_difference(today, best),
        min_quality=min_quality,
    )


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
        _spelled(before[name]) != _spelled(after[name]) for name in shared
    ):
        return None
    first, second = (list(found.values()) for found in scores)
    return compare(first, second)


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
            have = ", ".join(sorted({_spelled(v) for v in rows[name]}))
            raise ConfigError(f"no measured setting has {name}={value}; measured: {have}")
        rows = alike
    return baseline(rows)


def is_confirmed(current: pd.Series, best: pd.Series) -> bool:
    """Whether the two were measured head to head after they were chosen."""
    return len(_pairs(current, best, "confirmed_s")[0]) >= 3


def _pairs(current: pd.Series, best: pd.Series, column: str) -> tuple[list[float], list[float]]:
    """Seconds per 100 images of both in the rounds that both took part in."""
    rounds = [row.get(column) for row in (current, best)]
    first, second = ({} if not isinstance(found, Mapping) else found for found in rounds)
    shared = sorted(first.keys() & second.keys())
    return [first[n] for n in shared], [second[n] for n in shared]


def saving(current: pd.Series, best: pd.Series) -> Estimate:
    """The share saved, with its 95% interval.

    It comes from the rounds of a confirmation, if both rows have one, else from the rounds of
    the sweep, in either case pair by pair, so that what slows a whole round cancels. Rows that
    were not measured in rounds get the widest interval that both rows' intervals allow.
    """
    if current["key"] == best["key"]:
        return Estimate(0.0, 0.0, 0.0)
    for column in ("confirmed_s", "round_s"):
        before, after = _pairs(current, best, column)
        if len(before) >= 3:
            ratio = paired_ratio(before, after)
            assert ratio.low is not None
            assert ratio.high is not None
            return Estimate(1 - ratio.value, 1 - ratio.high, 1 - ratio.low)
    name = "s_per_100_images"
    bounds = [current[f"{name}_low"], current[f"{name}_high"], best[f"{name}_low"]]
    bounds.append(best[f"{name}_high"])
    value = 1 - best[name] / current[name]
    if any(pd.isna(b) for b in bounds):
        return Estimate(value, None, None)
    low, high, best_low, best_high = bounds
    return Estimate(value, 1 - best_high / low, 1 - best_low / high)


def steps(rows: pd.DataFrame, current: pd.Series, best: pd.Series) -> list[Step]:
    """Pull the levers one after another, in the order of LEVERS and then the other settings.

    A setting between that was not measured is passed over: its change joins the next one.
    """
    rows = with_defaults(rows)
    current, best = (with_defaults(row.to_frame().T).iloc[0] for row in (current, best))
    names = [*LEVERS, *(n for n in SETTINGS if n not in LEVERS)]
    differing = [n for n in names if _spelled(current[n]) != _spelled(best[n])]
    position, changed, result = current, {}, []
    for i, name in enumerate(differing):
        changed[name] = best[name]
        pulled, rest = differing[: i + 1], differing[i + 1 :]
        wanted = {n: best[n] for n in pulled} | {n: current[n] for n in rest}
        same = {n: current[n] for n in names if n not in differing}
        measured_between = matching(rows, wanted | same)
        if measured_between.empty:
            continue
        row = measured_between.iloc[0]
        result.append(
            Step(
                changed=changed,
                before_s=float(position["s_per_100_images"]),
                after_s=float(row["s_per_100_images"]),
                row=row,
            )
        )
        position, changed = row, {}
    return result


def matching(rows: pd.DataFrame, wanted: Mapping[str, Any]) -> pd.DataFrame:
    """The rows whose columns have these values, however pandas spells them."""
    for name, value in wanted.items():
        rows = rows[rows[name].map(_spelled) == _spelled(value)]
    return rows


def precision_rank(precisions: pd.Series) -> pd.Series:
    """0 for the most exact precision; those that are not known come last."""
    order = {name: i for i, name in enumerate(PRECISION_ORDER)}
    return precisions.map(order).fillna(len(order))


def _spelled(value: Any) -> str:
    """One spelling for equal settings: in a column, pandas makes None NaN and 4 4.0."""
    if pd.isna(value):
        return "None"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _cheapest(rows: pd.DataFrame) -> pd.Series:
    return rows.iloc[int(rows[_cost_or_seconds(rows)].astype(float).argmin())]


def _cost_or_seconds(rows: pd.DataFrame) -> str:
    """The column of costs, or of seconds where there is no price."""
    try:
        return cost_column(rows)
    except ConfigError:
        return "s_per_100_images"


def _within(
    rows: pd.DataFrame, limits: Mapping[str, float | None]
) -> tuple[pd.DataFrame, dict[str, int]]:
    passes = {  # NaN passes none of them
        "min_quality": lambda limit: rows["quality"].astype(float) >= limit - 1e-9,
        "max_vram_gib": lambda limit: peak_memory_bytes(rows) / 2**30 <= limit,
        "max_ttft_s": lambda limit: rows["ttft_p95_s"].astype(float) <= limit,
    }
    excluded: dict[str, int] = {}
    keep = pd.Series(True, index=rows.index)
    for name, limit in limits.items():
        if limit is not None:
            passing = passes[name](limit)
            excluded[name] = int((~passing).sum())
            keep &= passing
    return rows[keep], excluded


def peak_memory_bytes(frame: pd.DataFrame) -> pd.Series:
    """Peak bytes reserved on the GPU, or of the process where there is none; NaN if unknown."""
    reserved = pd.to_numeric(frame["peak_reserved_bytes"])
    return reserved.fillna(pd.to_numeric(frame["peak_process_bytes"]))
