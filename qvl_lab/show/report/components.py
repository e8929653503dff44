"""What sections are made of: headings, tables, pictures."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from functools import partial

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, Image, Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qvl_lab.analysis.money.recommend import Recommendation, measured, peak_memory_bytes
from qvl_lab.show.locale import has_text
from qvl_lab.show.quantities import amount, number, one_question
from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.wording import resolution_order

#: All settings are shown up to this many; of more, today's and the recommended one.
_FEW_ROWS = 6


def section(context: ReportContext, heading: str, note: str | None = None) -> Markdown:
    """A heading, and a note under it."""
    text = f"### {context.say(heading)}"
    return Markdown(f"{text}\n\n{context.say(note)}" if note else text)


def plain(text: str) -> str:
    """Text for Markdown in which nothing is markup: names come from files that anyone can write."""
    return html.escape(text, quote=False).replace("$", r"\$")


def named_rows(advice: Recommendation) -> dict[str, pd.Series]:
    """Today's and the recommended setting by their texts; one row where they are the same."""
    if advice.best["key"] == advice.current["key"]:
        return {"row_today_recommended": advice.current}
    return {"row_today": advice.current, "row_recommended": advice.best}


def few_rows(context: ReportContext, advice: Recommendation) -> pd.DataFrame:
    """All measured settings, by resolution and batch size; of many today's and the recommended."""
    rows = measured(context.frame)
    if len(rows) > _FEW_ROWS:
        return pd.DataFrame(named_rows(advice).values())
    order = rows.assign(side=rows["resolution"].map(resolution_order))
    return rows.loc[order.sort_values(["precision", "side", "batch_size"], kind="stable").index]


def table(context: ReportContext, data: pd.DataFrame, names: Sequence[str] = ()) -> HTML:
    """A frame whose columns are keys of texts (or have none), and its rows too where named."""
    worded = data.rename(columns=lambda name: context.say(name) if has_text(name) else name)
    if names:
        worded.insert(0, "", [context.say(name) for name in names])
    return HTML(worded.to_html(index=False, border=0))


def folded(summary: str, *shown: HTML) -> HTML:
    """What only some readers want: behind a line that opens it."""
    inside = "".join(str(part.data) for part in shown)
    return HTML(f"<details><summary>{html.escape(summary)}</summary>{inside}</details>")


def settings_table(
    context: ReportContext, rows: pd.DataFrame, today: pd.Series, names: Sequence[str] = ()
) -> HTML:
    """Settings with their quality, if any is known, cost, speed and memory.

    Rows without ``names`` say which one is today's, which is recommended, which is ruled out.
    """
    listed = [row for _, row in rows.iterrows()]
    called = context.doubted if names else context.marked
    columns = {"column_setting": [called(row) for row in listed]}
    kinds = set(context.frame.loc[context.frame["quality"].notna(), "quality_kind"])
    if kinds:
        key = "column_agreement" if kinds == {"agreement"} else "column_quality"
        columns[key] = [context.scored(row, "quality") for row in listed]
    cost = "column_cost" if context.priced else "column_time"
    speed = "column_speed" if one_question(context.frame) else "column_speed_answers"
    columns |= {
        context.say(cost, unit=context.unit): [context.cost_of(row) for row in listed],
        "column_interval": [context.cost_interval(row) for row in listed],
        "column_change": [context.change(today, row) for row in listed],
        speed: [number(row["images_per_s"]) for row in listed],
    }
    if context.frame["ttft_s"].notna().any():
        columns["column_ttft"] = [
            "?" if pd.isna(row["ttft_s"]) else amount(row["ttft_s"], "ttft_s", context.lang)
            for row in listed
        ]
    columns["column_memory"] = [_gib(size) for size in peak_memory_bytes(rows)]
    return table(context, pd.DataFrame(columns), names)


def _gib(size: float) -> str:
    """ "3.12 GiB", which no line end parts; "?" if unknown."""
    return "?" if pd.isna(size) else f"{size / 2**30:.2f}\u00a0GiB"


def with_interval(
    row: pd.Series,
    column: str,
    spelled: Callable[[float], str] | None = None,
    unknown: str = "?",
) -> str:
    """A value and its interval: "2.10 (1.95–2.30)"; only itself where a bound is not known.

    By default as numbers, the bounds with as many decimals as the value.
    """
    spelled = spelled or partial(number, like=row[column])
    value, low, high = (row[column + end] for end in ("", "_low", "_high"))
    if pd.isna(value):
        return unknown
    known = pd.notna(low) and pd.notna(high)
    return f"{spelled(value)} ({spelled(low)}–{spelled(high)})" if known else spelled(value)


def picture(drawn: Figure | Axes) -> Image:
    """A figure as PNG, with its titles and axes as the alternative text; it is closed."""
    figure = drawn if isinstance(drawn, Figure) else drawn.get_figure()
    assert isinstance(figure, Figure)
    buffer = io.BytesIO()
    words = _in_words(figure)
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return Image(data=_small_png(buffer.getvalue()), alt=words)


def _in_words(figure: Figure) -> str:
    """What a figure shows, for whoever does not see it: its titles, then its axes."""
    said = [figure.get_suptitle(), *(ax.get_title() for ax in figure.axes)]
    said += [words for ax in figure.axes for words in (ax.get_xlabel(), ax.get_ylabel())]
    return "; ".join(dict.fromkeys(words.replace("\n", " ") for words in said if words))


def _small_png(data: bytes) -> bytes:
    """The same picture with a palette of 256 colours: a third of the size, no visible change."""
    from PIL import Image as Pillow

    with Pillow.open(io.BytesIO(data)) as image:
        small = image.convert("RGB").quantize(256, dither=Pillow.Dither.NONE)
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
