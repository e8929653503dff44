"""What people see of our files in TensorBoard's PyTorch profiler, in a real browser.

The page wants Google Charts and webcomponents.js from the network. Charts are stood in for by
plain tables (charts.js); webcomponents.js, which only the trace view needs, is fetched once with
npm into a cache. Nothing else may leave the machine.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from qvl_lab.probe.stages import stage
from qvl_lab.probe.trace import Recording, tensorboard

sync_api = pytest.importorskip("playwright.sync_api", reason="needs: pip install playwright")
pytest.importorskip("tensorboard", reason="needs: pip install tensorboard")
pytest.importorskip("torch_tb_profiler", reason="needs: pip install torch-tb-profiler")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install -y chromium"),
]

HERE = Path(__file__).parent
KINETO = runpy.run_path(str(HERE.parent / "probe" / "trace" / "kineto.py"))
CHARTS = "https://www.gstatic.com/charts/loader.js"
WEBCOMPONENTS = "https://cdnjs.cloudflare.com/ajax/libs/webcomponentsjs/0.7.24/webcomponents.min.js"


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    """Two runs: one of a GPU made by hand, one of this CPU with its modules."""
    import torch

    folder = tmp_path_factory.mktemp("logdir")
    tensorboard(KINETO["generation"](), folder / "gpu", worker="host")
    layer = torch.nn.Linear(8, 8)
    with Recording(shapes=True, modules=True) as recording, stage("prefill"):
        layer(torch.ones(2, 8))
    tensorboard(recording.trace, folder / "cpu", worker="host")
    return folder


@contextmanager
def serving(folder):
    """TensorBoard over a folder, on a port of its own choice; gives its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--host", "127.0.0.1", "--port", "0", "--load_fast", "false"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            lines = []
            for line in server.stderr:
                lines.append(line)
                if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                    yield found[0]
                    break
            else:
                raise RuntimeError("TensorBoard did not start:\n" + "".join(lines))
        finally:
            server.terminate()


@contextmanager
def chromium():
    """A browser without a window."""
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


def webcomponents():
    """The text of webcomponents.js 0.7.24, from the cache or from npm."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qvl-lab-tests"
    archive = cache / "webcomponents.js-0.7.24.tgz"
    if not archive.exists():
        npm = shutil.which("npm") or pytest.skip("needs npm to fetch webcomponents.js")
        cache.mkdir(parents=True, exist_ok=True)
        command = [npm, "pack", "webcomponents.js@0.7.24", "--pack-destination", str(cache)]
        fetched = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if fetched.returncode:
            pytest.skip(f"webcomponents.js cannot be fetched: {fetched.stderr[-200:]}")
    with tarfile.open(archive) as members:
        return members.extractfile("package/webcomponents.min.js").read().decode()


class Views:
    """The plugin's page."""

    def __init__(self, page):
        self.page, self.errors = page, []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.frame = page.frame_locator("iframe")

    def choose(self, which, option):
        """Set one of the selects at the left: 0 is the run, 1 the view."""
        self.frame.locator("[role=button][aria-haspopup=listbox]").nth(which).click()
        self.frame.get_by_role("option", name=option, exact=True).click()
        self.frame.get_by_role("listbox").wait_for(state="detached")

    def show(self, run, view, heading):
        self.choose(0, run)
        self.choose(1, view)
        self.frame.get_by_text(heading, exact=True).first.wait_for()

    def rows(self):
        """The large table, a dict of cells by heading for each row."""
        rows = self.frame.locator(".ant-table-wrapper tbody tr.ant-table-row")
        rows.first.wait_for()
        headings = self.frame.locator(".ant-table-wrapper thead th").all_inner_texts()
        cells = [row.locator("td").all_inner_texts() for row in rows.all()]
        return [dict(zip(headings, map(str.strip, row), strict=False)) for row in cells]

    def table(self):
        """The same by the first cell."""
        return {next(iter(row.values())): row for row in self.rows()}

    def group(self, option):
        """Choose what the large table's rows are; its select is the last on the page."""
        self.choose(-1, option)

    def trace(self):
        """The trace view's own frame, once it has drawn the GPU."""
        inner = self.frame.frame_locator("iframe")
        track = inner.get_by_text("GPU 0 Utilization:").filter(visible=True)
        track.first.wait_for(timeout=120_000)  # a large trace takes its time
        return inner

    def find(self, text):
        """Search the trace view's ranges; gives the place where it says "1 of N"."""
        search = self.trace().locator("tr-ui-find-control")
        search.locator("input").fill(text)
        search.locator("input").press("Enter")
        return search.get_by_text(re.compile(r"^\d+ of \d+$"))


