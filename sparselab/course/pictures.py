"""The lessons' figures of data that take more than one call to draw; a lesson shows one with a
sentence of its own."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .. import viz

# 02 The local objective


def errors_of_all_masks(errors: Tensor, magnitude: float) -> Figure:
    """02: how many masks have which error, with the best one and magnitude's."""
    best, marks = errors.min().item(), {"linewidth": 2}
    with viz.style():
        figure, axis = plt.subplots(figsize=(7, 2.8))
        axis.hist(errors.numpy(), bins=120, color="#bbbbbb")
        axis.axvline(best, color="#0072B2", label=f"best: {best:.1f}", **marks)
        label = f"magnitude: {magnitude:.1f}"
        axis.axvline(
            magnitude, color=viz.STYLES["magnitude"][0], linestyle="--", label=label, **marks
        )
        axis.set(xlabel="squared output error $E$", ylabel="number of masks", ylim=(0, None))
        axis.set_title("All masks of the small layer with 12 zeros")
        axis.legend()
    return figure


def inputs_of_layer(inputs: Tensor, cosine: Tensor, order: Tensor, *, crop: int = 48) -> Figure:
    """02: a real layer's inputs X [c, N], their norms, and how much they go together; `order`:
    the inputs by falling norm."""
    shown = inputs[order[:crop], :crop].abs()
    cut = inputs[:, :crop].abs().quantile(0.999).item()
    with viz.style():
        figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
        drawn = axes[0].imshow(shown, aspect="auto", vmin=0, vmax=cut)
        figure.colorbar(drawn, ax=axes[0], extend="max")
        axes[0].set(title="values of $X$, without sign", xlabel="token")
        axes[1].plot(inputs.norm(dim=1)[order], color="#0072B2")
        axes[1].set(title=r"norms, $\sqrt{G_{jj}}$", ylabel="norm", yscale="log")
        drawn = axes[2].imshow(cosine[order[:crop]][:, order[:crop]].abs(), vmin=0, vmax=1)
        axes[2].set(title="cosines between inputs, without sign")
        figure.colorbar(drawn, ax=axes[2])
        for axis in axes[::2]:
            axis.grid(False)
            axis.set_ylabel(f"input, the {crop} largest norms")
        for axis in axes[1:]:
            axis.set_xlabel("input, by falling norm")
    return figure


def largest_and_dead(share: Tensor, dead: Tensor, kinds: list[str]) -> Figure:
    """02: for each kind of input and each block, the largest share and the number of dead ones."""
    with viz.style():
        figure, axes = plt.subplots(2, 1, figsize=(9, 4.4), sharex=True)
        viz.numbers(
            axes[0], share, "the input with the largest norm: its share of the trace of $G$ (%)"
        )
        viz.numbers(axes[1], dead, "number of inputs that are zero on every token", digits=0)
        for axis in axes:
            axis.set(yticks=range(len(kinds)), yticklabels=kinds, xticks=range(share.shape[1]))
        axes[1].set_xlabel("block")
    return figure


def errors_by_block(
    errors: dict[str, list[float]], weights: dict[str, Tensor], name: str
) -> Figure:
    """02: the relative error of each block's matrices, and the weights of one of them."""
    with viz.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3))
        viz.lines(left, errors, xlabel="block", ylabel="mean relative error")
        left.set(ylim=(0, None), title="errors of the matrices, block by block")
        viz.histogram(right, weights, title=f"weights that are not zero: {name}")
    return figure


# 03 Wanda


def errors_over_best(ratios: dict[str, Tensor]) -> Figure:
    """03: the error of each row's mask over the smallest possible one, sorted for each method."""
    with viz.style():
        figure, axis = plt.subplots(figsize=(6.5, 2.9))
        sorted_rows = {method: ratio.sort().values.tolist() for method, ratio in ratios.items()}
        labels = {"xlabel": "rows, each method's best first", "ylabel": "$E$ / smallest possible"}
        viz.lines(axis, sorted_rows, **labels)
        for line in axis.lines:
            line.set_markevery(20)
        axis.set(ylim=(0, None), title="Error of the mask, compared with the best of all")
    return figure


