"""The report's section about the levers of the fast engine."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from typing import Any

import pytest
from IPython.display import HTML, Image, Markdown

from qvl_lab.config import Fast
from qvl_lab.runs.store import Runs
from qvl_lab.show.report import sections
from qvl_lab.show.report.review import review

#: At this price a second costs a cent.
PRICE = {"per_hour": 36.0, "currency": "CNY"}
LEVERS = ["batch_size", *(f.name for f in fields(Fast) if f.default is True)]


def section(page: Any) -> tuple[str, list[list[str]], int]:
    """The section's words, the rows of its table, and how many pictures it has."""
    shown = sections.ablation(page)
    words = "\n".join(part.data for part in shown if isinstance(part, Markdown))
    tables = "\n".join(part.data for part in shown if isinstance(part, HTML))
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"(?s)<tr>(.*?)</tr>", tables)]
    return words, [row for row in rows if row], sum(isinstance(p, Image) for p in shown)


def command(words: str) -> list[str]:
    written = re.search("```\n(.*)\n```", words, re.DOTALL)[1]
    return shlex.split(written.replace(" \\\n", ""))  # as a shell joins its lines


def test_levers_are_shown_with_what_they_gain_and_what_is_lost(ablated):
    words, rows, pictures = section(review(Runs(ablated()), **PRICE))
    assert pictures == 1
    factor = 2 ** len(LEVERS)
    assert f"100 images cost ¥6.40 with none of these levers and ¥{6.4 / factor:.2f} with" in words
    low, high = re.search(rf"{factor}\.?0* times as fast \((\S+) to (\S+)\)", words).groups()
    assert float(low) < factor < float(high)
    assert "\n- packing: several images and prompts" in words
    assert [row[0] for row in rows][:2] == ["batch 4", "packing"]
    assert len(rows) == len(LEVERS)
    for row in rows:
        assert row[1].startswith("0.31 (") and row[2] == "¥3.20"  # 320 s
        assert row[3].startswith("2.00 (1.9") and row[6].startswith("2.00 (1.9")
        assert row[5] == f"¥{12.8 / factor:.2f}"


def test_a_single_repeat_has_no_interval(ablated, make_repeat):
    once = [make_repeat(10.0)]
    words, rows, _ = section(review(Runs(ablated(repeats=once)), **PRICE))
    assert "1.00 times as fast, from a single repeat, so without an interval." in words
    assert rows[0] == ["batch 4", "1.00", "¥1.00", "1.00", "1.00", "¥1.00", "1.00"]


def test_what_is_missing_is_a_question_mark(ablated):
    runs = ablated()[:-1]
    words, rows, _ = section(review(Runs(runs), **PRICE))
    assert "100 images cost" not in words
    assert {row[6] for row in rows} == {"?"}
    assert all(row[3].startswith("2.00") for row in rows)
    line = command(words)  # though the row of all levers is missing
    assert line[line.index("--batch-size") + 1] == "4"
    assert line[line.index("--max-new-tokens") + 1] == "64"


def test_the_command_has_levers_setting_and_plan(ablated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = {"repeats": 5, "warmup": 1, "timed_items": None, "batches": 2, "quality": False}
    plan |= {"seed": 0, "metrics": {"tint": "anls"}}
    runs = ablated(["packing", "overlap"], plan=plan, precision="auto", device="cpu")
    line = command(section(review(Runs(runs), **PRICE))[0])
    assert line[:2] == ["qvl-lab", "ablate"]
    options = dict(zip(line[2::2], line[3::2], strict=False))
    assert options["--levers"] == "packing,overlap"
    assert options["--workload"] == "hand" and options["--items"] == "10"
    assert options["--model"] == "tiny" and options["--precision"] == "auto"
    assert options["--device"] == "cpu" and options["--resolution"] == "256"
    assert options["--batches"] == "2" and options["--repeats"] == "5"
    assert "--warmup" not in line and "--set" not in line
    assert line[line.index("--no-quality") + 1 :] == [
        *("--metric", "tint=anls"),
        *("--out", "ablation.jsonl"),
    ]


def test_the_command_keeps_other_settings_and_resolutions_by_task(ablated):
    sides = {"read": 512}
    runs = ablated(["packing"], block_size=32, resolution="by_task", task_resolutions=sides)
    line = " ".join(command(section(review(Runs(runs), **PRICE))[0]))
    assert "--resolution by_task " in line
    assert " --set block_size=32 --task-resolution read=512 --levers packing " in line


@pytest.mark.slow
def test_the_section_is_in_chinese_too(ablated):
    words, rows, _ = section(review(Runs(ablated()), lang="zh", **PRICE))
    assert "快速引擎各项优化的收益" in words and "全部关闭时每 100 张图 ¥6.40" in words
    assert rows[0][0] == "批量 4" and rows[1][0] == "打包"
    assert "qvl-lab ablate" in words


@pytest.mark.parametrize("levers", [[], ["nothing"]])
def test_without_an_ablation_there_is_no_section(ablated, on_cpu, levers):
    runs = [on_cpu(1), on_cpu(4), on_cpu(4, engine="fast")]
    if levers:  # no lever alone, none missing: two settings far apart
        runs.append(next(run for run in ablated() if run.config.get("packing") is False))
    assert sections.ablation(review(Runs(runs), **PRICE)) == []
