"""The words of figures and report: English and Chinese, names of settings, written quantities."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from qvl_lab.analysis.frame import SETTINGS
from qvl_lab.analysis.money.cost import cost_column, symbol
from qvl_lab.analysis.money.recommend import PRECISION_ORDER, peak_memory_bytes
from qvl_lab.config import BY_TASK, FAST_ONLY
from qvl_lab.errors import ConfigError, UnknownNameError
from qvl_lab.show.prose import PROSE
from qvl_lab.tasks import article_resolutions, find_task

LANGUAGES = ("en", "zh")

#: key -> (English, Chinese); both take the same {placeholders}.
TEXTS: dict[str, tuple[str, str]] = {
    # settings
    "between": (" · ", "·"),  # a Chinese font draws the dot as wide as a character
    "batch": ("batch {n}", "批量 {n}"),
    "engine_fast": ("fast engine", "快速引擎"),
    "px": ("{n} px", "{n} px"),
    "native": ("native", "原始尺寸"),
    "by_task": ("by task", "按任务"),
    "by_task_article": ("by task (article)", "按任务（原文）"),
    "default": ("default", "默认"),
    "field_batch_size": ("batch", "批量"),
    "field_cache_implementation": ("KV cache", "KV 缓存"),
    "field_engine": ("engine", "引擎"),
    "field_prefix_cache": ("prefix cache", "前缀缓存"),
    "field_prefill_chunk": ("prefill chunk", "预填充分块"),
    "field_packing": ("packing", "打包"),
    "field_overlap": ("overlap", "重叠执行"),
    "field_cuda_graphs": ("CUDA graphs", "CUDA graph"),
    "field_fused_kernels": ("fused kernels", "算子融合"),
    "field_attn_implementation": ("attention", "注意力实现"),
    "field_precision": ("precision", "精度"),
    "field_resolution": ("resolution", "分辨率"),
    "field_max_new_tokens": ("max new tokens", "最大输出 token 数"),
    "field_min_new_tokens": ("min new tokens", "最小输出 token 数"),
    "field_memory_limit_gib": ("memory limit (GiB)", "内存上限（GiB）"),
    "field_model": ("model", "模型"),
    "field_device": ("device", "设备"),
    # quantities: panel titles and axes
    "batch_axis": ("batch size (images)", "批大小（张）"),
    "resolution_axis": ("resolution (px)", "分辨率（px）"),
    "images_per_s": ("Throughput", "吞吐量"),
    "images_per_s_axis": ("images per second", "吞吐量（张/秒）"),
    "s_per_100_images": ("Time per 100 images", "每 100 张图耗时"),
    "s_per_100_images_axis": ("seconds per 100 images", "每 100 张图耗时（秒）"),
    "ttft_s": ("Time to first token", "首 token 延迟（TTFT）"),
    "ttft_s_axis": ("time to first token (s)", "首 token 延迟（秒）"),
    "cost": ("Cost per 100 images", "每 100 张图成本"),
    "cost_axis": ("{unit} per 100 images", "每 100 张图成本（{unit}）"),
    "vram": ("Peak VRAM", "显存峰值"),
    "vram_axis": ("peak VRAM (GiB)", "显存峰值（GiB）"),
    "process_memory": ("Peak process memory", "进程内存峰值"),
    "process_memory_axis": ("peak process memory (GiB)", "进程内存峰值（GiB）"),
    "mixed_memory": ("Peak memory", "内存峰值"),
    "mixed_memory_axis": (
        "peak memory, VRAM or process (GiB)",
        "内存峰值，显存或进程（GiB）",
    ),
    # what became of a setting
    "resolution": ("resolution", "分辨率"),
    "precision": ("precision", "精度"),
    "oom": ("out of memory", "内存不足（OOM）"),
    "oom_region": ("some resolution is out of memory", "部分分辨率内存不足"),
    "skipped": ("skipped", "跳过"),
    "error": ("failed", "失败"),
    "cell_oom": ("OOM", "OOM"),
    "interval": ("95% interval over repeats", "重复测量的 95% 区间"),
    "not_measured": ("not measured", "未测量"),
    "nothing_measured": ("no setting was measured to the end", "没有任何配置完成测量"),
    # feasible
    "feasible_title": ("What fits in memory, and {what}", "可行配置与{what}"),
    "what_cost": ("what 100 images cost", "每 100 张图成本"),
    "what_images_per_s": ("how fast it is", "吞吐量"),
    "limit_line": ("thick line: memory limit", "粗线：内存上限边界"),
    "best_of_cell": (
        "best of several settings per cell ({names})",
        "每格为多个配置中的最优值（{names}）",
    ),
    # stages
    "stages_title": ("Where the time of one image goes", "单张图片的耗时构成"),
    "stages_axis": ("seconds per image", "每张图耗时（秒）"),
    "stages_share_axis": ("share of an image's time (%)", "占单张耗时的比例（%）"),
    "seconds": ("{value} s", "{value} 秒"),
    "stage_decode_image": ("decode image", "图像解码"),
    "stage_preprocess": ("preprocess", "预处理"),
    "stage_transfer": ("transfer", "数据传输"),
    "stage_vision": ("vision encoder", "视觉编码"),
    "stage_prefill": ("prefill", "预填充（prefill）"),
    "stage_decode": ("decode tokens", "生成（decode）"),
    "stage_detokenize": ("detokenize", "token 转文本"),
    "stage_other": ("other", "其他"),
    "part_patch_embed": ("patch embedding", "图块嵌入"),
    "part_merger": ("mergers", "融合层（merger）"),
    "part_layers": ("layers", "语言模型各层"),
    "part_lm_head": ("LM head", "输出层（LM head）"),
    "part_sampling": ("sampling", "采样"),
    "timeline_title": ("When each stage ran", "各阶段的运行时间线"),
    "timeline_axis": ("seconds since the start", "距开始的秒数"),
    "limits_title": ("Time by stage, and the least it takes", "各阶段耗时与最短所需时间"),
    "limits_axis": ("seconds of one pass over {n} images", "一轮 {n} 张图的耗时（秒）"),
    "least_time": ("least time at the device's rate", "按设备速率的最短时间"),
    "times_least": ("{times}x the least", "最短时间的 {times} 倍"),
    "at_ceiling": ("at the ceiling", "已达上限"),
    "share_of_compute": ("{share} of compute", "算力的 {share}"),
    "share_of_memory": ("{share} of bandwidth", "带宽的 {share}"),
    # ablation
    "ablation_title": (
        "What each lever of the fast engine is worth · {images}",
        "快速引擎各优化项的效果·{images}",
    ),
    "ablation_stock_serial": ("stock engine, one at a time", "原生引擎，逐张处理"),
    "ablation_stock": ("stock engine, batch {n}", "原生引擎，批量 {n}"),
    "ablation_nothing": ("fast engine, none of these", "快速引擎，全部关闭"),
    "ablation_alone": ("only {lever}", "仅开：{lever}"),
    "ablation_all_but": ("all but {lever}", "仅关：{lever}"),
    "ablation_all": ("fast engine, all of these", "快速引擎，全部开启"),
    "times_as_fast": ("{times}x as fast as none", "速度为全关时的 {times} 倍"),
    "times_the_time": ("{times}x the time of all", "耗时为全开时的 {times} 倍"),
    "log_axis": ("{axis}, logarithmic", "{axis}，对数坐标"),
    # caches over hit rate
    "hits_title": ("{cost} and hit rate", "{cost}与缓存命中率"),
    "hits_axis": (
        "requests whose image was not seen anew, as measured (%)",
        "无需重新编码图像的请求占比，实测（%）",
    ),
    "cache": ("cache", "缓存"),
    "cache_off": ("none: mean, 95% interval", "无缓存：均值与 95% 区间"),
    "cache_features": ("vision features", "视觉特征"),
    "cache_prefix": ("prefix (KV of the image)", "前缀（图像的 KV）"),
    "cache_features+prefix": ("features and prefix", "特征与前缀"),
    "cache_answers": ("whole answers", "完整答案"),
    "hits_claim": ("the article's claim: {percent}", "原文的说法：{percent}"),
    "hits_break_even": (
        "pays for {n} images' memory from here",
        "从此处起抵得上 {n} 张图的缓存成本",
    ),
    # waterfall
    "today": ("today", "当前"),
    "recommended": ("recommended", "推荐"),
    "today_recommended": ("today and recommended", "当前即推荐"),
    "waterfall_title": (
        "From today's setting to the recommended one: {change}",
        "从当前配置到推荐配置：{change}",
    ),
    "waterfall_same": (
        "Today's setting is already the recommended one",
        "当前配置已是推荐配置",
    ),
    "waterfall_percent": (
        "percent: against the bar before; last bar against today",
        "百分比：相对前一步；末柱相对当前",
    ),
    # tradeoff
    "tradeoff_title": ("{cost} and {memory}", "{cost}与{memory}"),
    "front": ("Pareto front", "帕累托前沿"),
    "size_is_batch": ("larger marker: larger batch", "标记越大，批量越大"),
    "named_point": ("{who}: {amount}", "{who}：{amount}"),
    # quality
    "quality_title": ("Quality by resolution", "各分辨率下的质量"),
    "quality_axis": ("quality (0–1)", "质量（0–1）"),
    "answers_axis": ("mean score (0–1)", "平均得分（0–1）"),
    "agreement_axis": (
        "agreement with the reference setting (0–1)",
        "与参考配置的一致度（0–1）",
    ),
    "side_axis": (
        "resolution (px: side of the square with as many pixels)",
        "分辨率（px：等像素正方形的边长）",
    ),
    "items": ("{n} items", "{n} 题"),
    "item": ("{n} item", "{n} 题"),
    "interval_items": ("95% interval over items", "95% 区间（逐题得分）"),
    "task": ("task", "任务"),
    "tasks_mean": ("mean of the tasks", "各任务平均"),
    "quality_cost_title": ("{cost} and quality of the answers", "{cost}与答案质量"),
    "no_quality": ("quality was not measured", "未测量质量"),
    "min_quality_line": ("lowest quality allowed: {value}", "质量下限：{value}"),
    "loss_title": (
        "Change in quality by lower precision, against {against}",
        "低精度相对 {against} 的质量变化",
    ),
    "quality_loss_axis": (
        "change in quality (percentage points)",
        "质量变化（百分点）",
    ),
    "answers_loss_axis": (
        "change in mean score (percentage points)",
        "平均得分变化（百分点）",
    ),
    "agreement_loss_axis": (
        "change in agreement (percentage points)",
        "一致度变化（百分点）",
    ),
    "one_precision": (
        "no setting was measured in two precisions: nothing to compare",
        "没有配置用两种精度测量，无法比较",
    ),
    "beyond_noise": ("difference with p < 0.05", "差异 p < 0.05"),
    "within_noise": ("within noise (p ≥ 0.05)", "在噪声范围内（p ≥ 0.05）"),
    **PROSE,
}


def label(key: str, lang: str, **values: Any) -> str:
    """The text of ``key`` in a language, with its placeholders filled.

    Raises
    ------
    UnknownNameError
        If the language is not one of LANGUAGES.
    KeyError
        If there is no such text, or a placeholder has no value.
    """
    if lang not in LANGUAGES:
        raise UnknownNameError("language", lang, LANGUAGES)
    return TEXTS[key][LANGUAGES.index(lang)].format(**values)


def resolution(value: Any, lang: str) -> str:
    """ "512 px", "native", "by task"."""
    name = str(value)
    if name.isdigit():
        return label("px", lang, n=name)
    return label(name, lang) if name in ("native", "by_task", "by_task_article") else name


def setting(row: pd.Series, lang: str) -> str:
    """A frame's row in short: "fp32 · 1024 px · batch 1"; the stock engine is not named."""
    return label("between", lang).join(setting_lines(row, lang))


