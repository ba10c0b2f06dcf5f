"""Standard output that cannot stop the work: a pipe that was closed, a full disk, a terminal that
knows fewer characters."""

import io
import os
import sys
from contextlib import contextmanager


class _Patient(io.TextIOBase):
    """Hands text on to a stream, until that one fails."""

    def __init__(self, stream):
        self.stream, self.error = stream, None

    def write(self, text: str) -> int:
        self._try(self.stream.write, self._writable(text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def encoding(self) -> str:
        return getattr(self.stream, "encoding", None) or "utf8"

    def _writable(self, text: str) -> str:
        """With '?' where the stream's encoding has no such character."""
        return text.encode(self.encoding, "replace").decode(self.encoding)

    def _try(self, call, *arguments) -> None:
        if self.error is not None:
            return
        try:
            call(*arguments)
        except OSError as error:
            self.error = error
            # What the stream still holds must go somewhere, or Python fails once more at its end.
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())


@contextmanager
def patient(name: str):
    """Run the body with `sys.stdout` or `sys.stderr` as a stream that raises no error, and give it:
    its `error` is the one that the system had, None where all was written."""
    stream = getattr(sys, name)
    if stream is None:  # closed by the shell
        stream = open(os.devnull, "w")
    calm = _Patient(stream)
    setattr(sys, name, calm)
    try:
        yield calm
    finally:
        calm.flush()
        setattr(sys, name, stream)
