"""The report: run the report notebook with papermill and turn it into one HTML file.

The HTML carries its figures, no code, and asks nothing of a network. If the notebook stops, what
it had is kept and the error names the cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from qvl_lab.assets import asset
from qvl_lab.config.signatures import names_settings
from qvl_lab.errors import InputError, QvlError, ReportError
from qvl_lab.runs.store import Runs
from qvl_lab.show.report.options import ReviewOptions

NOTEBOOK, TEMPLATES = "notebooks/02_cost_report.ipynb", "templates"
_HIDDEN = {"parameters", "injected-parameters", "hide"}
_CELL_TIMEOUT_S = 600


@dataclass(frozen=True, repr=False)
class ReportFiles:
    """What a report leaves: the page to read, the executed notebook, the table.

    ``headline`` holds the first page's numbers, as
    :func:`~qvl_lab.show.report.summary.headline_numbers` gives them.
    """

    html: Path
    notebook: Path
    csv: Path
    headline: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<ReportFiles {self.html}, {self.notebook.name}, {self.csv.name}>"

    def _repr_html_(self) -> str:
        """Links to the files, the page first."""
        return " · ".join(
            f'<a href="{quote(path.as_posix())}" target="_blank">{escape(path.name)}</a>'
            for path in (self.html, self.notebook, self.csv)
        )


@names_settings(ReviewOptions)
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
        Those of :class:`~qvl_lab.show.report.options.ReviewOptions`: price, today's setting,
        limits, monthly volume.

    Raises
    ------
    QvlError
        Before anything is written, if the run file or an option cannot be used.
    InputError
        If the folder cannot be written, or the disk is full.
    ReportError
        If the notebook stopped; the partial report is kept.
    """
    from qvl_lab.show.report.review import review, settings_csv
    from qvl_lab.show.report.sections.first_page import title
    from qvl_lab.show.report.summary import headline_numbers

    path = runs.path if isinstance(runs, Runs) else Path(runs)
    if path is None:
        raise QvlError("these runs are in no file; pass the path that sweep(out=...) wrote")
    chosen = ReviewOptions.of(options | {"lang": lang})
    context = review(path, chosen)  # refuses what cannot be used before a kernel starts
    folder = Path(out)
    files = ReportFiles(
        folder / "report.html",
        folder / "report.ipynb",
        folder / "settings.csv",
        headline_numbers(context),
    )
    with _writing_to(folder):
        settings_csv(context, files.csv)
        parameters = {"runs": str(path.resolve()), "options": chosen.given()}
        failure = _execute(files.notebook, parameters)
        to_html(files.notebook, files.html, title=title(context), lang=lang, failure=failure)
    if failure:
        raise ReportError(f"the report stopped: {failure}. What it had is in {files.html}")
    return files


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Make the folder; an error of its disk or its permissions becomes one that says so."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as e:
        reason = "it is a file" if isinstance(e, FileExistsError) else e.strerror or e
        raise InputError(f"cannot write the report to {folder}: {reason}") from e


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
        template_name="report",
        extra_template_basedirs=[str(asset(TEMPLATES))],
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        embed_images=True,
        language_code=lang,
    )
    document = nbformat.read(notebook, 4)
    document.metadata["title"] = title
    page, _ = exporter.from_notebook_node(document, resources={"failure": failure})
    Path(html).write_text(page, "utf-8")


def _execute(notebook: Path, parameters: dict[str, Any]) -> str | None:
    """Run the report notebook into ``notebook``; None, or where and why it stopped."""
    import papermill

    try:
        papermill.execute_notebook(
            str(asset(NOTEBOOK)),
            str(notebook),
            parameters=parameters,
            **_own_kernel(),
            extra_arguments=["--log-level=40"],
            execution_timeout=_CELL_TIMEOUT_S,
            progress_bar=False,
            log_output=False,
        )
    except papermill.PapermillExecutionError as e:
        return f"cell {e.exec_count}: {e.ename}: {e.evalue}"
    except OSError:  # the folder's, not the notebook's
        raise
    except Exception as e:  # a dead kernel, a time-out: the notebook holds what was done
        if not notebook.exists():
            raise ReportError(f"the report notebook could not be run: {e}") from e
        return f"{type(e).__name__}: {e}"
    return None


def _own_kernel() -> dict[str, Any]:
    """Options that let papermill run a notebook with this very interpreter."""
    from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class OwnKernelManager(AsyncKernelManager):
        """Finds the native kernel alone; the client that makes it cleans up after it."""

        def _kernel_spec_manager_default(self) -> KernelSpecManager:
            return KernelSpecManager(kernel_dirs=[])  # without folders the native one is left

    return {"kernel_name": NATIVE_KERNEL_NAME, "kernel_manager_class": OwnKernelManager}