@contextmanager
def opened(browser, address, **size):
    """The plugin's page as a :class:`Views`; afterwards nothing may have gone wrong in it."""
    page = browser.new_page(viewport={"width": 1500, "height": 1000, **size})
    page.set_default_timeout(30_000)
    refused = []

    def answer(route):
        url = route.request.url
        if url.startswith(address):
            route.continue_()
        elif url == CHARTS:
            route.fulfill(path=HERE / "charts.js", content_type="text/javascript")
        elif url == WEBCOMPONENTS:
            route.fulfill(body=webcomponents(), content_type="text/javascript")
        else:
            refused.append(url)
            route.abort()

    page.route("**/*", answer)
    page.goto(address + "#pytorch_profiler")
    shown = Views(page)
    shown.frame.get_by_text("Views", exact=True).wait_for()
    yield shown
    page.close()
    assert shown.errors == []
    assert refused == []


@pytest.fixture(scope="module")
def address(logdir):
    with serving(logdir) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture
def views(browser, address):
    with opened(browser, address) as shown:
        yield shown


def test_operators_have_device_time_and_stages_are_among_them(views, tmp_path):
    views.show("gpu", "Operator", "Operator View")
    table = views.table()
    views.page.screenshot(path=tmp_path / "operator.png")
    device = {name: int(row["Device Total Duration (us)"]) for name, row in table.items()}
    assert device["aten::addmm"] == 100
    assert device["stage: vision"] == 240
    assert device["stage: decode/step"] == 172


def test_kernels_are_listed(views, tmp_path):
    views.show("gpu", "GPU Kernel", "Kernel View")
    table = views.table()
    views.page.screenshot(path=tmp_path / "kernel.png")
    assert set(table) == {KINETO[name] for name in ("GEMM", "NORM", "FLASH", "ADD", "TRITON")}
    assert int(table[KINETO["GEMM"]]["Total Duration (us)"]) == 200
    assert int(table[KINETO["GEMM"]]["Calls"]) == 2


def test_kernels_stand_under_their_operators(views):
    views.show("gpu", "GPU Kernel", "Kernel View")
    views.group("Kernel Properties + Op Name")
    assert {(row["Name"], row["Operator"]) for row in views.rows()} == {
        (KINETO["GEMM"], "aten::addmm"),
        (KINETO["NORM"], "aten::native_layer_norm"),
        (KINETO["FLASH"], "aten::_flash_attention_forward"),
        (KINETO["TRITON"], "Torch-Compiled Region: 0/0"),
        # of a CUDA graph, which the stage launched
        *((KINETO[name], "stage: decode/step") for name in ("GEMM", "ADD", "NORM")),
    }


def test_the_overview_knows_the_gpu(views):
    views.show("gpu", "Overview", "GPU Summary")
    body = views.frame.locator("body").inner_text()
    assert "NVIDIA H200" in body
    assert "GPU Utilization\n25.87 %" in body  # 388 of 1500 us


def test_the_module_view_has_the_layers(views):
    views.show("cpu", "Module", "Module View")
    assert views.frame.get_by_text("Linear_0").count() >= 1


def test_the_trace_view_draws_both_sides(views, tmp_path):
    webcomponents()  # or skip
    views.show("gpu", "Trace", "Views")
    inner = views.trace()
    for track in ("python (pid 4242)", "GPU 0 (pid 0)"):
        inner.get_by_text(track).filter(visible=True).first.wait_for()
    views.page.screenshot(path=tmp_path / "trace.png")


def test_the_trace_view_names_the_stages(views):
    webcomponents()  # or skip
    views.show("gpu", "Trace", "Views")
    # of the CPU and of the GPU; the decode range of the GPU is that of its step alone
    for stage_name, count in (("vision", 2), ("decode", 3), ("decode/step", 2)):
        hits = views.find(f"stage: {stage_name}")
        sync_api.expect(hits).to_have_text(f"1 of {count}")