def diagonal_and_truth(diagonal: Tensor, truth: Tensor) -> Figure:
    """03: what the diagonal says of each row's error, and what the error is."""
    with viz.style():
        figure, axis = plt.subplots(figsize=(4.6, 3.6))
        axis.loglog(diagonal, truth, ".", color=viz.STYLES["wanda"][0], alpha=0.5, label="one row")
        ends = [diagonal.min(), diagonal.max()]
        axis.loglog(ends, ends, color="black", linestyle=":", label="equal")
        axis.set(xlabel="first sum of equation (1)", ylabel="true error of the row")
        axis.set_title("Most rows cost more than their diagonal")
        axis.legend()
    return figure


def rows_and_relu(zeros: Tensor, silent: Tensor, errors: dict[str, tuple[float, float]]) -> Figure:
    """03: the zeros (%) of each row where scores are compared by matrix, outputs that never fire
    apart; and by scope the relative errors before and after the ReLU."""
    colour, look = viz.STYLES["wanda"][0], {"bins": 25, "range": (0, 100), "stacked": True}
    with viz.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3), width_ratios=[1.5, 1])
        groups = {"output never fires": zeros[silent], "output fires": zeros[~silent]}
        values = [group.tolist() for group in groups.values()]
        left.hist(values, color=["#bbbbbb", colour], label=[*groups], **look)
        left.axvline(70, color="black", linestyle=":", label="by row: 70 % in each")
        left.set(xlabel="zeros in the row (%)", ylabel="number of rows")
        left.set_title("Compared by matrix: zeros of each row")
        left.legend()
        for place, (scope, pair) in enumerate(errors.items()):
            fill = colour if place == 0 else "white"
            at = [side + 0.36 * (place - 0.5) for side in (0, 1)]
            right.bar(at, pair, width=0.34, color=fill, edgecolor=colour, label=scope)
        right.set(xticks=[0, 1], xticklabels=["before the ReLU", "after it"])
        right.set(ylabel="relative error", title="Error of the layer")
        right.legend()
    return figure


# 04 From OBS to SparseGPT


def three_weights(hessian: Tensor, inverse: Tensor, weights: Tensor, after: Tensor) -> Figure:
    """04: H, its inverse, and a row of three weights that loses one of them, each in turn."""
    alive = ~torch.eye(len(hessian), dtype=torch.bool)
    with viz.style():
        figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.4))
        viz.numbers(axes[0], hessian, "$H$", digits=0)
        viz.numbers(axes[1], inverse, "$H^{-1}$", digits=2)
        rows = [f"$j={j}$" for j in range(len(hessian))]
        before = weights.expand_as(hessian)
        viz.numbers(axes[2], before, "drop weight $j$ ...", mask=alive, digits=0, rows=rows)
        viz.numbers(axes[3], after, "... the others move", mask=alive, digits=0)
    return figure


def inverses_of_rows(hessian: Tensor, left: Tensor) -> Figure:
    """04: the inverse that each row goes on with; left: bool [rows, c], the inputs it still has."""
    with viz.style():
        figure, axes = plt.subplots(1, len(left), figsize=(3.7 * len(left), 2.8))
        for row, (axis, alive) in enumerate(zip(axes, left, strict=True)):
            square = torch.zeros_like(hessian)
            square[alive.nonzero(), alive.nonzero().T] = hessian[alive][:, alive].inverse()
            look = {"mask": alive & alive[:, None], "digits": 2}
            names = [*map(str, range(len(hessian)))]
            title = f"row {row}: inverse for its inputs"
            viz.numbers(axis, square, title, rows=names, columns=names, **look)
    return figure


