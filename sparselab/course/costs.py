"""What each notebook costs: minutes to read, seconds to run, memory; measured when it was last
executed."""

import json

from ..runtime.files import of_checkout


def costs() -> None:
    """Print one line a notebook, from notebooks/timings.json; a SparselabError where sparselab is
    not in a checkout."""
    timings = of_checkout("notebooks/timings.json", "the table of what the notebooks cost")
    known = json.loads(timings.read_text())
    for file in sorted(timings.parent.glob("*.ipynb")):
        title = json.loads(file.read_text(encoding="utf8"))["cells"][0]["source"]
        title = "".join(title).splitlines()[0].removeprefix("# ")
        cost = known.get(file.stem, {"minutes": 0, "seconds": 0, "mib": 0})
        print(f"{title:60} {cost['minutes']:3} min {cost['seconds']:4} s {cost['mib']:5} MiB")