def setting_lines(row: pd.Series, lang: str) -> list[str]:
    """The same in two lines, images and engine."""
    engine = [label("engine_fast", lang)] if row.get("engine") == "fast" else []
    batch = label("between", lang).join([label("batch", lang, n=row["batch_size"]), *engine])
    return [images_at(row, lang), batch]


def images_at(row: pd.Series, lang: str) -> str:
    """A row's precision and resolution, whatever its batch size: "fp32 · 1024 px"."""
    side = row["resolution"]
    if side == BY_TASK and is_the_articles(row.get("task_resolutions")):
        side = "by_task_article"
    return label("between", lang).join([str(row["precision"]), resolution(side, lang)])


def is_the_articles(table: Any) -> bool:
    """Whether a frame's ``task_resolutions`` is the article's table; it may know more tasks."""
    sides = json.loads(table) if isinstance(table, str) else {}
    return article_resolutions().items() <= sides.items()


def task(name: str, lang: str) -> str:
    """A task by its name in this language, if it is a known one."""
    known = find_task(name)
    return name if known is None else known.zh if lang == "zh" else known.en


def changed(name: str, before: Any, after: Any, lang: str) -> str:
    """One field's change: "batch 1 → 32"; precision and resolution name themselves.

    A table of resolutions by task says nothing beyond the change of the resolution: "".
    """
    if name == "task_resolutions":
        return ""
    arrow = f"{_value(name, before, lang)} → {_value(name, after, lang)}"
    if name in ("precision", "resolution"):
        return arrow
    key = f"field_{name}"
    return f"{label(key, lang) if key in TEXTS else name} {arrow}"


