"""The one table of tasks: their names, how their answers are scored, how large the article's
images for them are.
"""

from __future__ import annotations

from dataclasses import dataclass

from qvl_lab.claims import claim

#: The task of items that name none.
NO_TASK = "none"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A kind of question.

    Attributes
    ----------
    name : str
        As workloads, columns and settings call it.
    en, zh : str
        As pages in English and Chinese call it.
    aliases : tuple of str
        Other names that a workload may give it, in either language and in lower case.
    metric : str
        The metric that scores its answers, unless the user names another or they are boxes.
    article_kind : str or None
        Which of the article's three kinds it belongs to; None if to none of them.
    """

    name: str
    en: str
    zh: str
    aliases: tuple[str, ...] = ()
    metric: str = "exact_match"
    article_kind: str | None = None


_DETECTION, _DESCRIPTION, _FINE_ANALYSIS = "detection", "description", "fine_analysis"
TASKS = (
    Task(name=NO_TASK, en="no task", zh="无任务"),
    Task(
        name=_DETECTION,
        en="detection",
        zh="检测",
        aliases=("检测", "目标检测"),
        article_kind=_DETECTION,
    ),
    Task(
        name="locate",
        en="locate",
        zh="定位",
        aliases=("定位",),
        metric="box_accuracy",
        article_kind=_DETECTION,
    ),
    Task(
        name="grounding",
        en="grounding",
        zh="定位（grounding）",
        metric="box_accuracy",
        article_kind=_DETECTION,
    ),
    Task(name="count", en="count", zh="计数", aliases=("计数",), article_kind=_DETECTION),
    Task(
        name=_DESCRIPTION,
        en="description",
        zh="描述",
        aliases=("描述", "图像描述", "describe"),
        metric="token_f1",
        article_kind=_DESCRIPTION,
    ),
    Task(
        name="caption",
        en="caption",
        zh="图片说明",
        metric="chrf",
        article_kind=_DESCRIPTION,
    ),
    Task(
        name="colour",
        en="colour",
        zh="颜色",
        aliases=("color", "颜色"),
        article_kind=_DESCRIPTION,
    ),
    Task(
        name=_FINE_ANALYSIS,
        en="fine analysis",
        zh="精细分析",
        aliases=("精细分析", "细粒度分析", "fine"),
        metric="anls",
        article_kind=_FINE_ANALYSIS,
    ),
    Task(
        name="ocr",
        en="OCR",
        zh="文字识别",
        aliases=("文字识别",),
        metric="anls",
        article_kind=_FINE_ANALYSIS,
    ),
    Task(name="read", en="read", zh="读取文字", article_kind=_FINE_ANALYSIS),
    Task(name="read_large", en="read, large print", zh="大字编号", article_kind=_FINE_ANALYSIS),
    Task(name="read_small", en="read, small print", zh="小字编号", article_kind=_FINE_ANALYSIS),
    Task(name="total", en="receipt total", zh="收据合计", article_kind=_FINE_ANALYSIS),
    Task(name="qa", en="question answering", zh="问答", metric="token_f1"),
    Task(name="vqa", en="visual questions", zh="视觉问答"),
    Task(name="yes_no", en="yes or no", zh="是非判断"),
)
#: Every name and alias, in lower case, to its task.
BY_NAME = {name: task for task in TASKS for name in (task.name, *task.aliases)}


def find_task(name: str) -> Task | None:
    """The task that a workload means by a name in English or Chinese; None if it is not known."""
    return BY_NAME.get(name.strip().casefold())


def article_resolutions() -> dict[str, int | str]:
    """The article's table: side of a square in pixels, or "native", for each of its three kinds."""
    kinds = (_DETECTION, _DESCRIPTION, _FINE_ANALYSIS)
    sides = {kind: claim(f"{kind}_resolution").numbers for kind in kinds}
    return {kind: int(side[0]) if side else "native" for kind, side in sides.items()}
