"""What each notebook costs: minutes to read, seconds to run, memory; measured when it was last executed."""
import json

from ..models import ROOT

NOTEBOOKS = ROOT / "notebooks"


def costs() -> None:
    """Print one line a notebook, from notebooks/timings.json."""
    known = json.loads((NOTEBOOKS / "timings.json").read_text())
    for file in sorted(NOTEBOOKS.glob("*.ipynb")):
        title = json.loads(file.read_text(encoding="utf8"))["cells"][0]["source"]
        title = "".join(title).splitlines()[0].removeprefix("# ")
        cost = known.get(file.stem, {"minutes": 0, "seconds": 0, "mib": 0})
        print(f"{title:60} {cost['minutes']:3} min {cost['seconds']:4} s {cost['mib']:5} MiB")