def lever(name: str, batch: int, lang: str) -> str:
    """A lever of the fast engine that is on: "batch 8", "packing"."""
    if name == "batch_size":
        return label("batch", lang, n=batch)
    key = f"field_{name}"
    return label(key, lang) if key in TEXTS else name


def _value(name: str, value: Any, lang: str) -> str:
    if name == "resolution":
        return resolution(value, lang)
    return label("default", lang) if pd.isna(value) else str(value)


def number(value: float) -> str:
    """About three significant digits without an exponent: 1,234, 56.7, 3.10, 0.042."""
    size = abs(value)
    if size == 0 or size >= 100:
        return f"{value:,.0f}"
    decimals = 1 if size >= 10 else 2 if size >= 0.1 else 1 - math.floor(math.log10(size))
    return f"{value:.{decimals}f}"


def money(value: float, currency: str) -> str:
    """An amount with its currency's sign, the minus before it: "¥3.10", "−$0.42"."""
    return f"{'−' if value < 0 else ''}{symbol(currency)}{number(abs(value))}"


def percent(before: float, after: float) -> str:
    """A signed change; a decimal where rounding would say "nothing" or "everything"."""
    change = 100 * (after / before - 1)
    digits = 1 if 0 < abs(change) < 1 or -100 < change < -99 else 0
    sign = "+" if change > 0 else "−" if change < 0 else "±"
    return f"{sign}{abs(change):.{digits}f}%"


