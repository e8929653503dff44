"""The words of figures and report, in English and Chinese, and how quantities are written."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from qvl_lab.analysis.cost import symbol
from qvl_lab.errors import UnknownNameError

LANGUAGES = ("en", "zh")

#: key -> (English, Chinese); both take the same {placeholders}.
TEXTS: dict[str, tuple[str, str]] = {
    # settings
    "batch": ("batch {n}", "批量 {n}"),
    "px": ("{n} px", "{n} px"),
    "native": ("native", "原始尺寸"),
    "by_task": ("by task", "按任务"),
    "default": ("default", "默认"),
    "field_batch_size": ("batch", "批量"),
    "field_cache_implementation": ("KV cache", "KV 缓存"),
    "field_engine": ("engine", "引擎"),
    "field_attn_implementation": ("attention", "注意力实现"),
    "field_precision": ("precision", "精度"),
    "field_resolution": ("resolution", "分辨率"),
    "field_max_new_tokens": ("max new tokens", "最大输出词元数"),
    "field_min_new_tokens": ("min new tokens", "最小输出词元数"),
    "field_memory_limit_gib": ("memory limit (GiB)", "内存上限（GiB）"),
    "field_model": ("model", "模型"),
    "field_device": ("device", "设备"),
    # quantities: panel titles and axes
    "batch_axis": ("batch size (images)", "批大小（张）"),
    "images_per_s": ("Throughput", "吞吐量"),
    "images_per_s_axis": ("images per second", "吞吐量（张/秒）"),
    "s_per_100_images": ("Time per 100 images", "每 100 张图耗时"),
    "s_per_100_images_axis": ("seconds per 100 images", "每 100 张图耗时（秒）"),
    "ttft_s": ("Time to first token", "首词元延迟（TTFT）"),
    "ttft_s_axis": ("time to first token (s)", "首词元延迟（秒）"),
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
    "interval": ("bars: 95% interval over repeats", "误差线：多次重复的 95% 区间"),
    "not_measured": ("not measured", "未测量"),
    "nothing_measured": ("no setting was measured to the end", "没有任何配置完成测量"),
    "nothing_given": ("no settings given", "没有可展示的配置"),
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
    "stage_prefill": ("prefill", "预填充"),
    "stage_decode": ("decode tokens", "逐词生成"),
    "stage_detokenize": ("detokenize", "文本还原"),
    "stage_other": ("other", "其他"),
    # waterfall
    "today": ("today", "当前"),
    "recommended": ("recommended", "推荐"),
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
    "tradeoff_title": ("Cost against memory", "成本与内存的权衡"),
    "tradeoff_title_time": ("Time against memory", "耗时与内存的权衡"),
    "front": ("Pareto front (low cost, low memory)", "帕累托前沿（低成本、低内存）"),
    "front_time": ("Pareto front (little time, low memory)", "帕累托前沿（低耗时、低内存）"),
    "size_is_batch": ("larger marker: larger batch", "标记越大，批量越大"),
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
    return label(name, lang) if name in ("native", "by_task") else name


def setting(row: pd.Series, lang: str) -> str:
    """A frame's row in short: "fp32 · 1024 px · batch 1"."""
    batch = label("batch", lang, n=row["batch_size"])
    return " · ".join([str(row["precision"]), resolution(row["resolution"], lang), batch])


def changed(name: str, before: Any, after: Any, lang: str) -> str:
    """One field's change: "batch 1 → 32"; precision and resolution name themselves."""
    arrow = f"{_value(name, before, lang)} → {_value(name, after, lang)}"
    if name in ("precision", "resolution"):
        return arrow
    key = f"field_{name}"
    return f"{label(key, lang) if key in TEXTS else name} {arrow}"


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
