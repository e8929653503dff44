"""A real JupyterLab in a real browser: ``%%qvl`` shows its table, ``ql.watch`` its widgets.

Needs playwright (``pip install playwright``) and Debian's chromium (``apt-get install chromium``).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is missing: pip install playwright"
)
pytest.importorskip("jupyterlab", reason="JupyterLab is missing: pip install jupyterlab")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing: apt-get install chromium"),
]

TOKEN = "only-for-this-test"
#: It must show no dialogs and ask nobody for news; every output stays in the page.
LAB_SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}
BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
WAIT_MS = 60_000

CELLS = (
    "%load_ext qvl_lab\n"
    "from pathlib import Path\n"
    "import qvl_lab as ql\n"
    "lab = ql.load('tiny', device='cpu')\n"
    "items = ql.load_workload('mixed').items[:8]",
    "%%qvl --gpu A10G --provider article\n"
    "answers = lab.generate_batch(items, batch_size=4, resolution=128, max_new_tokens=16)\n"
    "f'{len(answers)} answers'",
    "with ql.watch(lab):\n"
    "    while not Path('stop').exists():\n"
    "        lab.generate_batch(items, batch_size=2, resolution=128, max_new_tokens=16)",
)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


def ask(url: str, method: str = "GET") -> None:
    request = urllib.request.Request(f"{url}?token={TOKEN}", method=method)
    urllib.request.urlopen(request, timeout=5).close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterLab over ``tmp_path``, with nobody's settings but the test's."""
    url = f"http://127.0.0.1:{free_port()}"
    config = tmp_path / "config"
    (config / "labconfig").mkdir(parents=True)
    overrides = config / "labconfig" / "default_setting_overrides.json"
    overrides.write_text(json.dumps(LAB_SETTINGS), "utf-8")
    # without a user's kernels the server has the one of this interpreter
    folders = ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "JUPYTER_RUNTIME_DIR")
    folders += ("JUPYTER_DATA_DIR",)
    options = {
        "IdentityProvider.token": TOKEN,
        "ServerApp.root_dir": str(tmp_path),
        "ServerApp.port": url.rpartition(":")[2],
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.disable_check_xsrf": "True",
        "LabApp.news_url": "",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in options.items())],
            env=os.environ
            | {"JUPYTER_CONFIG_DIR": str(config)}
            | {name: str(config / name) for name in folders},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(url, process, tmp_path / "server.log")
            yield url
            ask(f"{url}/api/shutdown", "POST")  # it ends its kernels too
            process.wait(20)
        finally:
            process.kill()
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        try:
            return ask(f"{url}/api/status")
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()
            time.sleep(0.25)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()}")


@pytest.fixture
def page(server: str, tmp_path: Path) -> Iterator[Any]:
    """The notebook, open in a browser, its kernel idle."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    notebook.metadata["kernelspec"] = {"name": "qvl-lab", "display_name": "qvl-lab"}
    nbformat.write(notebook, tmp_path / "shown.ipynb")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=BROWSER)
        page = browser.new_page(viewport={"width": 1300, "height": 1500})
        page.set_default_timeout(WAIT_MS)
        page.goto(f"{server}/lab/tree/shown.ipynb?token={TOKEN}&reset")
        page.locator(".jp-NotebookPanel .jp-Notebook").wait_for()
        # The notebook's own sign says idle before the session can be used; the status bar does not.
        page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()
        page.wait_for_timeout(1000)
        yield page
        browser.close()


def cell(page: Any, number: int) -> Any:
    return page.locator(".jp-Notebook .jp-CodeCell").nth(number)


def test_the_table_and_the_widgets_are_shown_as_the_work_goes_on(page: Any, tmp_path: Path) -> None:
    expect = playwright.expect
    expect.set_options(timeout=WAIT_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()

    measured = cell(page, 1).locator(".jp-OutputArea-output")
    table = measured.locator("table")
    expect(table).to_be_visible()
    for stage in ("decode_image", "vision/patch_embed", "prefill", "decode", "other"):
        expect(table.get_by_text(stage, exact=True)).to_be_visible()
    expect(measured.first).to_have_text(re.compile("'8 answers'"))
    expect(measured.last).to_contain_text(re.compile(r"new tokens, .* tokens/s · peak .* GiB · ¥"))

    watched = cell(page, 2).locator(".jp-OutputArea-output")
    bars = watched.locator(".widget-hprogress")
    expect(bars.filter(visible=True).nth(5)).to_be_visible()
    expect(watched.get_by_text(re.compile(r"^prefill \d+%$"))).to_be_visible()
    line = watched.get_by_text(re.compile(r"^[\d.]+ s · .*new tokens, .* tokens/s"))
    for _ in range(2):  # it goes on changing
        expect(line).not_to_have_text(line.inner_text())
    page.screenshot(path=str(tmp_path / "running.png"))

    (tmp_path / "stop").touch()
    expect(watched.locator("table")).to_be_visible()
    expect(bars).to_have_count(0)
    expect(watched.last).to_contain_text(re.compile(r"new tokens, .* tokens/s · peak .* GiB"))
    for stage in ("vision", "prefill", "decode"):
        expect(watched.get_by_text(stage, exact=True)).to_be_visible()
    page.screenshot(path=str(tmp_path / "done.png"))
    assert errors == []
