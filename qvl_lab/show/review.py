"""The content of a cost review: from a run file and a price to sentences, tables and figures.

The report notebook calls these in order; each returns something that Jupyter displays.
"""

from __future__ import annotations

import html
import io
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, Image, Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qvl_lab.analysis.cost import cost_column, find_price, price
from qvl_lab.analysis.frame import task_column
from qvl_lab.analysis.recommend import (
    Recommendation,
    baseline,
    find_row,
    measured,
    peak_memory_bytes,
    recommend,
)
from qvl_lab.analysis.stats import Estimate
from qvl_lab.analysis.tradeoffs import (
    Proposal,
    at_each_resolution,
    precision_loss,
    propose_resolutions,
)
from qvl_lab.config import BY_TASK, NATIVE, TASK_RESOLUTIONS, Config
from qvl_lab.engine.images import canonical_task, knows_task
from qvl_lab.errors import ConfigError, LimitError, UnknownNameError
from qvl_lab.hardware import find_gpu
from qvl_lab.records import environment_key
from qvl_lab.show import plots
from qvl_lab.show.fonts import figure_language
from qvl_lab.show.text import (
    amount,
    differing,
    is_the_articles,
    label,
    money,
    number,
    percent,
    points,
    resolution,
    setting,
)
from qvl_lab.show.text import task as task_name
from qvl_lab.sweeps.store import Runs

ARTICLE_GPU, ARTICLE_PROVIDER = "A10G", "article"
ARTICLE_CNY_PER_S = 0.8 / 60
#: Rows that differ in these answer different questions and are not compared.
_COMPARABLE = (
    *("model", "revision", "workload_fingerprint", "plan"),
    *("max_new_tokens", "min_new_tokens"),
)
#: Never varied to save money: answers of another length are other answers.
_HELD = ("max_new_tokens", "min_new_tokens")
_MOST_ROWS, _MOST_FAILURES = 12, 50
#: Options that the command line calls otherwise.
_FLAGS = {"exchange_rates": "--rate", "prices_file": "--prices"}


