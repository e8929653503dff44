"""What caches save at the hit rates that were measured, and the rate from which each pays.

Costs are taken to fall along a straight line as hits rise, ``cost(h) = base - slope * h``: a hit
saves the same whichever request it is. A cache that holds ``images`` images takes a share of a
card's memory, and is charged that share of the card's hour; so it pays from the hit rate ``h`` at
which ``(1 + share) * cost(h)`` is what 100 images cost without a cache. Host memory, where whole
answers lie, is charged as if it were the card's: too much rather than too little.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from qvl_lab.analysis.money.cost import cost_column
from qvl_lab.analysis.stats.linear_fit import LinearFit
from qvl_lab.claims import claim
from qvl_lab.errors import ConfigError
from qvl_lab.hardware import find_gpu, gpu_table
from qvl_lab.models.architecture import Architecture, value_bytes
from qvl_lab.runs.records import Repeat, Run

CACHES = ("off", "features", "prefix", "features+prefix", "answers")
#: The article's claim for caching, a share (0-1), and how many images its ``lru_cache`` holds.
ARTICLE_SAVING = claim("cache_saving").number / 100
ARTICLE_IMAGES = int(claim("cache_entries").number)
#: Bytes of a kept answer: its key and what Python adds, and its text. Not measured, but taken
#: large: few tokens of the vocabulary are as long.
_ANSWER_BYTES, _ANSWER_TOKEN_BYTES = 512, 16
#: Settings of which a comparison of caches has one value each.
HELD = (
    *("environment", "model", "precision", "resolution", "batch_size"),
    *("max_new_tokens", "min_new_tokens", "plan"),
)


def cache_columns(run: Run) -> dict[str, float | None]:
    """What a run's row says about its caches besides the hits that each counted.

    ``image_hit_rate`` (0-1): the share of requests whose image the vision tower did not see for
    them, because its features, its prefix or the whole answer was remembered; of all repeats.
    ``encoder_bytes_per_image``, ``prefix_bytes_per_image``, ``response_bytes_per_image``: memory
    that each cache takes. None where the cache was off or the run does not tell.
    """
    done = [repeat for repeat in run.repeats if repeat.answered and repeat.work]
    row: dict[str, float | None] = {"image_hit_rate": None}
    if done:
        seen = sum(repeat.work["images"] for repeat in done)
        row["image_hit_rate"] = max(0.0, 1 - seen / sum(repeat.answered for repeat in done))
    sizes = [_bytes_per_image(run, repeat) for repeat in done]
    for name in ("encoder", "prefix", "response"):
        known = [size[name] for size in sizes if name in size]
        row[f"{name}_bytes_per_image"] = max(known) if known else None
    return row


def _bytes_per_image(run: Run, repeat: Repeat) -> dict[str, float]:
    """What one pass tells of the bytes that an image takes in each cache."""
    found: dict[str, float] = {}
    caches = repeat.caches
    if seen := repeat.work["images"]:
        if caches.get("encoder_bytes"):
            found["encoder"] = caches["encoder_bytes"] / seen
        if "response_misses" in caches:
            tokens = repeat.new_tokens / repeat.answered
            found["response"] = _ANSWER_BYTES + _ANSWER_TOKEN_BYTES * tokens
    token_bytes = _token_bytes(run) if caches.get("prefix_hits") else None
    if token_bytes is not None:
        block = run.config["block_size"]
        tokens = caches["prefix_tokens_saved"] / caches["prefix_hits"]
        found["prefix"] = math.ceil(tokens / block) * block * token_bytes
    return found


def _token_bytes(run: Run) -> int | None:
    """Bytes of a token's keys and values; None for a model whose sizes are not on record."""
    try:
        sizes = Architecture.from_dict(run.architecture)
    except ConfigError:
        return None
    return sizes.kv_bytes_per_token(
        value_bytes(run.resolved["precision"], run.resolved["device"])[1]
    )


def cache_of(row: pd.Series) -> str:
    """Which caches a row of a frame had: "off", "features", "features+prefix"."""
    answers = row["response_cache_entries"]
    on = {
        "features": not pd.isna(row["encoder_cache_gib"]),
        "prefix": row["prefix_cache"] is True or row["prefix_cache"] == 1,
        "answers": not pd.isna(answers) and answers > 0,
    }
    return "+".join(name for name, is_on in on.items() if is_on) or "off"