def points(value: float) -> str:
    """A difference of quality in signed percentage points: "−1.3"."""
    sign = "+" if value > 0 else "−" if value < 0 else "±"
    return f"{sign}{100 * abs(value):.1f}"


def score(value: Any) -> str:
    """A quality from 0 to 1: "0.95"; "?" if unknown."""
    return "?" if pd.isna(value) else f"{value:.2f}"


def amount(value: float, column: str, lang: str) -> str:
    """A value of a frame's cost or time column: "¥3.10", "12.3 s"."""
    if column.startswith("cost_"):
        return money(value, _currency(column))
    return label("seconds", lang, value=number(value))


def cost_or_time(frame: pd.DataFrame) -> str:
    """The frame's cost column, or its seconds per 100 images if it has not been priced."""
    try:
        return cost_column(frame)
    except ConfigError:
        return "s_per_100_images"


def money_sign(frame: pd.DataFrame) -> str:
    """The sign of the frame's money; "" if it has not been priced."""
    column = cost_or_time(frame)
    return symbol(_currency(column)) if column.startswith("cost_") else ""


def _currency(column: str) -> str:
    return column.split("_")[1].upper()  # cost_CUR_per_100_images


def title(frame: pd.DataFrame, metric: str, lang: str) -> str:
    """What a metric is called above a panel."""
    return label(_memory(frame) if metric == "vram" else metric, lang)