@dataclass(kw_only=True)
class Review:
    """Everything the report's pages draw on; made by :func:`review`."""

    runs: Runs
    frame: pd.DataFrame
    recommendation: Recommendation | None
    lang: str
    monthly_images: int
    options: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    # ---- the page a manager reads

    def title(self) -> str:
        """One line: what was measured where."""
        row = self.frame.iloc[0]
        return self._say("report_title", model=row["model"], device=self.device)

    def headline(self) -> Markdown:
        """What it costs today, what to run instead, how much that saves, how sure."""
        parts = [f"# {_plain(self.title())}", f"## {_plain(self._headline())}"]
        if self.recommendation:
            parts += [self._summary_table().to_html(index=False, border=0), *self._sentences()]
        parts += self._warnings()
        return Markdown("\n\n".join(parts))

    def _headline(self) -> str:
        found = self.recommendation
        if found is None:
            return self._say("headline_nothing")
        wanted, best = self.options.get("min_quality"), found.best["quality"]
        if wanted is not None and best < wanted - 1e-9:
            words = {"wanted": f"{wanted:g}", "best": self._score(best)}
            return f"{self._say('headline_unreached', **words)} {self._change(found)}"
        return self._change(found)

    def _change(self, found: Recommendation) -> str:
        """From today's cost to the recommended one."""
        words = {
            "today": self._cost(found.current),
            "best": self._cost(found.best),
            "setting": self._setting(found.best),
            "percent": f"{100 * found.saving.value:.0f}%",
        }
        if found.best["key"] == found.current["key"]:
            return self._say("headline_same", today=words["today"])
        if found.saving.low is None or found.saving.high is None:
            return self._say("headline_one_repeat", **words)
        bounds = (found.saving.low, found.saving.high)
        if found.saving.value < 0 and not found.within_noise:
            low, high = (f"{-100 * b:.0f}%" for b in reversed(bounds))
            words["percent"] = f"{-100 * found.saving.value:.0f}%"
            return self._say("headline_dearer", low=low, high=high, **words)
        key = "headline_noise" if found.within_noise else "headline"
        low, high = (f"{100 * b:.0f}%" for b in bounds)
        words = {name: words[name] for name in words if key == "headline" or name != "percent"}
        return self._say(key, low=low, high=high, **words)

    def _sentences(self) -> list[str]:
        found = self.recommendation
        assert found is not None
        per_image = [row[self.cost] / 100 for row in (found.current, found.best)]
        today, best = (money(c * self.monthly_images, self.currency) for c in per_image)
        said = [self._say("monthly", images=f"{self.monthly_images:,}", today=today, best=best)]
        if found.cheaper is not None:
            said.append(self._cheaper(found.current, found.cheaper))
        said += self._quality_sentences()
        items = {"today_items": found.current["answered"], "items": found.best["answered"]}
        counts = {name: int(n) for name, n in (items | {"repeats": found.best["repeats"]}).items()}
        said.append(self._say("sure", **counts))
        run_it = f"{self._say('run_it')}\n\n```\n{self.command(found.best)}\n```"
        return [*map(_plain, said), run_it]

    def _cheaper(self, today: pd.Series, cheaper: pd.Series) -> str:
        words = {
            "setting": self._setting(cheaper),
            "resolution": resolution(cheaper["resolution"], self.lang),
            "cost": self._cost(cheaper),
            "percent": percent(today[self.cost], cheaper[self.cost]),
            "quality": self._score(cheaper["quality"]),
        }
        return self._say("cheaper" if pd.isna(cheaper["quality"]) else "cheaper_worse", **words)

    def _quality_sentences(self) -> list[str]:
        """What the recommended setting gives up, task by task where it is not noise."""
        found = self.recommendation
        assert found is not None
        pair = found.quality
        if pair is None:
            random = bool(found.current["random_weights"])
            return [self._say("quality_random" if random else "quality_none")]
        scores = {"today": found.current["quality"], "best": found.best["quality"]}
        words = {name: self._score(value) for name, value in scores.items()}
        if found.best["key"] == found.current["key"]:
            key = "quality_same"
        else:
            key = "quality_noise" if pair.within_noise else "quality_differs"
            ends = {"low": pair.low, "high": pair.high, "difference": pair.difference}
            words |= {name: points(value) for name, value in ends.items()}
            words["p"] = f"{pair.p_value:.2g}"
        kind = self._say(f"quality_kind_{found.current['quality_kind']}", n=pair.count)
        said = [self._say(key, kind=kind, **words)]
        if lost := self._lost_tasks(found.current, found.best):
            said.append(self._say("quality_lost_tasks", tasks=lost))
        counts = {n: int(found.best[f"quality_{n}"]) for n in ("missing", "unparsed")}
        return [*said, *([self._say("quality_left_out", **counts)] if any(counts.values()) else [])]

    def _lost_tasks(self, today: pd.Series, best: pd.Series) -> str:
        """Tasks that get worse, the worst first, as "read, small print 0.45 → 0.20"."""
        tasks = {
            task: best[task_column(task)] - today[task_column(task)] for task in today["scores"]
        }
        worse = sorted(
            (task for task, change in tasks.items() if change < -0.005), key=tasks.__getitem__
        )
        words = [
            f"{task_name(task, self.lang)} {self._score(today[task_column(task)])} → "
            f"{self._score(best[task_column(task)])}"
            for task in worse
        ]
        return ", ".join(words)

    def _warnings(self) -> list[str]:
        said = []
        priced_gpu = self.frame.attrs["price"]["gpu"]
        here = find_gpu(self._environment("gpu")) if self._on_gpu() else None
        own = "per_hour" in self.options and "gpu" not in self.options  # for this very machine
        if not own and not (here and here.name.lower() == priced_gpu.lower()):
            said.append(self._say("price_mismatch", device=self.device, gpu=priced_gpu))
        if figure_language(self.lang)[1]:
            said.append(self._say("figures_in_english"))
        return [f"> ⚠ {_plain(sentence)}" for sentence in said]

    def _summary_table(self) -> pd.DataFrame:
        found = self.recommendation
        assert found is not None
        rows = {"row_today": found.current, "row_recommended": found.best}
        if found.cheaper is not None:
            rows["row_cheaper"] = found.cheaper
        table = self._table(pd.DataFrame(list(rows.values())), found.current)
        table.insert(0, "", [self._say(name) for name in rows])
        return table

    # ---- evidence

    def waterfall(self) -> list[Any]:
        """From today's setting to the recommended one, lever by lever."""
        if not self.recommendation:
            return []
        picture = self._picture(plots.waterfall(self.recommendation, lang=self.lang))
        said = [self._section("waterfall_heading", "waterfall_note")]
        if self.recommendation.excluded:
            limits = ", ".join(
                self._say(f"limit_{name}", n=n, limit=self._score(self.recommendation.min_quality))
                for name, n in self.recommendation.excluded.items()
            )
            said.append(Markdown(self._say("limits", limits=limits)))
        return [*said, picture]

    def tradeoff(self) -> list[Any]:
        """Cost against memory."""
        axes = plots.tradeoff(self.frame, self.recommendation, lang=self.lang)
        return [self._section("tradeoff_heading", "tradeoff_note"), self._picture(axes)]

    def quality(self) -> list[Any]:
        """Quality against cost, over resolution, and per precision; nothing if not measured."""
        if self.frame["quality"].isna().all():
            return []
        cost = plots.quality_cost(self.frame, self.recommendation, lang=self.lang)
        shown = [self._section("quality_heading", "quality_note"), self._picture(cost)]
        if self._grid["resolution"].nunique() > 1:
            shown.append(self._picture(plots.quality(self.frame, lang=self.lang)))
        if len(precision_loss(self.frame)):
            shown.append(self._picture(plots.precision_loss(self.frame, lang=self.lang)))
        return shown

    def resolutions(self) -> list[Any]:
        """The resolution that each task needs, beside the article's; nothing if not measured."""
        try:
            proposal = propose_resolutions(self._grid)
        except ConfigError:
            return []
        points_lost = f"{100 * proposal.tolerance:g}"
        note = self._say("resolutions_note", tolerance=points_lost)
        shown = [self._section("resolutions_heading"), Markdown(note)]
        shown.append(HTML(self._task_table(proposal).to_html(index=False, border=0)))
        by_task = self.frame[(self.frame["resolution"] == BY_TASK) & (self.frame["status"] == "ok")]
        if self.recommendation and len(by_task):
            rows = by_task.sort_values(self.cost)
            table = self._table(rows, self.recommendation.current)
            shown += [
                Markdown(self._say("resolutions_measured")),
                HTML(table.to_html(index=False, border=0)),
            ]
        return shown

    def _task_table(self, proposal: Proposal) -> pd.DataFrame:
        """One row per task: proposed and article's resolution, and quality at each."""
        grid = {row["resolution"]: row for _, row in at_each_resolution(self._grid).iterrows()}
        article_row = self._article_row()
        rows = []
        for row in proposal.table.to_dict("records"):
            task, ours = str(row["task"]), row["resolution"]
            article = str(_article_resolution(task))
            theirs = grid.get(article) if article_row is None else article_row
            values = [task_column(task) + end for end in ("", "_low", "_high")]
            there = "?" if theirs is None else self._scored(theirs, values)
            rows.append(
                {
                    "column_task": task_name(task, self.lang),
                    "column_proposed": resolution(ours, self.lang),
                    "column_quality_there": self._scored(grid[ours], values),
                    "column_article": resolution(article, self.lang),
                    "column_quality_article": there,
                    "column_quality_best": self._scored(grid[row["reference_resolution"]], values),
                }
            )
        table = pd.DataFrame(rows)
        return table.set_axis([self._say(str(name)) for name in table], axis=1)

    def _article_row(self) -> pd.Series | None:
        """The article's table as it was measured, in the most exact precision."""
        tables = self.frame["task_resolutions"].map(is_the_articles).astype(bool)
        rows = self.frame[tables & self.frame["quality"].notna()]
        return None if rows.empty else baseline(rows.reset_index(drop=True))

    def _scored(self, row: pd.Series, names: list[str]) -> str:
        value, low, high = (self._score(row[name]) for name in names)
        return value if value == "?" else f"{value} ({low}–{high})"

    def curves(self) -> list[Any]:
        """Throughput, memory and cost over batch size."""
        figure = plots.curves(self._grid, lang=self.lang)
        return [self._section("curves_heading"), self._picture(figure)]

    def feasible(self) -> list[Any]:
        """Which settings fit, and what each costs."""
        figure = plots.feasible(self._grid, lang=self.lang)
        return [self._section("feasible_heading"), self._picture(figure)]

    def stages(self) -> list[Any]:
        """Where the time goes, for today's and the recommended setting."""
        if not self.recommendation:
            return []
        rows = pd.DataFrame([self.recommendation.current, self.recommendation.best])
        rows = rows.drop_duplicates("key")
        pictures = [
            self._picture(plots.stages(rows, normalise=share, lang=self.lang))
            for share in (False, True)
        ]
        return [self._section("stages_heading", "stages_note"), *pictures]

    def article(self) -> list[Any]:
        """The article's figures beside the measured ones."""
        if not self.recommendation:
            return []
        seconds = [
            float(row["s_per_100_images"])
            for row in (self.recommendation.current, self.recommendation.best)
        ]
        costs = [money(s * ARTICLE_CNY_PER_S, "CNY") for s in seconds]
        note = self._say(
            "article_note",
            today=number(seconds[0]),
            best=number(seconds[1]),
            percent=f"{100 * self.recommendation.saving.value:.0f}%",
            today_cost=costs[0],
            best_cost=costs[1],
        )
        return [self._section("article_heading"), Markdown(_plain(note))]

    def table(self) -> list[Any]:
        """The cheapest settings, and what could not be measured."""
        shown: list[Any] = []
        if self.recommendation:
            rows = measured(self.frame)
            best = rows.sort_values(self.cost).head(_MOST_ROWS)
            words = {"shown": len(best), "total": len(rows)}
            shown += [
                self._section("table_heading"),
                Markdown(self._say("table_note", **words)),
                HTML(self._table(best, self.recommendation.current).to_html(index=False, border=0)),
            ]
        return shown + self._not_measured()

    def _not_measured(self) -> list[Any]:
        counts = {s: int((self.frame["status"] == s).sum()) for s in ("oom", "skipped", "error")}
        said: list[Any] = []
        listed = max((len(run.failures) for run in self.runs), default=0)
        unanswered = max((r.failed for run in self.runs for r in run.repeats), default=0)
        if failed := max(listed, unanswered):
            said += [Markdown(self._say("failed_items", count=failed)), self._failed_items()]
        if any(counts.values()):
            said.append(Markdown(self._say("not_measured_counts", **counts)))
            rows = self.frame[self.frame["status"].isin(["oom", "error"])]
            table = pd.DataFrame(
                {
                    self._say("column_setting"): [self._setting(r) for _, r in rows.iterrows()],
                    self._say("column_status"): [label(s, self.lang) for s in rows["status"]],
                    self._say("column_reason"): rows["reason"].str.slice(0, 160).to_list(),
                }
            )
            said.append(HTML(table.to_html(index=False, border=0)))
        return [self._section("not_measured_heading"), *said] if said else []

    def _failed_items(self) -> HTML:
        """The distinct failures of all runs, by name."""
        rows = {(f["id"], f["error"]) for run in self.runs for f in run.failures}
        columns = [self._say("column_item"), self._say("column_reason")]
        table = pd.DataFrame(sorted(rows)[:_MOST_FAILURES], columns=columns)
        return HTML(table.to_html(index=False, border=0))

    # ---- provenance

    def provenance(self) -> list[Any]:
        """Where every number comes from."""
        rows = [(self._say(name), value) for name, value in self._provenance().items() if value]
        columns = [self._say("column_what"), self._say("column_value")]
        table = pd.DataFrame(rows, columns=columns).to_html(index=False, border=0)
        return [self._section("provenance_heading"), HTML(table)]

    def _provenance(self) -> dict[str, str]:
        quoted, rate = self.frame.attrs["price"], self.frame.attrs["rate"]
        run = next((r for r in self.runs if r.status == "ok"), self.runs[0])
        kind = quoted["kind"].replace("_", " ")
        place = f"{quoted['gpu']}, {quoted['provider']}, {kind}, {quoted['date']}"
        utilisation = f"{100 * self.frame.attrs['utilisation']:.0f}%"
        env = run.environment
        software = ("qvl_lab", "commit", "torch", "transformers", "torchvision", "python")
        machine = ("gpu", "driver", "cpu", "cpu_count", "platform")
        return {
            "prov_price": f"{quoted['per_hour']:g} {quoted['currency']}/h: {place}",
            "prov_source": quoted["source"],
            "prov_rate": ""
            if not rate
            else f"1 {rate['base']} = {rate['rate']:g} {rate['quote']} "
            f"({rate['date']}, {rate['source']})",
            "prov_utilisation": self._say("prov_utilisation_value", percent=utilisation),
            "prov_workload": self._say(
                "prov_workload_value",
                name=run.workload["name"],
                items=run.workload["items"],
                images=run.workload.get("unique_images", "?"),
                fingerprint=run.workload["fingerprint"],
            ),
            "prov_tokens": self._tokens(),
            "prov_cache": run.cache_state,
            "prov_machine": "; ".join(filter(None, [_listed(env, machine), self._hosts()])),
            "prov_software": _listed(env, software),
            "prov_time": f"{run.started_at} - {self.runs[-1].started_at}",
            "prov_file": self._say(
                "prov_file_value",
                name=self.runs.path.name if self.runs.path else "-",
                digest=(self.runs.file_sha256 or "-")[:16],
            ),
            "prov_command": self._report_command(),
            "prov_notes": "; ".join(self.notes),
        }

    def _hosts(self) -> str:
        hosts = {run.environment.get("host") for run in self.runs}
        return self._say("prov_hosts_value", n=len(hosts)) if len(hosts) > 1 else ""

    def _tokens(self) -> str:
        if not self.recommendation:
            return ""
        row = self.recommendation.current
        visual, prompt = row["visual_tokens_per_image"], row["prompt_tokens_per_image"]
        words = {"visual": visual, "text": prompt - visual, "new": row["new_tokens_per_image"]}
        rounded = {name: number(value) for name, value in words.items()}
        return self._say("prov_tokens_value", **rounded)

    def _report_command(self) -> str:
        name = self.runs.path.name if self.runs.path else "runs.jsonl"
        parts = ["qvl-lab", "report", name]
        for option, value in self.options.items():
            if value is None or value == {}:
                continue
            flag = _FLAGS.get(option, "--" + option.replace("_", "-"))
            if isinstance(value, Mapping):
                for key, inner in value.items():
                    parts += [flag, f"{key}={inner}"]
            else:
                parts += [flag, str(value)]
        return shlex.join(parts)

    # ---- small things

    @property
    def _grid(self) -> pd.DataFrame:
        """Rows of one resolution for all tasks; all rows, if there are no others."""
        uniform = self.frame[self.frame["resolution"] != BY_TASK]
        kept = self.frame if uniform.empty else uniform.reset_index(drop=True)
        kept.attrs = self.frame.attrs
        return kept

    @property
    def cost(self) -> str:
        """The frame's cost column."""
        return cost_column(self.frame)

    @property
    def currency(self) -> str:
        """ISO code of the money."""
        return str(self.frame.attrs["currency"])

    @property
    def device(self) -> str:
        """What the runs ran on."""
        if self._on_gpu():
            return self._environment("gpu") or "GPU"
        return f"CPU ({self._environment('cpu') or '?'})"

    def command(self, row: pd.Series) -> str:
        """The command that runs a row's setting on a folder of images."""
        tables = row["task_resolutions"]
        parts = ["qvl-lab", "run", "IMAGES", "--model", str(row["model"])]
        for name in ("precision", "batch_size", "resolution", "max_new_tokens"):
            parts += ["--" + name.replace("_", "-"), str(row[name])]
        defaults = Config().flat()
        for name in ("revision", "cache_implementation", "attn_implementation", "min_new_tokens"):
            if not pd.isna(row[name]) and row[name] != defaults[name]:
                parts += ["--set", f"{name}={row[name]}"]
        for task, side in (json.loads(tables) if isinstance(tables, str) else {}).items():
            parts += ["--task-resolution", f"{task}={side}"]
        return shlex.join(parts)

    def _on_gpu(self) -> bool:
        return _on_gpu(self.frame)

    def _environment(self, name: str) -> str | None:
        value = self.frame.iloc[0][f"env_{name}"]
        return None if pd.isna(value) else str(value)

    def _say(self, key: str, **values: Any) -> str:
        return label(key, self.lang, **values)

    def _setting(self, row: pd.Series) -> str:
        names = differing(self.frame, ["precision", "resolution", "batch_size", "task_resolutions"])
        more = [f"{n}={row[n]}" for n in names if not pd.isna(row[n])]
        return " · ".join([setting(row, self.lang), *more])

    @staticmethod
    def _score(value: Any) -> str:
        return "?" if pd.isna(value) else f"{value:.2f}"

    def _cost(self, row: pd.Series) -> str:
        return money(row[self.cost], self.currency)

    def _section(self, heading: str, note: str | None = None) -> Markdown:
        text = f"### {self._say(heading)}"
        return Markdown(f"{text}\n\n{self._say(note)}" if note else text)

    def _table(self, rows: pd.DataFrame, today: pd.Series) -> pd.DataFrame:
        memory = peak_memory_bytes(rows)
        known = self.frame["quality"].notna().any()
        names = ["quality", "quality_low", "quality_high"]
        quality = [self._scored(row, names) for _, row in rows.iterrows()] if known else []
        columns: dict[str, list[str]] = {
            "column_setting": [self._setting(row) for _, row in rows.iterrows()],
            **({"column_quality": quality} if known else {}),
            "column_cost": [self._cost(row) for _, row in rows.iterrows()],
            "column_interval": [self._interval(row) for _, row in rows.iterrows()],
            "column_change": [
                "-" if key == today["key"] else percent(today[self.cost], cost)
                for key, cost in zip(rows["key"], rows[self.cost], strict=True)
            ],
            "column_speed": [number(v) for v in rows["images_per_s"]],
            "column_ttft": [amount(v, "ttft_s", self.lang) for v in rows["ttft_s"]],
            "column_memory": ["?" if pd.isna(b) else f"{b / 2**30:.2f} GiB" for b in memory],
        }
        return pd.DataFrame({self._say(name): values for name, values in columns.items()})

    def _interval(self, row: pd.Series) -> str:
        bounds = Estimate(0, row[f"{self.cost}_low"], row[f"{self.cost}_high"])[1:]
        if any(pd.isna(bound) for bound in bounds):
            return "?"
        return " – ".join(money(float(bound or 0), self.currency) for bound in bounds)

    @staticmethod
    def _picture(drawn: Figure | Axes) -> Image:
        figure = drawn if isinstance(drawn, Figure) else drawn.get_figure()
        assert isinstance(figure, Figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        plt.close(figure)
        return Image(data=_small_png(buffer.getvalue()))


def review(
    runs: str | Path | Runs,
    *,
    gpu: str | None = None,
    provider: str | None = None,
    kind: str | None = None,
    per_hour: float | None = None,
    currency: str | None = None,
    exchange_rates: Mapping[str, float] | None = None,
    prices_file: str | Path | None = None,
    utilisation: float = 1.0,
    current: Mapping[str, Any] | None = None,
    monthly_images: int | None = None,
    min_quality: float | None = None,
    max_vram_gib: float | None = None,
    max_ttft_s: float | None = None,
    lang: str = "en",
) -> Review:
    """Price a run file and find what to run instead.

    Parameters
    ----------
    runs : path or Runs
    gpu, provider, kind, per_hour, currency, exchange_rates, prices_file, utilisation
        See :func:`qvl_lab.analysis.cost.price`. Without a GPU the measured one is priced, or, if
        the table has no price for it, the article's A10G; the report then says so. The currency
        is CNY unless told otherwise.
    current, min_quality, max_vram_gib, max_ttft_s
        See :func:`qvl_lab.analysis.recommend.recommend`.
    monthly_images : int, optional
        For the monthly sum; 100,000 if not given.
    lang : str
        ``"en"`` or ``"zh"``.

    Raises
    ------
    QvlError
        If the run file cannot be read, or a setting cannot be used.
    """
    figure_language(lang)  # refuses an unknown language
    options = {k: v for k, v in locals().items() if k not in ("runs", "lang")} | {"lang": lang}
    loaded = runs if isinstance(runs, Runs) else Runs.load(runs)
    whole = loaded.frame()
    frame, notes = _one_question(whole, lang)
    if gpu is None and per_hour is None:
        gpu, provider = _own_gpu(frame, provider, kind, prices_file)
    priced = price(
        frame,
        gpu,
        provider,
        kind,
        per_hour=per_hour,
        currency=currency or "CNY",
        exchange_rates=exchange_rates,
        utilisation=utilisation,
        file=prices_file,
    )
    try:
        measured(priced)
    except ConfigError:
        found = None
    else:
        today = find_row(measured(priced), current) if current else baseline(measured(priced))
        # without today's quality nothing says what fewer pixels would lose
        unknown = min_quality is None and pd.isna(today["quality"])
        choose = partial(
            recommend,
            priced,
            current=current or None,
            hold=(*(("resolution",) if unknown else ()), *_HELD),
            max_vram_gib=max_vram_gib,
            max_ttft_s=max_ttft_s,
        )
        found = _choose(choose, priced, min_quality)
    rows = set(zip(frame["key"], frame["environment"], strict=True))
    kept = [run for run in loaded if (run.key, environment_key(run.environment)) in rows]
    return Review(
        runs=Runs(kept, path=loaded.path),
        frame=priced,
        recommendation=found,
        lang=lang,
        monthly_images=monthly_images or 100_000,
        options={k: v for k, v in options.items() if v is not None and v != {}},
        notes=[*loaded.notes, *notes],
    )


def _choose(
    choose: Callable[..., Recommendation], frame: pd.DataFrame, min_quality: float | None
) -> Recommendation:
    """The recommendation; the best quality there is, where none is as high as was asked for."""
    try:
        return choose(min_quality=min_quality)
    except LimitError:
        best = measured(frame)["quality"].max()
        if min_quality is None or best >= min_quality:
            raise
        return choose(min_quality=float(best))


def _one_question(frame: pd.DataFrame, lang: str) -> tuple[pd.DataFrame, list[str]]:
    """Rows that may be compared with the newest one: same machine, versions, model, workload."""
    newest = frame.iloc[int(frame["started_at"].argmax())]
    here = frame[frame["environment"] == newest["environment"]]
    same = here
    for name in _COMPARABLE:
        same = same[same[name].map(str) == str(newest[name])]
    notes = []
    if left := len(frame) - len(here):
        notes.append(label("note_environments", lang, n=left))
    if left := len(here) - len(same):
        notes.append(label("note_workloads", lang, n=left))
    return same.reset_index(drop=True), notes


def _own_gpu(
    frame: pd.DataFrame, provider: str | None, kind: str | None, prices_file: str | Path | None
) -> tuple[str, str | None]:
    """The measured GPU if it has a price, else the article's."""
    name = frame.iloc[0]["env_gpu"]
    row = find_gpu(name) if _on_gpu(frame) and not pd.isna(name) else None
    try:
        find_price(row.name if row else "", provider, kind, file=prices_file)
    except UnknownNameError:
        if provider or kind:
            raise ConfigError(
                "a provider or kind of price needs a GPU: --gpu NAME; see 'qvl-lab prices'"
            ) from None
        return ARTICLE_GPU, ARTICLE_PROVIDER
    return row.name if row else ARTICLE_GPU, provider


def _article_resolution(task: str) -> int | str:
    """What the article's table says for a task; native for one that it does not know."""
    known = knows_task(task, TASK_RESOLUTIONS)
    return TASK_RESOLUTIONS[canonical_task(task, TASK_RESOLUTIONS)] if known else NATIVE


def _on_gpu(frame: pd.DataFrame) -> bool:
    return bool(frame["device"].dropna().astype(str).str.startswith("cuda").any())


def _plain(text: str) -> str:
    """Text for Markdown in which nothing is markup: names come from files that anyone can write."""
    return html.escape(text, quote=False).replace("$", r"\$")


def _listed(values: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {values[name]}" for name in names if values.get(name) is not None)


def _small_png(data: bytes) -> bytes:
    """The same picture with a palette of 256 colours: a third of the size, no visible change."""
    from PIL import Image as Pillow

    with Pillow.open(io.BytesIO(data)) as image:
        small = image.convert("RGB").quantize(256, dither=Pillow.Dither.NONE)
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def settings_csv(found: Review, path: Path) -> None:
    """All rows of a review, as priced, for a spreadsheet; without the scores of single items."""
    found.frame.drop(columns="scores").to_csv(path, index=False)
