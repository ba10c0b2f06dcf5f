"""One figure style, and the figures that several places share. Every figure comes with a sentence that says its data."""
import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor

# Okabe-Ito colours with a marker and a line each: told apart by colour-blind readers and in grey.
STYLES = {"dense": ("#000000", "", ":"), "magnitude": ("#D55E00", "s", "--"), "wanda": ("#009E73", "^", "-."),
          "sparsegpt": ("#0072B2", "o", "-"), "dsnot": ("#CC79A7", "D", "--"), "sparsellm": ("#E69F00", "v", "-")}
LABELS = {"magnitude": "magnitude", "wanda": "Wanda", "sparsegpt": "SparseGPT", "dsnot": "DSnoT",
          "sparsellm": "SparseLLM", "dense": "dense"}
RC = {"figure.dpi": 110, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
      "grid.alpha": 0.25, "image.cmap": "cividis", "legend.frameon": False, "figure.constrained_layout.use": True}


def style():
    """The context in which every figure is drawn: `with sl.viz.style(): ...`."""
    return plt.rc_context(RC)


def show(figure: Figure, alt: str) -> None:
    """Display a figure in a notebook and print its description, which readers without the picture read and nbval
    compares (it never compares pixels). alt: the data in one sentence, with its numbers."""
    from IPython.display import display
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)
    print(f"Figure: {alt}")


def sparsity_curve(axes: Axes, table: pd.DataFrame) -> None:
    """Perplexity against sparsity, one line a method, from rows with method, sparsity, perplexity, stderr."""
    dense = table[table.method == "dense"].iloc[0]
    axes.axhline(dense.perplexity, color="black", linestyle=":", label="dense")
    for name, rows in table[table.method != "dense"].groupby("method", sort=False):
        colour, marker, line = STYLES[name]
        x = [0, *(100 * rows.sparsity)]
        axes.errorbar(x, [dense.perplexity, *rows.perplexity], [dense.stderr, *rows.stderr], color=colour,
                      marker=marker, linestyle=line, capsize=3, label=LABELS[name])
    axes.set(xlabel="zeros (%)", ylabel="perplexity", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.25, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend()


def masks(masks_by_name: dict[str, Tensor], *, corner: int = 32, title: str = "") -> Figure:
    """Masks of the same matrix side by side (bright = kept), the upper left corner; bool [r, c] each."""
    with style():
        figure, axes = plt.subplots(1, len(masks_by_name), figsize=(2.4 * len(masks_by_name), 2.8), squeeze=False)
        for axis, (name, mask) in zip(axes[0], masks_by_name.items(), strict=True):
            draw_mask(axis, mask, LABELS.get(name, name), corner)
        figure.suptitle(title)
    return figure


def draw_mask(axis: Axes, mask: Tensor, title: str, corner: int = 32) -> None:
    """One mask's upper left corner, bright = kept."""
    part = mask[:corner, :corner].cpu()
    axis.imshow(part.float(), vmin=0, vmax=1, interpolation="nearest")
    axis.set(title=f"{title}: {part.float().mean():.0%} kept", xticks=[], yticks=[], xlabel="inputs", ylabel="outputs")
    axis.title.set_fontsize(9)
    axis.grid(False)


def agreement(a: Tensor, b: Tensor) -> float:
    """Share of the weights on which two masks agree."""
    return (a == b).float().mean(dtype=torch.float64).item()
