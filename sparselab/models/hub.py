"""The Hugging Face Hub: whether it may be asked, and its chatter."""

import os
import socket
from urllib.parse import urlparse

from transformers.utils import logging as transformers_logging


def online() -> bool:
    """Whether the Hub can be reached (looked up once, so that a machine without network fails in a
    second)."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "ON", "YES"):
        return False
    if any(os.environ.get(key) for key in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")):
        return True
    host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((host.hostname, host.port or 443), timeout=3).close()
        return True
    except OSError:
        return False


class quiet:
    """Silence transformers' own bars and notes for a moment; ours say what matters."""

    def __enter__(self):
        self.level = transformers_logging.get_verbosity()
        self.bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_):
        transformers_logging.set_verbosity(self.level)
        if self.bars:
            transformers_logging.enable_progress_bar()