def hit_points(frame: pd.DataFrame, column: str | None = None) -> pd.DataFrame:
    """What each cache cost at the hit rates that were measured.

    Parameters
    ----------
    frame : DataFrame
        Rows of the fast engine, such as :func:`qvl_lab.hit_rates` measures; others are left out.
    column : str, optional
        What is compared, lower being better; by default the cost per 100 images.

    Returns
    -------
    DataFrame
        ``cache`` (see :func:`cache_of`), ``hit_rate`` (``image_hit_rate``, 0-1), ``cost`` with
        ``low`` and ``high`` of its 95% interval over repeats, ``saving`` against the same
        requests without a cache (a share; NaN if that was not measured), ``workload``.

    Raises
    ------
    ConfigError
        If no row can be used, or rows differ in more than workload and caches.
    """
    column = column or cost_column(frame)
    rows = frame[(frame["status"] == "ok") & (frame["engine"] == "fast")]
    rows = rows[rows["image_hit_rate"].notna()]
    if rows.empty:
        raise ConfigError(
            "the frame has no measured row of the fast engine; measure with 'qvl-lab hit-rates'"
        )
    for name in HELD:
        values = list(dict.fromkeys(rows[name].map(str)))
        if len(values) > 1:
            raise ConfigError(
                f"caches compare at one {name}, and the frame has {', '.join(values[:4])}; "
                f"choose one: frame[frame[{name!r}] == ...]"
            )
    points = pd.DataFrame({"cache": [cache_of(row) for _, row in rows.iterrows()]}, rows.index)
    points["hit_rate"] = rows["image_hit_rate"].astype(float)
    for name, end in {"cost": "", "low": "_low", "high": "_high"}.items():
        points[name] = pd.to_numeric(rows[column + end]).astype(float)
    points["workload"] = rows["workload_fingerprint"]
    without = points[points["cache"] == "off"].groupby("workload")["cost"].median()
    points["saving"] = 1 - points["cost"] / points["workload"].map(without)
    order = points["cache"].map({name: i for i, name in enumerate(CACHES)})
    return points.assign(order=order).sort_values(["order", "hit_rate"]).drop(columns="order")


def break_even(
    frame: pd.DataFrame,
    *,
    column: str | None = None,
    images: int = ARTICLE_IMAGES,
    memory_gb: float | None = None,
    per_gib_hour: float | None = None,
    claim: float = ARTICLE_SAVING,
) -> pd.DataFrame:
    """From which hit rate each cache pays for its memory, and reaches a claimed saving.

    Parameters
    ----------
    frame, column
        See :func:`hit_points`.
    images : int
        How many the cache holds.
    memory_gb : float, optional
        Memory of the card in 1e9 bytes; by default that of the GPU that is priced, or else of
        the GPU that was measured.
    per_gib_hour : float, optional
        What a GiB of memory costs for an hour, in the frame's currency, instead of the share of
        the card's hour.
    claim : float
        Share of the cost that was claimed to be saved.

    Returns
    -------
    DataFrame
        A row per ``cache`` with: ``points``; ``base`` and ``slope`` of its line, with ``_low``
        and ``_high``; ``highest_hit_rate`` that was measured and ``highest_saving`` there (a
        share of the cost without a cache); ``bytes_per_image``, ``held_bytes``;
        ``memory_share`` and ``memory_cost``, what that memory adds per 100 images where nothing
        is hit; ``break_even`` and ``claim_from`` (hit rates) with ``_low`` and ``_high``.
        ``break_even`` is NaN if even a hit rate of 1 would not pay, or the memory is not known;
        ``claim_from`` if no hit rate up to the highest measured one reaches the claim; a
        ``_high`` if that may be so. ``attrs`` holds ``reference``, the mean cost without a
        cache, with ``reference_low`` and ``reference_high``, and ``claim`` and ``images``.

    Raises
    ------
    ConfigError
        As :func:`hit_points`; if nothing was measured without a cache; or a number is out of
        bounds.
    """
    _check(images=images, memory_gb=memory_gb, per_gib_hour=per_gib_hour, claim=claim)
    column = column or cost_column(frame)
    points = hit_points(frame, column)
    off = points.loc[points["cache"] == "off", "cost"]
    if off.empty:
        raise ConfigError("nothing was measured without a cache; measure 'off' too")
    reference, variance = float(off.mean()), None if len(off) < 2 else float(off.var()) / len(off)
    price = _share_of_gib(frame, memory_gb, per_gib_hour)
    sizes = _image_bytes(frame)
    rows = []
    for cache, mine in points[points["cache"] != "off"].groupby("cache", sort=False):
        held = sum(sizes.get(name, math.nan) for name in str(cache).split("+")) * images
        share = held / 2**30 * price
        row = {"cache": cache, "points": len(mine), "bytes_per_image": held / images}
        row |= {"held_bytes": held, "memory_share": share}
        rows.append(row | _line_columns(mine, reference, variance, share, claim))
    table = pd.DataFrame(rows, columns=[*_COLUMNS])
    half = _half_width(len(off), variance)
    table.attrs = {"reference": reference, "claim": claim, "images": images, "column": column}
    table.attrs |= {"reference_low": reference - half, "reference_high": reference + half}
    return table


