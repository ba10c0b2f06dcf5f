"""SparseLLM's figure 2: what it prunes, what it frees and what it freezes in one block."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ...schematics import Schematic
from ..profiles import Profile

ROLES = {
    "pruned": "pruned: a matrix gets zeros",
    "free": "free: solved for, in turn",
    "frozen": "frozen at the dense model's value",
}


def pipeline_table(profile: Profile, file: Path, progress: bool) -> pd.DataFrame:
    """Nothing is measured."""
    return pd.DataFrame()


def draw_pipeline(table: pd.DataFrame) -> tuple[plt.Figure, str]:
    """The feed-forward network of OPT above, of LLaMA below, with the penalties that tie the free
    variables to their neighbours."""
    art = Schematic(50, 30)
    art.text(1.5, 28.5, "OPT", size=11, weight="bold")
    _opt(art, 23)
    art.text(1.9, 17.5, "LLaMA", size=11, weight="bold")
    _llama(art, 10)
    art.legend(1, 1, ROLES, step=17)
    return art.figure, (
        "SparseLLM in one block. The input X of the feed-forward network and its dense output Y"
        " are frozen. OPT: fc1 and fc2 are pruned, the value z before ReLU and the value p after"
        " it are free. LLaMA: gate, up and down are pruned, s, z and p are free. The attention"
        " matrices are pruned one by one; nothing around them is free."
    )


def _opt(art: Schematic, y: float) -> None:
    x = art.circle(3, y, "X", "frozen")
    first = art.box(11, y, "fc1", "pruned")
    z = art.circle(18.5, y, "z", "free")
    p = art.circle(28, y, "p", "free")
    second = art.box(35.5, y, "fc2", "pruned")
    target = art.circle(43.5, y, "Y", "frozen")
    art.arrow(x, first)
    art.arrow(first, z)
    art.arrow(z, p, "ReLU")
    art.arrow(p, second)
    art.arrow(second, target)
    art.text(14.7, y - 3, r"$\alpha\,\|z - W_1 X\|^2$")
    art.text(23.5, y - 3, r"$\gamma\,\|p - \mathrm{ReLU}(z)\|^2$")
    art.text(38.5, y - 3, r"$\beta\,\|Y - W_2\, p\|^2$")


def _llama(art: Schematic, y: float) -> None:
    x = art.circle(3, y, "X", "frozen")
    gate = art.box(11, y + 3.4, "gate", "pruned")
    up = art.box(11, y - 3.4, "up", "pruned")
    s = art.circle(18.5, y + 3.4, "s", "free")
    z = art.circle(18.5, y - 3.4, "z", "free")
    times = art.circle(24.5, y, "×", radius=0.8)
    p = art.circle(29, y, "p", "free")
    down = art.box(35.5, y, "down", "pruned")
    target = art.circle(43.5, y, "Y", "frozen")
    for start, end in ((x, gate), (x, up), (gate, s), (up, z), (times, p), (p, down)):
        art.arrow(start, end)
    art.arrow(down, target)
    art.arrow(s, times)
    art.arrow(z, times)
    art.text(22.6, y + 2.6, "SiLU", size=8)
    art.text(11, y + 5.9, r"$\alpha\,\|s - W_{gate} X\|^2$")
    art.text(11, y - 6, r"$\alpha\,\|z - W_{up} X\|^2$")
    art.text(28.5, y - 3, r"$\gamma\,\|p - \mathrm{SiLU}(s)\, z\|^2$")
    art.text(39.5, y - 3, r"$\beta\,\|Y - W_{down}\, p\|^2$")
