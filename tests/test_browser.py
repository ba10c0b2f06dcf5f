"""Notebooks in JupyterLab, as their readers have them: run all, move a slider, see the picture
change."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import BROWSER, ROOT

SECONDS = {
    name: cost["seconds"]
    for name, cost in json.loads((ROOT / "notebooks" / "timings.json").read_text()).items()
}
WITH_SLIDERS = sorted(
    (
        file
        for file in (ROOT / "notebooks").glob("*.ipynb")
        if "course.explore(" in file.read_text()
    ),
    key=lambda file: SECONDS[file.stem],
)[:2]  # the two that take least
SETTINGS = {
    "notebook-extension/tracker.jupyterlab-settings": {
        "windowingMode": "none"
    },  # all cells are on the page
    "apputils-extension/notification.jupyterlab-settings": {"fetchNews": "false"},
}
SCREENSHOTS = ROOT / "build" / "screenshots"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt install chromium")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on copies of the notebooks, without a token, on a port that is free; gives its
    address and folder."""
    folder = tmp_path_factory.mktemp("lab")
    for file in WITH_SLIDERS:
        shutil.copy(file, folder)
    for name, values in SETTINGS.items():
        (file := folder / "settings" / "@jupyterlab" / name).parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    environment = {
        **os.environ,
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "HF_HUB_OFFLINE": "1",
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
    }
    environment.pop("SPARSELAB_STATIC", None)
    options = [
        "--no-browser",
        "--allow-root",
        "--port=0",
        "--IdentityProvider.token=",
        "--expose-app-in-browser",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyter", "lab", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield _address(folder / "runtime")
    finally:
        server.terminate()
        server.wait()


def _address(runtime: Path) -> str:
    for _ in range(120):
        for file in runtime.glob("jpserver-*.json"):
            return json.loads(file.read_text())["url"]
        time.sleep(0.5)
    raise AssertionError("JupyterLab did not start within a minute")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium of the system."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


CONNECTED = """() => {
  const context = window.jupyterapp?.shell.currentWidget?.context?.sessionContext
  const kernel = context?.session?.kernel;
  return kernel?.connectionStatus === 'connected' && kernel.status === 'idle'
}"""
PROMPTS = (
    "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.innerText)"
)


def open_notebook(page, address: str) -> None:
    """Load the page, and say yes to the kernel that it may ask for."""
    page.goto(address, wait_until="load", timeout=120_000)
    page.wait_for_function("document.querySelectorAll('.jp-CodeCell').length > 5", timeout=120_000)
    asked = page.locator(".jp-Dialog .jp-mod-accept")
    for _ in range(120):
        if asked.count():
            asked.first.click()
        if page.evaluate(CONNECTED):
            return
        page.wait_for_timeout(1000)
    raise AssertionError("no kernel within two minutes")


def run_all(page) -> None:
    """Run every cell, and wait until none is waiting."""
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    page.wait_for_function(f"() => {PROMPTS}.some(text => text.includes('*'))", timeout=60_000)
    page.wait_for_function(
        f"() => !{PROMPTS}.some(text => text.includes('*'))", timeout=600_000, polling=1000
    )


@pytest.mark.parametrize("file", WITH_SLIDERS, ids=lambda file: file.stem)
def test_run_all_and_move_a_slider(lab, browser, file):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    open_notebook(page, f"{lab}doc/tree/{file.name}")
    run_all(page)
    picture = page.locator(".widget-image").first
    picture.scroll_into_view_if_needed()
    before = picture.get_attribute("src")
    if page.locator(".noUi-handle").count():
        page.locator(".noUi-handle").first.focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
    else:  # lesson 10 has choices only
        page.locator(".widget-toggle-buttons button:not(.mod-active)").first.click()
    page.wait_for_function(
        "old => document.querySelector('.widget-image').src !== old", arg=before, timeout=20_000
    )
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{file.stem}.png")
    text = page.inner_text("body")
    assert "Error displaying widget" not in text and "Traceback" not in text
    assert (
        page.locator(
            ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
        ).count()
        == 0
    )
    page.close()
