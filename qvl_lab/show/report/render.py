"""The report: run the report notebook with papermill and turn it into one HTML file.

The HTML carries its figures, no code, and asks nothing of a network. If the notebook stops, what
it had is kept and the error names the cell.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvl_lab.assets import asset
from qvl_lab.errors import ConfigError, QvlError, ReportError
from qvl_lab.runs.records import environment_key
from qvl_lab.runs.store import Runs

NOTEBOOK = "notebooks/02_cost_report.ipynb"
_HIDDEN = {"parameters", "injected-parameters", "hide"}
_CELL_TIMEOUT_S = 600


@dataclass(frozen=True)
class ReportFiles:
    """What a report leaves: the page to read, the executed notebook, the table."""

    html: Path
    notebook: Path
    csv: Path


def report(
    runs: str | Path | Runs, *, out: str | Path = "qvl-report", lang: str = "en", **options: Any
) -> ReportFiles:
    """Write a cost review of a run file.

    Parameters
    ----------
    runs : path or Runs
        A run file, or the result of :func:`qvl_lab.sweep`.
    out : path
        Folder for ``report.html``, ``report.ipynb`` and ``settings.csv``.
    lang : str
        ``"en"`` or ``"zh"``, of the page and its figures.
    options
        As ``review``: price, today's setting, limits, monthly volume.

    Raises
    ------
    QvlError
        Before anything is written, if the run file or a setting cannot be used.
    ReportError
        If the notebook stopped; the partial report is kept.
    """
    from qvl_lab.show.report.review import review, settings_csv

    path = runs.path if isinstance(runs, Runs) else Path(runs)
    if path is None:
        raise QvlError("these runs are in no file; pass the path that sweep(out=...) wrote")
    checked = review(path, lang=lang, **options)  # refuses bad settings before a notebook runs
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    files = ReportFiles(folder / "report.html", folder / "report.ipynb", folder / "settings.csv")
    settings_csv(checked, files.csv)
    given = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    failure = _execute(files.notebook, {"runs": str(path.resolve()), "lang": lang} | given)
    to_html(files.notebook, files.html, title=checked.title(), lang=lang, failure=failure)
    if failure:
        raise ReportError(f"the report stopped: {failure}. What it had is in {files.html}")
    return files


def default_sweep(
    model: str, workload: str, out: str | Path, *, items: int = 36, progress: bool = True
) -> Runs:
    """The small grid behind ``qvl-lab report --model``: minutes on two CPU cores for ``tiny``.

    The largest batch is measured with the fast engine too, where it runs the model. Where quality
    is known, two settings with a resolution for each task follow the grid: the article's table,
    and the lowest resolutions that keep each task's quality. Rows of another environment are moved
    aside rather than mixed in.
    """
    from qvl_lab.backends.fast.sizing import runs_fast
    from qvl_lab.bench.sweep import sweep
    from qvl_lab.config import BY_TASK
    from qvl_lab.tasks import article_resolutions
    from qvl_lab.workloads.sources import load_workload

    loaded = load_workload(workload)
    most = max(1, min(items, len(loaded)))
    batches, precisions = [size for size in (1, 4, 8) if size <= most], ["fp32", "bf16"]
    fixed: dict[str, Any] = {"model": model, "workload": workload, "items": items, "out": out}
    fixed |= {"max_new_tokens": 40, "progress": progress, "timed_items": batches[-1]}
    grid: dict[str, Any] = {"resolution": [128, 256, 512], "precision": precisions}
    other = _fresh_if_other(out)
    runs = sweep(**fixed, **grid, batch_size=batches, on_other_environment=other)
    engines = ["stock"]
    if runs_fast(model):
        engines.append("fast")
        runs = sweep(**fixed, **grid, batch_size=batches[-1:], engine="fast")
    tasks = {item.task for item in loaded.items}
    tables = [_for_all(tasks, table) for table in (article_resolutions(), *_proposed(runs))]
    if len(tables) > 1:
        fixed |= {"resolution": BY_TASK, "task_resolutions": tables}
        sweep(**fixed, batch_size=batches[-1:], precision=precisions, engine=engines)
    device_ceilings(Path(out))  # last: on a GPU it leaves a context behind
    return Runs.load(out)


def device_ceilings(runs: Path) -> None:
    """Measure what this device can do at most, and leave it beside a run file."""
    from qvl_lab.config import ModelSpec
    from qvl_lab.models.load import resolve
    from qvl_lab.probe.ceilings import measure_ceilings, save_ceilings
    from qvl_lab.show.report.sections.limits import beside

    runs.parent.mkdir(parents=True, exist_ok=True)
    save_ceilings(measure_ceilings(resolve(ModelSpec()).device), beside(runs))


def _proposed(runs: Runs) -> list[dict[str, int | str]]:
    """The table of the lowest resolutions that keep quality; none if quality is not known."""
    from qvl_lab.analysis.quality.tradeoffs import propose_resolutions

    try:
        return [propose_resolutions(runs.frame()).task_resolutions]
    except ConfigError:
        return []


def _for_all(tasks: Iterable[str | None], table: Mapping[str, int | str]) -> dict[str, int | str]:
    """The table with native, which loses nothing, for tasks that it does not know."""
    from qvl_lab.config import NATIVE
    from qvl_lab.workloads.resize import knows_task

    return dict(table) | {task: NATIVE for task in tasks if task and not knows_task(task, table)}


def to_html(
    notebook: str | Path, html: str | Path, *, title: str, lang: str, failure: str | None = None
) -> None:
    """An executed notebook as one self-contained page without code."""
    import nbformat
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import TagRemovePreprocessor
    from traitlets.config import Config

    config = Config()
    config.TagRemovePreprocessor.remove_cell_tags = _HIDDEN
    config.HTMLExporter.preprocessors = [TagRemovePreprocessor]
    exporter = HTMLExporter(
        config=config,
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        mathjax_url="",
        require_js_url="",
        embed_images=True,
        language_code=lang,
    )
    document = nbformat.read(notebook, 4)
    document.metadata["title"] = title
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about alternative texts of images
        logging.getLogger("traitlets").setLevel(logging.ERROR)
        body, _ = exporter.from_notebook_node(document)
    banner = f'<p class="qvl-failure">{_escaped(failure)}</p>' if failure else ""
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL)  # one could ask a network
    body = body.replace("</head>", f"<style>{_STYLE}</style></head>", 1)
    body = body.replace("<main>", f"<main>{banner}", 1)
    Path(html).write_text(body, "utf-8")


def _execute(notebook: Path, parameters: dict[str, Any]) -> str | None:
    """Run the report notebook into ``notebook``; None, or where and why it stopped."""
    import papermill

    with _own_kernel() as kernel:
        try:
            papermill.execute_notebook(
                str(asset(NOTEBOOK)),
                str(notebook),
                parameters=parameters,
                kernel_name=kernel,
                execution_timeout=_CELL_TIMEOUT_S,
                progress_bar=False,
                log_output=False,
            )
        except papermill.PapermillExecutionError as e:
            return f"cell {e.exec_count}: {e.ename}: {e.evalue}"
        except Exception as e:  # a dead kernel, a time-out: the notebook holds what was done
            if not notebook.exists():
                raise ReportError(f"the report notebook could not be run: {e}") from e
            return f"{type(e).__name__}: {e}"
        finally:
            _restore_kernelspec(notebook)
    return None


@contextmanager
def _own_kernel() -> Iterator[str]:
    """A kernel that is this very interpreter, whatever kernels the user has installed."""
    name = "qvl-lab"
    spec = {
        "argv": [
            sys.executable,
            "-m",
            "ipykernel_launcher",
            "-f",
            "{connection_file}",
            "--log-level=40",
        ],
        "display_name": name,
        "language": "python",
    }
    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "kernels" / name
        target.mkdir(parents=True)
        (target / "kernel.json").write_text(json.dumps(spec), "utf-8")
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before]))
        try:
            yield name
        finally:
            if before is None:
                del os.environ["JUPYTER_PATH"]
            else:
                os.environ["JUPYTER_PATH"] = before


def _restore_kernelspec(notebook: Path) -> None:
    """Let the executed notebook open with the reader's own Python kernel."""
    import nbformat

    if notebook.exists():
        document = nbformat.read(notebook, 4)
        document.metadata["kernelspec"] = {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        }
        nbformat.write(document, notebook)