def axis(frame: pd.DataFrame, metric: str, lang: str) -> str:
    """What a metric is called beside an axis, with its unit."""
    key = _memory(frame) if metric == "vram" else metric
    return label(f"{key}_axis", lang, unit=money_sign(frame).strip())


def quality_axis(frame: pd.DataFrame, lang: str, *, loss: bool = False) -> str:
    """What quality is called beside an axis; the answers' truth is not a reference's agreement."""
    kinds = set(frame.loc[frame["quality"].notna(), "quality_kind"])
    kind = kinds.pop() if len(kinds) == 1 else "quality"
    return label(f"{kind}_loss_axis" if loss else f"{kind}_axis", lang)


def items(counts: pd.Series, lang: str) -> str:
    """How many items quality rests on: "60 items", or "58–60 items" where settings differ."""
    fewest, most = int(counts.min()), int(counts.max())
    n = str(most) if fewest == most else f"{fewest}–{most}"
    return label("item" if n == "1" else "items", lang, n=n)


def _memory(frame: pd.DataFrame) -> str:
    """Which memory :func:`peak_memory_bytes` gave; VRAM if none is known."""
    reserved = frame.loc[peak_memory_bytes(frame).notna(), "peak_reserved_bytes"].notna()
    if reserved.all():
        return "vram"
    return "mixed_memory" if reserved.any() else "process_memory"


def resolution_order(value: Any) -> tuple[int, int]:
    """Sorts numbers by size, then "native", then "by_task"."""
    name = str(value)
    return (0, int(name)) if name.isdigit() else ({"native": 1, "by_task": 2}.get(name, 3), 0)


def precisions(frame: pd.DataFrame) -> list[str]:
    """The frame's precisions, the most exact first."""
    names = {str(name) for name in frame["precision"]}
    known = [name for name in PRECISION_ORDER if name in names]
    return known + sorted(names - set(known))


def _in_short(column: pd.Series) -> pd.Series:
    """A column in words; long tables of resolutions are numbered."""
    if column.name != "task_resolutions":
        return column.map(str)
    tables = list(dict.fromkeys(value for value in column if isinstance(value, str)))
    return column.map(lambda value: str(tables.index(value) + 1) if value in tables else "-")


def differing(frame: pd.DataFrame, drawn: Sequence[str]) -> list[str]:
    """What tells rows apart besides the settings that a figure draws.

    Whether a row has a table of resolutions is told by its resolution; only tables differ here.
    """
    names = [n for n in (*SETTINGS, "workload", "environment") if n not in drawn and n in frame]
    tables = ["task_resolutions"] if "resolution" in drawn else []
    compared = {n: frame[n].dropna() if n in tables else frame[n] for n in names}
    fast = frame["engine"] == "fast" if "engine" in frame else slice(None)
    compared |= {n: compared[n][fast] for n in FAST_ONLY if n in compared}
    return [name for name, values in compared.items() if values.map(str).nunique() > 1]


def others(frame: pd.DataFrame, drawn: Sequence[str]) -> list[str]:
    """For each row what :func:`differing` finds, "bf16 · engine=stock"; "" if nothing.

    What a row leaves to its default, or its engine does not look at, is left out.
    """
    names = differing(frame, drawn)
    words = {
        n: frame[n].map(str) if n == "precision" else f"{n}=" + _in_short(frame[n]) for n in names
    }
    rows = [row for _, row in frame.iterrows()]
    return [
        " · ".join(words[n].iloc[i] for n in names if is_told(row, n)) for i, row in enumerate(rows)
    ]


def is_told(row: pd.Series, name: str) -> bool:
    """Whether a row's setting is worth a word: it is not the default, and its engine sees it."""
    return not pd.isna(row[name]) and is_seen(row, name)


def is_seen(row: pd.Series, name: str) -> bool:
    """Whether a row's engine looks at a setting."""
    return row.get("engine") != "stock" or name not in FAST_ONLY