def column_film(
    axis: Axes, mask: Tensor, frames: list[tuple[Tensor, float]], column: int, block: int
) -> str:
    """04: a small weight after so many columns of SparseGPT's loop, and a sentence; frames: the
    weight and the squared error after each column, mask: what stays in the end, bool [r, c]."""
    now, error = frames[column]
    shown = mask | (torch.arange(mask.shape[1]) >= column)  # a weight is crossed out in its turn
    moved = ((now - frames[max(column - 1, 0)][0]).abs() > 5e-3) & shown
    title = f"block {block}, after {column} of {mask.shape[1]} columns"
    viz.numbers(axis, now, title, mask=shown, highlight=moved)
    axis.axvline(column - 0.5, color="black", linewidth=2)
    axis.set_xlabel(f"squared error so far {error:.1f}")
    return f"{title}, weights dropped: {int((~shown).sum())}, squared error so far {error:.2f}"


def masks_and_weights(losses: dict[str, dict[tuple[str, str], tuple[float, float]]]) -> Figure:
    """04: what models lose with a mask of one method and weights that stay or move; losses: nats a
    token above dense and their standard error, by (method of the mask, 'stay' or 'move')."""
    with viz.style():
        figure, axes = plt.subplots(1, len(losses), figsize=(4.8 * len(losses), 2.5))
        for axis, (title, rows) in zip([*np.atleast_1d(axes)], losses.items(), strict=True):
            methods = [*dict.fromkeys(method for method, _ in rows)]
            for y, method in enumerate(methods):
                colour, marker, _ = viz.STYLES[method]
                ends = [rows[method, weights][0] for weights in ("stay", "move")]
                axis.annotate(
                    "", ends[1:] + [y], ends[:1] + [y], arrowprops={"arrowstyle": "->", "lw": 1}
                )
                for weights, fill in (("stay", "none"), ("move", "full")):
                    loss, stderr = rows[method, weights]
                    look = {"color": colour, "marker": marker, "fillstyle": fill, "capsize": 3}
                    axis.errorbar(loss, y, xerr=stderr, markersize=8, **look)
                    axis.text(loss, y + 0.22, weights, ha="center", fontsize=9)
            names = [f"{viz.LABELS[method]}'s mask" for method in methods]
            axis.set_yticks(range(len(methods)), names)
            top = 1.15 * max(loss for loss, _ in rows.values())
            axis.set(title=title, xlim=(0, top), ylim=(-0.5, len(methods) - 0.3))
            axis.set_xlabel("nats a token above dense")
    return figure


def errors_by_block_size(scans: dict[str, dict[int, float]]) -> Figure:
    """04: relative error of matrices by how many columns choose their mask together."""
    with viz.style():
        figure, axis = plt.subplots(figsize=(7, 3.2))
        looks = ("#000000", "o", "-"), ("#777777", "^", "-"), ("#444444", "s", "-.")
        looks = (*looks, ("#999999", "D", ":"), ("#777777", "^", "--"))
        for (name, errors), (colour, marker, line) in zip(scans.items(), looks, strict=True):
            look = {"color": colour, "marker": marker, "linestyle": line}
            axis.plot([*errors], [*errors.values()], label=name.split(".")[-1], **look)
        widest = max(map(max, scans.values()))
        widths = {width for errors in scans.values() for width in errors if 4 * width <= widest}
        axis.set(xscale="log", ylim=(0, None), ylabel="relative error")
        axis.set_xlabel("block: columns that choose their mask together")
        axis.set_xticks([*widths, widest], [*map(str, widths), str(widest)])
        axis.minorticks_off()
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def damping(
    axis: Axes, damps: list[float], seen: list[float], unseen: list[float], title: str
) -> str:
    """04: relative error by damping, on the calibration tokens and on other text; a sentence."""
    axis.plot(damps, seen, color="#999999", marker="v", linestyle="--", label="calibration tokens")
    axis.plot(damps, unseen, color="#000000", marker="o", label="other text")
    axis.set(xscale="log", ylim=(0, 0.5), title=title, xlabel="damping", ylabel="relative error")
    axis.set_xticks([1e-4, 1e-2, 1], ["0.0001", "0.01", "1"])
    axis.minorticks_off()
    axis.legend(fontsize=8)
    shown = ", ".join(f"damping {damps[k]:g} {unseen[k]:.3f}" for k in (0, 2, 4, 5))
    return f"{title}, error on other text: {shown}"
