"""pytest plugin that makes nbval's comparison of notebook outputs strict where numbers matter, and
mild elsewhere.

    python -m pytest --nbval --nbval-current-env -p tools.nbval_plugin notebooks

It changes five things, only while notebooks are collected and run:

- Numbers agree within their own uncertainty, or the tolerance that their cell states (see
  `compare`); text is exact.
- Progress bars (stderr), HTML, SVG and JavaScript are not compared. What a notebook claims is in
  stdout or text/plain.
- An unknown magic fails its cell. IPython reports it on stderr alone, and nbval looks only for
  error messages.
- A dead kernel fails its cell within seconds, where nbval waits for its whole cell timeout of 2000
  s.
- Outputs may arrive 60 s late, where nbval fixes 5 s: a busy machine is not a broken notebook.

Kernels start offline and without tokenizer threads, so that a run needs no network and ends in the
same numbers, and with small multiples in place of sliders, which need a browser.

All this reaches into nbval's classes, so nbval is pinned to 0.11.0; tests/test_nbval_plugin.py
proves each point.
"""

import math
import os
import time
from collections.abc import Generator
from queue import Empty
from typing import Any
from unittest.mock import patch

import nbval.plugin
import pytest
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell, IPyNbFile

from tools import KERNEL_ENVIRONMENT
from tools.compare import Approximate, Tolerance, folded

OUTPUT_TIMEOUT = 60  # seconds
NOT_COMPARED = (
    "stderr",
    "text/html",
    "image/svg+xml",
    "application/javascript",
    "application/vnd.jupyter.widget-view+json",
)


class WatchedKernel(RunningKernel):
    """A kernel with our environment, whose death is noticed, and whose last reply can be read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.reply: dict = {}
        with patch.dict(
            os.environ, KERNEL_ENVIRONMENT | dict(os.environ)
        ):  # what the user has set wins
            super().__init__(*args, **kwargs)

    def await_reply(self, msg_id: str, timeout: float | None = None) -> None:
        """Wait for the reply to a request; look each second whether the kernel is still there."""
        end = time.monotonic() + (timeout or math.inf)
        while True:
            try:
                message = self.get_message("shell", timeout=1)
            except Empty:
                if not self.is_alive():
                    raise RuntimeError(
                        "the kernel died while it ran this cell (out of memory?)"
                    ) from None
                if time.monotonic() > end:
                    raise
                continue
            if message["parent_header"].get("msg_id") == msg_id:
                self.reply = message["content"]
                if self.reply["status"] == "aborted":
                    raise RuntimeError("the kernel aborted this cell")
                return


nbval.plugin.RunningKernel = WatchedKernel


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Leave out of the comparison what differs between machines and runs."""
    if isinstance(collector, IPyNbFile):
        collector.skip_compare += NOT_COMPARED


def pytest_itemcollected(item: pytest.Item) -> None:
    """Compare a cell's sanitized texts by our equality, with the tolerance of its notebook and its
    own."""
    if isinstance(item, IPyNbCell):
        sanitize = item.sanitize
        tolerance = Tolerance().updated(item.parent.nb.metadata).updated(item.cell.metadata)
        item.sanitize = lambda text: (
            Approximate.of(sanitize(folded(text)), tolerance) if isinstance(text, str) else text
        )
        item.output_timeout = OUTPUT_TIMEOUT


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a cell that the kernel calls failed without an error message: an unknown magic."""
    result = yield
    if isinstance(item, IPyNbCell) and item.parent.kernel.reply["status"] == "error":
        if not any(output.output_type == "error" for output in item.test_outputs):
            texts = [output.text for output in item.test_outputs if output.output_type == "stream"]
            item.raise_cell_error(
                "\n".join(["the kernel stopped in this cell without an exception:", *texts])
            )
    return result
