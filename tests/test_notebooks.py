"""The notebooks: committed clean, with parameters, and running from top to bottom."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
import papermill
import pytest
from PIL import Image

from qvl_lab.runs.store import Runs, Store
from qvl_lab.show.fonts import style
from qvl_lab.show.report.render import _own_kernel

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))


@pytest.fixture
def execute(tmp_path, monkeypatch) -> Callable[..., nbformat.NotebookNode]:
    """Run a notebook with parameters in an empty folder; a failing cell raises."""
    # Beside what others do on this machine its commit may change, and rows would not be compared.
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures go into the notebook

    def run(name: str, **parameters: Any) -> nbformat.NotebookNode:
        return papermill.execute_notebook(
            str(FOLDER / name),
            str(tmp_path / name),
            parameters=parameters,
            **_own_kernel(),
            cwd=str(tmp_path),
            execution_timeout=240,
            progress_bar=False,
        )

    return run


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    """All outputs of a MIME type."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [out.data[kind] for c in cells for out in c.outputs if kind in out.get("data", {})]


def test_the_first_three_notebooks_are_there():
    assert {"00_quickstart.ipynb", "01_sweep.ipynb", "02_cost_report.ipynb"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_committed_without_outputs(name):
    notebook = nbformat.read(FOLDER / name, 4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_start_with_a_question_and_have_one_cell_of_parameters(name):
    cells = nbformat.read(FOLDER / name, 4).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    tagged = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert tagged[0].cell_type == "code"


@pytest.mark.parametrize("name", [n for n in NAMES if n != "02_cost_report.ipynb"])
def test_notebooks_to_learn_from_use_public_names_alone(name):
    """The report's notebook is made of the report's own parts; the others are for readers."""
    code = [c.source for c in nbformat.read(FOLDER / name, 4).cells if c.cell_type == "code"]
    lines = [line.strip() for source in code for line in source.splitlines()]
    ours = {line for line in lines if re.match(r"(from|import) qvl_lab", line)}
    assert ours == {"import qvl_lab as ql"}


@pytest.mark.slow
def test_the_quickstart_goes_from_pictures_to_a_price(execute, tmp_path):
    (tmp_path / "small").mkdir()
    for i in range(8):
        Image.new("RGB", (96, 64), (30 * i, 0, 90)).save(tmp_path / "small" / f"{i}.png")
    notebook = execute("00_quickstart.ipynb", workload="small", out="q.jsonl")
    runs = Runs.load(tmp_path / "q.jsonl")
    assert [run.status for run in runs] == ["ok"] * len(runs)
    assert {run.workload["name"] for run in runs} == {"small"}
    assert len(outputs(notebook, "image/png")) == 1
    assert any("cost_cny_per_100_images" in html for html in outputs(notebook, "text/html"))


@pytest.mark.full
def test_the_sweep_notebook_measures_its_grid_and_draws_it(execute, tmp_path):
    notebook = execute(
        "01_sweep.ipynb",
        items=4,
        batch_size=[1, 4],
        resolution=[64, 96],
        precision=["fp32", "bf16"],
        max_new_tokens=2,
        repeats=2,
        out="s.jsonl",
    )
    runs = Runs.load(tmp_path / "s.jsonl")
    assert [run.status for run in runs] == ["ok"] * 8
    assert len(outputs(notebook, "image/png")) == 5


@pytest.mark.slow
def test_the_report_notebook_reviews_a_run_file(execute, tmp_path, on_cpu):
    with Store(tmp_path / "r.jsonl") as store:
        for run in (on_cpu(1, 10.0), on_cpu(4, 4.0)):
            store.append(run)
    notebook = execute("02_cost_report.ipynb", runs="r.jsonl", options={"per_hour": 36.0})
    (headline, *_) = outputs(notebook, "text/markdown")
    assert "¥1.00 per 100 images today, ¥0.40 with" in headline
    assert len(outputs(notebook, "image/png")) >= 5


@pytest.mark.full
def test_the_report_notebook_by_hand_sweeps_the_embedded_model_first(execute, tmp_path):
    notebook = execute("02_cost_report.ipynb")
    assert {run.status for run in Runs.load(tmp_path / "report-runs.jsonl")} == {"ok"}
    assert "per 100 images today" in outputs(notebook, "text/markdown")[0]


def test_a_figure_leaves_a_notebooks_backend_as_it_made_it():
    """It turns interactive mode on when the first figure loads it; later figures need that."""
    before = matplotlib.is_interactive()
    try:
        matplotlib.interactive(False)
        with style("en"):
            matplotlib.interactive(True)
        assert matplotlib.is_interactive()
    finally:
        matplotlib.interactive(before)


@pytest.mark.full
def test_the_notebook_of_where_the_time_goes_runs_and_keeps_its_tables(execute, tmp_path):
    notebook = execute(
        "04_where_the_time_goes.ipynb", items=4, batch_size=4, resolution=128, max_new_tokens=4
    )
    tables = outputs(notebook, "text/html")
    assert sum("lm_head" in html for html in tables) >= 3  # the magic, the look on, the profile
    assert len(outputs(notebook, "image/png")) == 2
    assert len(list((tmp_path / "traces").glob("notebook.*.pt.trace.json.gz"))) == 1
    assert any("2048 x 2048" in html for html in tables)


@pytest.mark.full
def test_the_notebook_of_batching_and_caching_runs_and_finds_what_it_says(execute, tmp_path):
    notebook = execute(
        "05_batching_and_caching.ipynb",
        items=4,
        resolution=128,
        max_new_tokens=4,
        batch_size=[1, 2],
        levers=["packing"],
        rates=[0, 0.5],
        hit_items=6,
        hit_batch_size=1,
        cache_gib=0.05,
        repeats=2,
    )
    folder = tmp_path / "batching-and-caching"
    counts = {path.stem: len(Runs.load(path)) for path in folder.glob("*.jsonl")}
    assert counts == {"batching": 4, "ablation": 4, "hits": 10}
    assert len(outputs(notebook, "image/png")) == 3
    (flaw,) = (html for html in outputs(notebook, "text/html") if "truth after" in html)
    path, content = (row.split("</td>") for row in flaw.split("<tbody>")[1].split("</tr>")[:2])
    before, now, after, said = (cell.split(">")[-1].strip() for cell in content[1:5])
    assert (before, after) == (now, said)  # told by their bytes, both are answered rightly
    assert path[4].split(">")[-1].strip() != after  # by its path, the picture that is gone is