def _fresh_if_other(out: str | Path) -> str:
    from qvl_lab.hardware import fingerprint

    try:
        environments = Runs.load(out).environments()
    except QvlError:
        return "refuse"
    here = [environment_key(fingerprint())]
    return "refuse" if [environment_key(e) for e in environments] == here else "fresh"


def _escaped(text: str) -> str:
    import html

    return html.escape(text)


_STYLE = """
main { max-width: 1060px; margin: 0 auto; padding: 0 1.5rem 3rem; }
body { font-family: system-ui, "Noto Sans CJK SC", "Microsoft YaHei", "PingFang SC", sans-serif; }
.jp-RenderedHTMLCommon h1 { font-size: 1.35rem; color: #444; font-weight: 500; }
.jp-RenderedHTMLCommon h2 { font-size: 1.7rem; line-height: 1.3; }
.jp-RenderedHTMLCommon h3 { margin-top: 1.6rem; }
.jp-RenderedHTMLCommon blockquote { border-left: 4px solid #d99; background: #fdf3f0; color: #333;
  padding: .4rem .9rem; }
.jp-RenderedHTMLCommon table { font-size: .92rem; margin: .6rem 0; }
.jp-RenderedHTMLCommon th, .jp-RenderedHTMLCommon td { padding: .3rem .6rem;
  text-align: left !important; vertical-align: baseline; max-width: none; white-space: nowrap; }
.jp-RenderedHTMLCommon th, .jp-RenderedHTMLCommon td:last-child,
.jp-RenderedHTMLCommon td:nth-child(2):nth-last-child(n+8) { white-space: normal; }
.jp-RenderedImage img { max-width: 100%; height: auto; }
.qvl-failure { background: #b00020; color: white; padding: .8rem 1rem; font-weight: 600; }
"""