_COLUMNS = (
    *("cache", "points", "base", "base_low", "base_high", "slope", "slope_low", "slope_high"),
    *("highest_hit_rate", "highest_saving", "bytes_per_image", "held_bytes", "memory_share"),
    *("memory_cost", "break_even", "break_even_low", "break_even_high"),
    *("claim_from", "claim_from_low", "claim_from_high"),
)


def _line_columns(
    mine: pd.DataFrame, reference: float, variance: float | None, share: float, claim: float
) -> dict[str, Any]:
    """The columns that come of one cache's points."""
    top = mine.sort_values("hit_rate").iloc[-1]
    row: dict[str, Any] = {"highest_hit_rate": top["hit_rate"], "highest_saving": top["saving"]}
    line = LinearFit.through(mine["hit_rate"], mine["cost"])
    if line is None:
        return row
    row |= {"base": line.base, "slope": line.slope, "memory_cost": share * line.base}
    for name, (low, high) in line.bounds().items():
        row |= {f"{name}_low": low, f"{name}_high": high}
    ends = {"break_even": (1 / (1 + share), 1.0), "claim_from": (1 - claim, top["hit_rate"])}
    for name, (part, most) in ends.items():
        found = line.reaches(part * reference, variance and part**2 * variance)
        keys = (name, f"{name}_low", f"{name}_high")
        row |= dict(zip(keys, _within(found, most), strict=True))
    return row


def _within(
    found: tuple[float | None, float | None, float | None], most: float
) -> tuple[float, float, float]:
    """A hit rate and its bounds from 0 to ``most``; NaN beyond, all three if the rate itself is."""
    value, *bounds = (math.nan if v is None or math.isnan(v) else max(0.0, v) for v in found)
    if not value <= most:
        return math.nan, math.nan, math.nan
    low, high = (bound if bound <= most else math.nan for bound in bounds)
    return value, low, high


def _image_bytes(frame: pd.DataFrame) -> dict[str, float]:
    """Bytes of an image by cache: the most of all rows, since one that had to let images go shows
    too little.
    """
    names = {"features": "encoder", "prefix": "prefix", "answers": "response"}
    columns = {cache: f"{name}_bytes_per_image" for cache, name in names.items()}
    return {cache: float(pd.to_numeric(frame[name]).max()) for cache, name in columns.items()}


def _share_of_gib(
    frame: pd.DataFrame, memory_gb: float | None, per_gib_hour: float | None
) -> float:
    """What a GiB costs as a share of what the whole machine does; NaN if not known."""
    if per_gib_hour is not None:
        if "cost_per_hour" not in frame.attrs:
            raise ConfigError("per_gib_hour needs a priced frame; call price(frame, gpu=...)")
        return per_gib_hour / float(frame.attrs["cost_per_hour"])
    memory_gb = memory_gb or card_memory_gb(frame)
    return math.nan if memory_gb is None else 2**30 / (memory_gb * 1e9)


def card_memory_gb(frame: pd.DataFrame) -> float | None:
    """Memory of the GPU that is priced, or else was measured, in 1e9 bytes; None if unknown."""
    priced = (frame.attrs.get("price") or {}).get("gpu")
    measured = frame["env_gpu"].dropna() if "env_gpu" in frame else pd.Series(dtype=object)
    gpu = gpu_table().get(str(priced)) or find_gpu(next(iter(measured), None))
    return gpu.memory_gb if gpu else None


def _half_width(count: int, variance: float | None) -> float:
    """Half of a mean's 95% interval; NaN where one value tells nothing."""
    from scipy.stats import t

    return math.nan if variance is None else float(t.ppf(0.975, count - 1)) * math.sqrt(variance)


def _check(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not (value > 0 and np.isfinite(value)):
            raise ConfigError(f"{name} must be a number above 0, not {value!r}")
    if not numbers["claim"] or numbers["claim"] >= 1:
        raise ConfigError(f"claim must be a share from 0 to 1, not {numbers['claim']!r}")
