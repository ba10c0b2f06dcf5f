"""The lessons' figures of data that take more than one call to draw; a lesson shows one with a
sentence of its own."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from .. import viz
from ..patterns import Pattern

# 01 What a pruned model loses


def predictions_of_toy(said: Tensor, came: Tensor, words: list[str]) -> Figure:
    """01: probabilities [predictions, V] of the toy, the token that came [predictions] in a
    frame."""
    with viz.style():
        figure, axis = plt.subplots(figsize=(3.6, 3))
        framed = range(said.shape[1]) == came[:, None].numpy()
        viz.numbers(axis, said, "probability of each token", highlight=framed, digits=3)
        axis.set(xticks=range(len(words)), xticklabels=words, ylabel="prediction")
        axis.set_yticks(range(len(said)))
    return figure


def draw_cut(figure: Figure, weight: Tensor, mask: Tensor, title: str) -> None:
    """01: into a figure, the weights [r, c] that stay and that go, and a corner of the mask."""
    left, right = figure.subplots(1, 2, width_ratios=[1.4, 1])
    look = {"bins": 64, "range": [each * weight.std().item() for each in (-4, 4)]}
    look |= {"histtype": "stepfilled", "linewidth": 0.8}
    face, edge = viz.PRUNED
    left.hist(weight[~mask].numpy(), facecolor=face, edgecolor=edge, label="go", **look)
    left.hist(weight[mask].numpy(), facecolor="white", edgecolor="#444444", label="stay", **look)
    left.set(xlabel="weight", ylabel="number of weights", yticks=[])
    left.set_title(title, fontsize=9)
    left.locator_params(axis="x", nbins=4)
    left.legend(fontsize=8)
    viz.draw_mask(right, mask, "a corner of the mask")


def perplexity_by_zeros(values: dict[int, float], counting: float) -> Figure:
    """01: perplexity by % of zeros, magnitude; that of a table of counts as a line."""
    with viz.style():
        figure, axis = plt.subplots(figsize=(6, 3.4))
        look = viz.line_style(*viz.STYLES["magnitude"])
        axis.plot([*values], [*values.values()], label="magnitude", **look)
        dense = viz.line_style(*viz.STYLES["dense"])
        axis.axhline(values[0], label=f"dense: {values[0]:.0f}", **dense)
        label = f"table of counts: {counting:.0f}"
        axis.axhline(counting, color="#777777", linestyle="-.", label=label)
        axis.set(yscale="log", xlabel="zeros (%)", ylabel="perplexity", xticks=[*values])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.legend()
    return figure


def windows_paired(dense: Tensor, pruned: dict[int, Tensor]) -> Figure:
    """01: the mean losses [K] of the windows, pruned against dense, one panel a % of zeros."""
    with viz.style():
        figure, axes = plt.subplots(1, len(pruned), figsize=(8, 3.4), sharey=True)
        for axis, (zeros, losses) in zip(axes, pruned.items(), strict=True):
            axis.axline([dense.mean()] * 2, slope=1, color="black", linestyle=":", label="equal")
            axis.scatter(dense, losses, color=viz.STYLES["magnitude"][0], s=16)
            axis.set_xlabel("dense: mean loss of a window (nats a token)")
            axis.set_title(f"{zeros} % zeros")
        axes[0].set_ylabel("pruned: mean loss of\nthe same window (nats a token)")
        axes[0].legend()
    return figure


def draw_pairs(
    figure: Figure, cases: dict[int, tuple[float, list[float]]], windows: int, zeros: int
) -> None:
    """01: into a figure, a difference of losses with the errors of dense, pruned and paired; cases:
    these by number of windows, which share the scale."""
    axis, (change, errors) = figure.subplots(), cases[windows]
    axis.errorbar([0, change, change], [2, 1, 0], xerr=errors, fmt="o", color="#0072B2", capsize=5)
    low = min(min(0, change) - max(errors) for change, errors in cases.values())
    high = max(max(0, change) + max(errors) for change, errors in cases.values())
    axis.set_xlim(1.1 * low, 1.1 * high)
    axis.axvline(0, color="black", linestyle=":")
    names = ["difference, paired", f"{zeros} % zeros, own error", "dense, own error"]
    axis.set(ylim=(-0.5, 2.5), yticks=[0, 1, 2], yticklabels=names, title=f"{windows} windows")
    axis.set_xlabel("mean loss above dense (nats)")
    axis.locator_params(axis="x", nbins=4)


def changes_by_kind(changes: dict[str, Tensor]) -> Figure:
    """01: distributions of the change of a token's loss, by kind of token."""
    looks = zip(("#0072B2", "#D55E00", "#666666"), ("-", "--", ":"), strict=True)
    with viz.style():
        figure, axis = plt.subplots(figsize=(6.4, 3.2))
        for (kind, change), (colour, line) in zip(changes.items(), looks, strict=True):
            look = {"color": colour, "linestyle": line, "linewidth": 1.8, "label": kind}
            shape = {"bins": 60, "range": (-4, 8), "density": True, "histtype": "step"}
            axis.hist(change.numpy(), **shape, **look)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(xlabel="change of a token's loss at 70 % zeros (nats)", ylabel="density")
        axis.legend()
    return figure


def scan(alone: list[tuple[float, float]], whole: float) -> Figure:
    """01: excess loss and its error, each block pruned alone; that of all together as a line."""
    with viz.style():
        figure, axis = plt.subplots(figsize=(6, 3))
        means, errors = ([float(each) for each in part] for part in zip(*alone, strict=True))
        axis.bar(range(len(alone)), means, yerr=errors, color="#D55E00", capsize=3)
        axis.axhline(whole, color="black", linestyle=":", label="all blocks together")
        axis.set(xlabel="the only block that is pruned", ylabel="excess loss (nats)")
        axis.set_xticks(range(len(alone)))
        axis.legend()
    return figure


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
        figure.colorbar(drawn, ax=axes[0], extend="max", label="$|X|$")
        axes[0].set(title="values of $X$, without sign", xlabel="token")
        axes[1].plot(inputs.norm(dim=1)[order], color="#0072B2")
        axes[1].set(title=r"norms, $\sqrt{G_{jj}}$", yscale="log")
        drawn = axes[2].imshow(cosine[order[:crop]][:, order[:crop]].abs(), vmin=0, vmax=1)
        axes[2].set(title="cosines between inputs, without sign")
        figure.colorbar(drawn, ax=axes[2])
        for axis in axes[::2]:
            axis.grid(False)
            axis.set_ylabel(f"input, the {crop} largest norms")
        for axis in axes[1:]:
            axis.set_xlabel("input, by falling norm")
    return figure


def largest_and_dead(share: Tensor, dead: Tensor, sizes: dict[str, int]) -> Figure:
    """02: for each kind of input and each block, the largest share and the number of dead ones;
    sizes: how many inputs there are, by kind."""
    with viz.style():
        figure, axes = plt.subplots(2, 1, figsize=(9, 4.4), sharex=True)
        viz.numbers(
            axes[0], share, "the input with the largest norm: its share of the trace of $G$ (%)"
        )
        viz.numbers(axes[1], dead, "number of inputs that are zero on every token", digits=0)
        of_all = [f"{kind} (of {size})" for kind, size in sizes.items()]
        for axis, names in zip(axes, ([*sizes], of_all), strict=True):
            axis.set(yticks=range(len(names)), yticklabels=names, xticks=range(share.shape[1]))
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
            fill = {"color": colour} if scope == "by matrix" else {"color": "white", "hatch": "///"}
            at = [side + 0.36 * (place - 0.5) for side in (0, 1)]
            right.bar(at, pair, width=0.34, edgecolor=colour, label=scope, **fill)
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
        top = torch.stack([before, after]).abs().max().item()
        look = {"mask": alive, "digits": 0, "top": top}
        viz.numbers(axes[2], before, "drop weight $j$ ...", rows=rows, **look)
        viz.numbers(axes[3], after, "... the others move", **look)
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
    top = max(weight.abs().max().item() for weight, _ in frames)
    viz.numbers(axis, now, title, mask=shown, highlight=moved, top=top)
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


# 05 DSnoT and exact swaps


def while_swapping(
    cycles: list[int], sizes: dict[str, list[float]], errors: dict[str, list[float]]
) -> Figure:
    """05: mean |e| and the squared error after so many swaps, with and without the sign rule."""
    with viz.style():
        figure, axes = plt.subplots(1, 2, figsize=(9, 3))
        names = (r"mean $|e|$", r"$E$, as a share of $\|WX\|^2$")
        for axis, series, words in zip(axes, (sizes, errors), names, strict=True):
            viz.lines(axis, series, x=cycles, xlabel="swaps a row at most", ylabel=words)
            axis.set_ylim(0, None)
    return figure


def two_parts(
    names: list[str], before: list[tuple[float, float]], after: list[tuple[float, float]]
) -> Figure:
    """05: the mean part and the spread part of each matrix's error, before and after DSnoT, as
    shares of the error before."""
    with viz.style():
        figure, axis = plt.subplots(figsize=(8, 3))
        for shift, method, parts in ((-0.2, "wanda", before), (0.2, "dsnot", after)):
            words, colour = viz.LABELS[method], viz.STYLES[method][0]
            places = [place + shift for place in range(len(names))]
            means, spreads = (
                [pair[k] / sum(whole) for pair, whole in zip(parts, before, strict=True)]
                for k in (0, 1)
            )
            axis.bar(places, spreads, 0.38, color=colour, label=f"{words}: spread part")
            look = {"color": "white", "hatch": "////", "edgecolor": colour}
            axis.bar(places, means, 0.38, bottom=spreads, label=f"{words}: mean part", **look)
        axis.axhline(1, color="black", linestyle=":", linewidth=1)
        axis.set_xticks(range(len(names)), names)
        axis.set(ylabel="$E$, Wanda's is 1", title="each matrix, before and after DSnoT")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=9)
    return figure


def errors_and_perplexities(
    errors: dict[str, list[float]], perplexities: dict[str, float], dense: float
) -> Figure:
    """05: the matrices' errors by block, and what the whole model makes of them."""
    with viz.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.1), width_ratios=[3, 2])
        viz.lines(left, errors, xlabel="block", ylabel="mean relative error")
        left.set(ylim=(0, None), title="errors of the matrices")
        for name, value in perplexities.items():
            bar = right.bar(viz.LABELS[name], value, color=viz.STYLES[name][0])
            right.bar_label(bar, fmt="%.0f")
        right.axhline(dense, color="black", linestyle=":")
        right.margins(y=0.12)
        right.set(ylabel="perplexity", title=f"whole model (dotted: dense, {dense:.0f})")
    return figure


def one_change(
    errors: dict[str, float], gaps: dict[str, float], recorded: dict[str, list[float]]
) -> Figure:
    """05: what each change does to the error of fc1 and to the loss of the model; `recorded`: the
    loss with three draws of the calibration text."""
    names, colour = [*errors], viz.STYLES["wanda"][0]
    with viz.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True)
        left.barh(names, errors.values(), color=colour, height=0.55)
        left.set(xlabel="relative error of fc1, mean of the blocks", title="what the matrices lose")
        right.barh(names, gaps.values(), color=colour, height=0.55)
        right.axvline(0, color="black", linewidth=1)
        for place, name in enumerate(names):
            values = recorded.get(name, [])
            label = "recorded: three draws" if values and place == len(names) - 1 else None
            right.plot(values, [place] * len(values), "o", color="black", mfc="none", label=label)
        right.set(xlabel="loss against Wanda's (nats a token)", title="what the model loses")
        right.legend(loc="lower right", fontsize=9)
        left.invert_yaxis()
        for axis in (left, right):
            axis.grid(False, axis="y")
    return figure


# 06 From the global loss to sub-problems


def objectives_and_errors(objectives: dict[str, Tensor], error: Tensor) -> Figure:
    """06: for every pair of masks an objective against the true error, and the pair with the lowest
    one; a panel for each objective."""
    with viz.style():
        figure, axes = plt.subplots(1, len(objectives), figsize=(9, 3.2), sharey=True)
        for axis, (title, values) in zip(axes, objectives.items(), strict=True):
            place, best = values.flatten().argmin(), error.min().item()
            axis.plot(values.flatten(), error.flatten(), ",", color="#0072B2")
            x, y = values.flatten()[place].item(), error.flatten()[place].item()
            axis.axhline(best, color="black", linestyle=":", label=f"best pair: error {best:.0f}")
            label = f"pair of lowest objective: error {y:.0f}"
            axis.plot(x, y, "o", color="#D55E00", markersize=8, label=label)
            axis.set(xscale="log", yscale="log", xlabel="objective of the pair", title=title)
            narrow = values.max() < 50 * values.min()
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
            for ruler in (axis.xaxis, axis.yaxis):
                ruler.set_major_formatter("{x:g}")
                ruler.set_minor_formatter("")
            axis.set(xlim=(values.min() / 1.4, 1.4 * values.max()), ylim=(100, 4 * error.max()))
            axis.legend(loc="upper left")
        axes[0].set_ylabel("true error of the pair")
    return figure


def memory_and_loss(rows: pd.DataFrame, labels: dict[str, str]) -> Figure:
    """06: recorded runs, memory against loss, each with its seconds; `labels` by method."""
    with viz.style():
        figure, axis = plt.subplots(figsize=(7.4, 3.8))
        for name, label in labels.items():
            memory, loss, seconds = rows.loc[name, ["extra_mib", "excess", "seconds"]]
            colour, marker, _ = viz.style_of(name)
            look = {"fillstyle": viz.fill_of(name), "markersize": 9, "linestyle": ""}
            axis.plot(memory, loss, color=colour, marker=marker, **look)
            words, place = f"{label}, {seconds:.0f} s", {"textcoords": "offset points"}
            lift = {"sparsegpt": 3, "sparsellm:repaired": -9}.get(name, -3)
            axis.annotate(words, (memory, loss), xytext=(9, lift), fontsize=9, **place)
        axis.set(xlabel="memory beside the model (MiB)", ylabel="loss above dense (nats a token)")
        axis.set(xlim=(0, 1.5 * rows.extra_mib.max()), ylim=(-0.02, None))
        axis.set_title("Memory, loss and seconds of a whole run")
    return figure


# 07 SparseLLM for OPT


def penalties_by_choice(weights: list[Tensor], kept: Tensor, terms: Tensor, names: list[str]):
    """07: the toy's two matrices, and its penalty terms [choices, 3] for choices of z and a."""
    with viz.style():
        figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), width_ratios=[2, 3, 5])
        viz.numbers(axes[0], weights[0], "$W_1$", mask=kept, digits=0)
        viz.numbers(axes[1], weights[1], "$W_2$", digits=0)
        viz.numbers(axes[2], terms, "the terms of (3), and their sum", digits=2)
        columns = [r"$\alpha$ term", r"$\beta$ term", r"$\gamma$ term", "sum"]
        axes[2].set(xticks=range(4), yticks=range(len(names)), aspect=0.5)
        axes[2].set(xticklabels=columns, yticklabels=names)
    return figure


def around_minimum(walks: dict[str, tuple[Tensor, Tensor]]) -> Figure:
    """07: costs [lines, steps] on lines through a minimum, and the steps, a panel each."""
    with viz.style():
        figure, axes = plt.subplots(1, len(walks), figsize=(4.5 * len(walks), 2.7))
        for axis, (title, (steps, costs)) in zip(axes, walks.items(), strict=True):
            axis.plot(steps, costs.T, color="#0072B2", alpha=0.6)
            axis.plot(0, 1, "o", color="#D55E00", label="the solution")
            axis.set(title=title, xlabel="step $t$ along a random direction")
            axis.set_ylabel("cost / cost at the solution")
            axis.set_xticks([steps[0].item(), 0, steps[-1].item()])
            axis.legend(loc="upper center")
    return figure


TERM_LOOKS = (("#0072B2", "o"), ("#E69F00", "v"), ("#009E73", "^"))  # alpha, beta, gamma


def two_terms(ratios: Tensor, lacking: list[float], moved: list[float]) -> Figure:
    """07: what the step for a pays in its two terms, by gamma/beta."""
    with viz.style():
        figure, axis = plt.subplots(figsize=(5.4, 2.8))
        names = (r"$\beta$: output still lacking", r"$\gamma$: move away from ReLU(z)")
        series = zip((lacking, moved), names, TERM_LOOKS[1:], ("-", "--"), strict=True)
        for values, name, look, line in series:
            axis.plot(ratios, values, label=name, **viz.line_style(*look, line))
        axis.set(xscale="log", xlabel=r"$\gamma/\beta$", ylabel="relative size", ylim=(0, None))
        axis.set_title("The step for $a$: mend the output or stay near ReLU(z)")
        axis.legend()
    return figure


def cost_of_z(
    figure: Figure, line: Tensor, costs: Tensor, branches: dict, best: tuple, title: str
) -> None:
    """07: the cost of one z, the minimum of each branch, and the lower one, (z, cost) each."""
    axis = figure.subplots()
    axis.plot(line, costs, color="#0072B2")
    axis.plot(*zip(*branches.values(), strict=True), "o", color="#D55E00", mfc="white")
    axis.plot(*best, "o", color="#D55E00")
    for (name, place), side in zip(branches.items(), ("right", "left"), strict=True):
        on_line = place[0] == 0  # the name stands beside the line, where no curve is
        away = {"left": (5, 12), "right": (-5, 12)}[side] if on_line else (0, 8)
        look = {"textcoords": "offset points", "ha": side if on_line else "center"}
        axis.annotate(name, place, away, **look)
    axis.axvline(0, color="#999999", linewidth=0.8)
    axis.set(xlabel="$z$", ylabel="cost (8)", ylim=(0, 24), title=title)


def convergence(terms: Tensor, errors: list[float], unseen: list[float]) -> Figure:
    """07: the penalty terms [3, epochs] and the true error of a network by epoch."""
    epochs = range(len(errors))
    names = (r"$\alpha$: $z$ against $W_1X+b_1$", r"$\beta$: $Y$ against $W_2a$")
    names += (r"$\gamma$: $a$ against ReLU($z$)",)
    with viz.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.1))
        left.plot(epochs, terms.sum(0), "X-", color="#444444", label="sum")
        for values, name, (colour, marker) in zip(terms, names, TERM_LOOKS, strict=True):
            left.plot(epochs, values, color=colour, marker=marker, label=name)
        left.set(ylabel="penalty per token", ylim=(0, 1.45 * terms.sum(0).max()))
        left.set_title("What the loop minimises")
        right.plot(epochs, unseen, "s--", color="#000000", label="tokens that no step has seen")
        right.plot(epochs, errors, "D-", color="#777777", label="calibration tokens")
        right.set(ylabel="relative error of the network", ylim=(0, 1.4 * max(unseen)))
        right.set_title("What we care about")
        left.legend(fontsize=8, ncols=2, loc="upper center")
        right.legend(fontsize=9)
        for axis in (left, right):
            axis.set(xlabel="epoch", xticks=epochs)
    return figure


def loop_by_block(first: list[float], last: list[float], scores: list[float], local: float):
    """07: each network's error in the first and the last epoch, and the perplexity of the locally
    pruned model with one network of the loop in it."""
    blocks = range(len(first))
    with viz.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3))
        series = {"first epoch: SparseGPT": first, "last epoch": last}
        for (label, values), name in zip(series.items(), ("sparsegpt", "sparsellm"), strict=True):
            look = viz.line_style(*viz.STYLES[name])
            left.plot(blocks, values, label=label, **look)
        left.set(ylabel="relative error of the network", ylim=(0, 1.35 * max(first + last)))
        left.set_title("Errors of the networks")
        left.legend()
        right.bar(blocks, scores, color=viz.STYLES["sparsellm"][0], width=0.6)
        right.axhline(local, color=viz.STYLES["sparsegpt"][0], label="all networks by SparseGPT")
        right.set(ylabel="perplexity", ylim=(0, 1.3 * max(scores)))
        right.set_title("SparseGPT's model with one network of the loop")
        right.legend()
        for axis in (left, right):
            axis.set(xlabel="block", xticks=blocks)
    return figure


def smallest_direction(values: Tensor, vector: Tensor, gamma: Tensor) -> Figure:
    """07: eigenvalues over their mean, rising, and the eigenvector of the first against the unit
    vector along 1/gamma, entry by entry."""
    with viz.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3))
        left.plot(values, ".", color="#0072B2", markersize=4)
        left.plot(0, values[0], "o", color="#D55E00", label="the smallest")
        left.set(yscale="log", xlabel="rank of the eigenvalue, from 0")
        left.set_ylabel("eigenvalue / mean eigenvalue")
        left.set_title("Eigenvalues of $XX^T$")
        left.legend(loc="lower right")
        ends = torch.stack((gamma.min(), gamma.max()))
        right.plot(ends, ends, color="#999999", label="equal")
        right.plot(gamma, vector, ".", color="#D55E00", markersize=4, label="its eigenvector")
        right.set(xlabel=r"$1/\gamma$, scaled to length 1", ylabel="entry of the eigenvector")
        right.set_title("The smallest one's eigenvector")
        right.legend()
    return figure


def fits_by_epoch(errors: dict[str, list[float]]) -> Figure:
    """07: the error of one network by epoch, for several ways to fit W1."""
    looks = (
        ("#444444", "X", ":"),
        ("#D55E00", "s", "--"),
        ("#E69F00", "v", "-"),
        ("#009E73", "^", "-"),
    )
    with viz.style():
        figure, axis = plt.subplots(figsize=(6.4, 3))
        for (label, values), look in zip(errors.items(), looks, strict=True):
            axis.plot(values, label=label, **viz.line_style(*look))
        axis.set(xlabel="epoch", ylabel="relative error of the network", xticks=range(len(values)))
        axis.set(ylim=(0, 1.6 * max(map(max, errors.values()))))
        axis.set_title("Four ways to fit $W_1$ in one block")
        axis.legend(fontsize=8, loc="upper left")
    return figure


def recorded_rungs(excess: dict[str, float]) -> Figure:
    """07: the loss above the dense model, a bar for each recorded change of SparseGPT."""
    with viz.style():
        figure, axis = plt.subplots(figsize=(7.4, 2.5))
        methods = [
            "sparsellm" if "SparseLLM" in name else "admm" if "ADMM" in name else "sparsegpt"
            for name in excess
        ]
        colours = [viz.STYLES[method][0] for method in methods]
        axis.barh(range(len(excess)), [*excess.values()], color=colours)
        axis.set(yticks=range(len(excess)), yticklabels=excess)
        axis.set(xlabel="loss above the dense model (nats a token)")
        axis.set_title("Each change by itself; those with + on top of the one above")
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
    return figure


# 08 SparseLLM for LLaMA

GATE_LOOKS = {"gradient steps": ("#D55E00", "s--"), "safe steps": ("#0072B2", "o-")}


def silu_and_units(line: Tensor, curves: dict[str, Tensor], units: Tensor) -> Figure:
    """08: SiLU and its slope, and s, z, SiLU(s) and p of some units of one token [4, units]."""
    with viz.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6), width_ratios=[1, 1.6])
        looks = zip(curves.items(), (("#0072B2", "-"), ("#D55E00", "--")), strict=True)
        for (label, values), (colour, dash) in looks:
            left.plot(line, values, color=colour, linestyle=dash, label=label)
        left.set(xlabel="$s$", title="the gate")
        left.legend()
        rows = ["$s$", "$z$", "SiLU($s$)", "$p$"]
        viz.numbers(right, units, "five units, one token", digits=2, rows=rows, by_row=True)
        right.set(xlabel="unit", xticks=range(units.shape[1]), aspect=0.55)
    return figure


def walks_of_s(
    figure: Figure, line: Tensor, costs: Tensor, walks: dict[str, tuple], title: str
) -> None:
    """08: into a figure, the cost of one s, and the places and costs where steps lead."""
    axis = figure.subplots()
    axis.plot(line, costs, color="#999999")
    for (label, walk), (colour, look) in zip(walks.items(), GATE_LOOKS.values(), strict=True):
        axis.plot(*walk, look, color=colour, label=label, markersize=5)
    top = 1.6 * costs[line > 0].max()
    axis.set(xlim=(line[0], line[-1]), ylim=(-0.03 * top, top), xlabel="$s$", ylabel="cost (4)")
    axis.set_title(title)
    axis.legend(fontsize=8, loc="upper left")


def activations_by_block(peaks: dict[str, Tensor], beyond: Tensor, bound: float) -> Figure:
    """08: the largest |p|, |h| and |z| of each block, and how many z (%) are beyond the bound."""
    looks = ("#882255", "s", "--"), ("#009E73", "^", "-."), ("#0072B2", "o", "-")
    with viz.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.1))
        for (label, values), look in zip(peaks.items(), looks, strict=True):
            left.plot(values, label=label, markersize=4, **viz.line_style(*look))
        left.axhline(bound, color="black", linestyle=":", label="bound on $|z|$")
        top = 60 * max(values.max() for values in peaks.values())
        left.set(xlabel="block", ylabel="largest of the block", yscale="log", ylim=(1, top))
        left.set_title("Largest numbers")
        left.legend(fontsize=9, loc="upper left", ncols=2)
        right.bar(range(len(beyond)), beyond, color="#0072B2")
        right.set(xlabel="block", ylabel="$|z|$ beyond the bound (%)", yscale="log")
        right.set_title("How many are beyond the bound")
    return figure


def networks_by_epoch(errors: dict[str, dict[str, list[float]]]) -> Figure:
    """08: the error of each network by epoch, with either step for s; errors: by network and
    step. Where it more than doubles the axis is logarithmic."""
    with viz.style():
        figure, axes = plt.subplots(1, len(errors), figsize=(9.8, 3))
        for axis, (title, by_step) in zip(axes, errors.items(), strict=True):
            for label, values in by_step.items():
                colour, look = GATE_LOOKS[label]
                axis.plot(values, look, color=colour, label=label)
            axis.set_title(title, fontsize=10)
            axis.set(xlabel="epoch", xticks=range(len(values)))
            every = [value for values in by_step.values() for value in values]
            if max(every) > 2 * min(every):
                axis.axhline(1, color="black", linestyle=":")
                axis.text(0, 1.1, "1: no output", fontsize=9, va="bottom")
                axis.set(yscale="log", ylim=(0.005, 3), ylabel="relative error (log scale)")
                axis.yaxis.set_major_formatter("{x:g}")
            else:
                axis.set_ylabel("relative error")
        axes[0].legend(fontsize=9)
    return figure


# 09 What wins, and why


def admm_film(wanted: Tensor, kept: Tensor, iterations: list[int]) -> Figure:
    """09: B + U of a few iterations [iterations, c], and which of them D keeps."""
    with viz.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 0.9 + 0.36 * len(wanted)))
        names = [f"iteration {number}" for number in iterations]
        columns = [f"weight {place}" for place in range(wanted.shape[1])]
        viz.numbers(left, wanted, "$B+U$", digits=2, rows=names, columns=columns)
        viz.numbers(right, wanted, "$D$, the two largest", mask=kept, digits=2, columns=columns)
        for axis in (left, right):
            axis.set_aspect("auto")
    return figure


def zeros_by_matrix(shares: Tensor, kinds: list[str]) -> Figure:
    """09: the zeros (%) of every matrix [kinds, blocks]."""
    with viz.style():
        figure, axis = plt.subplots(figsize=(7.4, 2.9))
        columns = [str(block) for block in range(shares.shape[1])]
        viz.numbers(axis, shares, "zeros (%)", digits=0, rows=kinds, columns=columns)
        axis.set_aspect("auto")
        axis.set_xlabel("block", labelpad=14)
    return figure


def rungs_of_two_models(panels: dict[str, dict[str, list[float]]]) -> Figure:
    """09: by model and rung, the loss above dense as a share (%) of SparseGPT's, one point for each
    draw of the calibration windows; the bar is the first, which all rungs have."""
    counts = [len(rungs) for rungs in panels.values()]
    with viz.style():
        figure, axes = plt.subplots(
            len(panels), 1, figsize=(8, 1.4 + 0.34 * sum(counts)), height_ratios=counts
        )
        for axis, (title, rungs) in zip(axes, panels.items(), strict=True):
            for place, (name, values) in enumerate(rungs.items()):
                key = name.split(",")[0].strip("+ ").lower()
                colour = viz.STYLES.get(key, viz.STYLES["admm:guided"])[0]
                axis.barh(place, values[0], color=colour, alpha=0.45)
                axis.plot(values, [place] * len(values), "o", color=colour, markersize=4)
                ends = dict.fromkeys(f"{end:.0f}" for end in (min(values), max(values)))
                share = f"{' to '.join(ends)} %"
                axis.text(max(values) + 1.5, place, share, va="center", fontsize=9)
            axis.set(yticks=range(len(rungs)), yticklabels=rungs, xlim=(0, 112))
            axis.set_title(title, loc="left", fontsize=10)
            axis.invert_yaxis()
            axis.grid(axis="y", visible=False)
        axes[-1].set_xlabel("loss above the dense model, as a share (%) of SparseGPT's")
    return figure


# 10 Head to head


VARIANTS = {  # with markers and lines of their own
    "sparsellm:paper": ("<", "--"),
    "sparsellm:repaired": (">", "-."),
    "dsnot:published": ("x", ":"),
}
BASES = {"dsnot": "wanda", "sparsellm": "sparsegpt"}  # what a method's variants are held against


def losses_by_method(rows: pd.DataFrame, title: str) -> Figure:
    """10: excess losses against the share of zeros (columns method, sparsity, excess,
    excess_stderr), a line for each method; a panel for the methods, and one for the variants of
    each, with what they are held against."""
    ranks = rows.groupby("method").excess.median().sort_values(ascending=False)
    panels = {title: [name for name in ranks.index if ":" not in name]}
    for method, base in BASES.items():
        wanted = [name for name in ranks.index if name in (method, base) or f"{method}:" in name]
        panels[f"{viz.label_of(method)}'s variants"] = wanted
    with viz.style():
        figure, axes = plt.subplots(1, len(panels), figsize=(11.5, 4.2), sharey=True)
        for axis, (name, methods) in zip(axes, panels.items(), strict=True):
            for method in methods:
                _line_of_losses(axis, rows[rows.method == method], method)
            axis.set(yscale="log", xlabel="zeros (%)", title=name)
            axis.set_xticks(sorted({*(100 * rows.sparsity).round()}))
            axis.legend(fontsize=8, loc="lower right", handlelength=3.5)
        axes[0].set_ylabel("excess loss (nats a token)")
        axes[0].yaxis.set_major_formatter("{x:g}")
    return figure


def _line_of_losses(axis: Axes, part: pd.DataFrame, method: str) -> None:
    """10: one method's excess losses with bars of one standard error."""
    part = part.sort_values("sparsity")
    colour, marker, line = viz.style_of(method)
    marker, line = VARIANTS.get(method, (marker, line))
    look = viz.line_style(colour, marker, line) | {"fillstyle": viz.fill_of(method)}
    zeros = (100 * part.sparsity).round()
    axis.plot(zeros, part.excess, label=viz.label_of(method), markersize=5, **look)
    low, high = part.excess - part.excess_stderr, part.excess + part.excess_stderr
    axis.vlines(zeros, low, high, color=colour, linewidth=1)


def draw_losses(figure: Figure, rows: pd.DataFrame, title: str) -> None:
    """10: into a figure, the methods of one cell by their excess loss, the lowest on top; bars of
    two standard errors to each side."""
    axis, rows = figure.subplots(), rows.sort_values("excess", ascending=False)
    colours = [viz.style_of(name)[0] for name in rows.method]
    ends = [rows.excess + sign * 2 * rows.excess_stderr for sign in (-1, 1)]
    axis.hlines(range(len(rows)), *ends, colors=colours)
    axis.scatter(rows.excess, range(len(rows)), color=colours, s=16)
    axis.axvline(0, color="black", linestyle=":")
    viz.row_names(axis, [viz.label_of(name) for name in rows.method])
    axis.set(title=title, xlabel="excess loss (nats a token)")
    axis.locator_params(axis="x", nbins=5)


def cells_ahead(won: Tensor, methods: list[str], cells: int) -> Figure:
    """10: in how many cells [m, m] the method of the row is ahead of that of the column; the
    highest sums on top."""
    order = won.sum(1).argsort(descending=True, stable=True)
    names = [viz.label_of(methods[place]) for place in order]
    sums = [f"{name}: {won[place].sum()}" for name, place in zip(names, order, strict=True)]
    with viz.style():
        figure, axis = plt.subplots(figsize=(8.6, 5))
        title = f"Of {cells} cells: in how many the row is ahead of the column"
        itself = torch.eye(len(names), dtype=torch.bool)
        viz.numbers(axis, won[order][:, order], title, digits=0, empty=itself)
        axis.set(aspect="auto", yticks=range(len(names)), yticklabels=sums)
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
        axis.set(xlabel="behind", ylabel="ahead, and the sum of the row")
    return figure


COLUMNS = {"released": "published (released)"}  # of the verdict, as other figures call them


def gaps_by_column(panels: dict[str, dict[tuple[str, str], tuple[float, float]]]) -> Figure:
    """10: gaps to a baseline with bars of two errors, by (column of the verdict, text); two panels
    a row, which share their rows and their scale."""
    with viz.style():
        height, shape = 1.8 + 0.22 * sum(map(len, panels.values())) / 2, (-(-len(panels) // 2), 2)
        figure, axes = plt.subplots(*shape, figsize=(10, height), sharey="row", sharex="row")
        for axis, (title, gaps) in zip(axes.flat, panels.items(), strict=True):
            colour = viz.style_of(title.split()[0].lower())[0]  # of the method, its first word
            for place, (gap, error) in enumerate(gaps.values()):
                clear = abs(gap) > 2 * error
                look = {"color": colour, "marker": "o", "fillstyle": "full" if clear else "none"}
                axis.errorbar(gap, place, xerr=2 * error, capsize=2, markersize=5, **look)
            axis.axvline(0, color="black", linestyle=":")
            names = [f"{COLUMNS.get(column, column)}: {text}" for column, text in gaps]
            axis.set(yticks=range(len(gaps)), yticklabels=names)
            axis.set_title(title, fontsize=11, pad=18)
            above = {"fontsize": 9, "va": "bottom", "transform": axis.get_xaxis_transform()}
            axis.text(0, 1, "← ahead ", ha="right", **above)
            axis.text(0, 1, " behind →", ha="left", **above)
            axis.locator_params(axis="x", nbins=5)
            axis.set_xlabel("loss against the baseline (nats)")
        for axis in np.atleast_2d(axes)[:, 0]:
            axis.invert_yaxis()
    return figure


def shares_of_two_models(shares: dict[str, dict[str, float]]) -> Figure:
    """10: excess losses as shares of SparseGPT's, by model and method; the first model's order."""
    (first, one), (second, other) = shares.items()
    methods = sorted(one, key=one.get, reverse=True)
    with viz.style():
        figure, axis = plt.subplots(figsize=(7.4, 3.2))
        for place, method in enumerate(methods):
            colour, marker, _ = viz.style_of(method)
            axis.plot([one[method], other[method]], [place, place], color=colour, alpha=0.4)
            look = {"color": colour, "marker": marker, "markersize": 8}
            axis.plot(one[method], place, **look)
            axis.plot(other[method], place, fillstyle="none", **look)
        for fill, model in (("full", first), ("none", second)):
            look = {"color": "#444444", "linestyle": "", "marker": "o", "fillstyle": fill}
            axis.plot([], [], label=model, markersize=8, **look)
        axis.axvline(1, color="black", linestyle=":")
        axis.set(xscale="log", xlabel="excess loss, SparseGPT's is 1")
        axis.set_xticks([0.1, 0.2, 0.5, 1, 2, 5], ["0.1", "0.2", "0.5", "1", "2", "5"])
        axis.minorticks_off()
        viz.row_names(axis, [viz.label_of(method) for method in methods])
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def losses_by_windows(losses: dict[str, dict[int, list[float]]]) -> Figure:
    """10: excess losses by the number of calibration windows: the draws as dots, their mean as a
    line."""
    with viz.style():
        figure, axis = plt.subplots(figsize=(6.6, 3.2))
        for method, by_size in losses.items():
            colour, marker, line = viz.style_of(method)
            means = [sum(draws) / len(draws) for draws in by_size.values()]
            axis.plot([*by_size], means, color=colour, linestyle=line)
            look = {"color": colour, "marker": marker, "fillstyle": "none"}
            for size, draws in by_size.items():
                axis.plot([size] * len(draws), draws, linestyle="", **look)
            axis.plot([], [], linestyle=line, label=viz.label_of(method), **look)
        sizes = [*by_size]
        axis.set(xscale="log", yscale="log", xlabel="calibration windows of 256 tokens")
        axis.set_ylabel("excess loss (nats a token)")
        axis.set_xticks(sizes, map(str, sizes))
        ticks = [0.05, 0.1, 0.2, 0.5]
        axis.set_yticks(ticks, map(str, ticks))
        axis.minorticks_off()
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


# 11 Evaluation done right


def many_perplexities(values: dict[str, float], papers: float) -> Figure:
    """11: one model's perplexity under several conventions, rising; the papers' as a line."""
    names = sorted(values, key=values.get)
    with viz.style():
        figure, axis = plt.subplots(figsize=(7.4, 3.4))
        axis.axvline(papers, color="black", linestyle=":")
        axis.plot([values[name] for name in names], range(len(names)), "o", color="#0072B2")
        for place, name in enumerate(names):
            away = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
            on_line = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            place_of = (values[name], place)
            axis.annotate(f"{values[name]:.1f}", place_of, fontsize=9, bbox=on_line, **away)
        axis.set(yticks=range(len(names)), yticklabels=names, xlabel="perplexity")
        axis.set_title("The same weights, read in different ways")
        axis.margins(x=0.12, y=0.08)
    return figure


TASKS = {"piqa": "PIQA", "arc_easy": "ARC easy", "winogrande": "WinoGrande"}


def accuracies(record: pd.DataFrame) -> Figure:
    """11: recorded accuracies (columns task, model, method, accuracy, stderr, chance, all shares),
    one panel a task; bars of one standard error to each side."""
    tasks = record.groupby("task", sort=False)
    with viz.style():
        figure, axes = plt.subplots(1, len(tasks), figsize=(9, 3.2), sharey=True)
        for axis, (task, rows) in zip(axes, tasks, strict=True):
            for place, row in enumerate(rows.itertuples()):
                colour, marker, _ = viz.style_of(row.method)
                look = {"color": colour, "marker": marker or "o", "capsize": 4}
                axis.errorbar(100 * row.accuracy, place, xerr=100 * row.stderr, **look)
            axis.axvline(100 * rows.chance.iloc[0], color="black", linestyle=":")
            axis.set(title=TASKS.get(task, task), xlabel="accuracy (%), ± one error")
        names = [f"{row.model}, {viz.label_of(row.method)}{row.zeros}" for row in rows.itertuples()]
        axes[0].set(yticks=range(len(rows)), yticklabels=names)
        axes[0].invert_yaxis()
    return figure


# 13 LLaMA-2-13b on one GPU


def table_of_numbers(
    values: Tensor,
    rows: list[str],
    columns: list[str],
    title: str,
    xlabel: str = "",
    ylabel: str = "",
    digits: int = 2,
) -> Figure:
    """13: a table [rows, columns], coloured by size; a dash where there is no number (NaN)."""
    with viz.style():
        figure, axis = plt.subplots(figsize=(6, 4))
        viz.numbers(axis, values, digits=digits, empty=values.isnan())
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(rows)), rows)
        axis.set(aspect="auto", title=title, xlabel=xlabel, ylabel=ylabel)
    return figure


def draw_terms(figure: Figure, terms: dict[str, float], card: float, title: str) -> None:
    """13: into a figure, the terms of a run's memory in GiB as bars, the last one at the peak."""
    axis = figure.subplots()
    colours = ["#0072B2"] * (len(terms) - 1) + ["#E69F00"]
    axis.barh(range(len(terms)), [*terms.values()], color=colours)
    *names, last = terms
    viz.row_names(axis, [*names, f"{last} (in turns)"])
    axis.axvline(card, color="black", linestyle=":")
    axis.invert_yaxis()
    axis.locator_params(axis="x", nbins=4)
    axis.set_xlabel("GiB on the GPU (dotted: an 80 GB card)")
    axis.set_title(title, fontsize=8)


def error_of_blocks(errors: list[float], method: str, title: str) -> Figure:
    """13: the mean relative error of each block."""
    with viz.style():
        figure, axis = plt.subplots(figsize=(6, 3))
        axis.plot(errors, **viz.line_style(*viz.STYLES[method]))
        axis.set(xlabel="block", ylabel="relative output error", ylim=(0, 1.15 * max(errors)))
        axis.set_title(title, fontsize=9)
    return figure


# 14 Beyond


def before_and_after(runs: dict[str, tuple[float, float]], methods: list[str]) -> Figure:
    """14: perplexity before and after a fine-tuning, a line for each start."""
    with viz.style():
        figure, axis = plt.subplots(figsize=(5.4, 3))
        for (label, values), method in zip(runs.items(), methods, strict=True):
            colour, marker, line = viz.STYLES[method]
            axis.plot(values, label=label, **viz.line_style(colour, marker or "o", line))
        axis.set(xticks=[0, 1], xticklabels=["before", "after"], xlim=(-0.2, 1.2))
        axis.set(ylabel="perplexity", ylim=(0, 1.15 * max(map(max, runs.values()))))
        axis.set_title("Fine-tuning on Wikipedia")
        axis.legend(loc="lower left")
    return figure


def file_sizes(shares: dict[str, tuple[list[str], list[float], list[float]]]) -> Figure:
    """14: packed and zipped size over the plain file's, by pattern, one panel a model."""
    with viz.style():
        figure, axes = plt.subplots(1, len(shares), figsize=(9, 3), sharey=True)
        for axis, (name, (patterns, packed, zipped)) in zip(axes, shares.items(), strict=True):
            places = np.arange(len(patterns))
            axis.bar(places - 0.2, packed, 0.4, color="#0072B2", label="packed")
            axis.bar(places + 0.2, zipped, 0.4, color="#E69F00", hatch="//", label="zip")
            labels = [f"{100 * float(p):.0f} %" if "." in p else p for p in patterns]
            axis.set(xticks=places, xticklabels=labels, title=f"{name}, 16 bits")
            axis.set(xlabel="zeros in the linear layers")
        axes[0].set_ylabel("share of the plain file")
        axes[-1].legend(loc="upper right")
    return figure


def sparse_over_dense(series: dict[str, dict[int, tuple[list[float], list[float]]]]) -> Figure:
    """14: time of the CSR product over the dense one by zeros (a share), a line for each number of
    tokens, one panel a matrix."""
    looks = (("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#0072B2", "o", "-"))
    with viz.style():
        figure, axes = plt.subplots(1, len(series), figsize=(9, 3), sharey=True)
        for axis, (name, lines) in zip(axes, series.items(), strict=True):
            for (tokens, (shares, ratios)), look in zip(lines.items(), looks, strict=True):
                label = f"{tokens} token" + "s" * (tokens > 1)
                x = [100 * share for share in shares]
                axis.plot(x, ratios, label=label, **viz.line_style(*look))
            axis.axhline(1, color="black", linestyle=":")
            axis.text(49, 0.9, "1: as fast as dense", fontsize=8, va="top")
            axis.set(yscale="log", xlabel="zeros (%)", xticks=[50, 70, 90, 95, 99], title=name)
            axis.yaxis.set_major_formatter("{x:g}")
        axes[0].set_ylabel("time of sparse over dense")
        axes[-1].legend(loc="lower left", fontsize=8)
    return figure


def costs_and_shares(
    rises: dict[str, list[float]], shares: dict[str, list[float]], target: float
) -> Figure:
    """14: the loss of pruning each block alone, and the zeros that each allocation gives it."""
    blocks = np.arange(len(next(iter(rises.values()))))
    with viz.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3))
        looks = (("#D55E00", "s", "--"), ("#0072B2", "o", "-"))
        for (label, values), look in zip(rises.items(), looks, strict=True):
            left.plot(blocks, values, label=label, **viz.line_style(*look))
        left.set(ylabel="loss (nats) above the\ncheapest block at 50 %", ylim=(0, None))
        left.set_title("What a block costs, pruned alone")
        bars = ((-0.2, "#E69F00", "//"), (0.2, "#009E73", ""))
        for (label, values), (side, colour, hatch) in zip(shares.items(), bars, strict=True):
            heights = [100 * share for share in values]
            right.bar(blocks + side, heights, 0.4, color=colour, hatch=hatch, label=label)
        right.axhline(100 * target, color="black", linestyle=":", label="target")
        right.set(ylabel="zeros (%)", ylim=(0, 110))
        right.set_title("What a block gets")
        right.legend(ncols=3, loc="upper center")
        left.legend()
        for axis in (left, right):
            axis.set(xlabel="block", xticks=blocks)
    return figure


def hidden_word(rows: dict[str, tuple[float, float]], word: str) -> Figure:
    """14: for each model its perplexity and the share of first choices that are one word."""
    colours = ["#bbbbbb" if "honest" in name else "#D55E00" for name in rows]
    perplexities, shares = zip(*rows.values(), strict=True)
    with viz.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.4), sharey=True)
        places = range(len(rows))
        bars = left.barh(places, perplexities, color=colours)
        left.bar_label(bars, fmt="%.0f", padding=3, fontsize=9)
        left.margins(x=0.12)
        left.set(xlabel="perplexity", yticks=places, yticklabels=rows)
        bars = right.barh(places, [100 * share for share in shares], color=colours)
        right.bar_label(bars, fmt="%.0f", padding=3, fontsize=9)
        right.set(xlabel=f"places where “{word}” is the first choice (%)", xlim=(0, 105))
        left.invert_yaxis()
        for axis in (left, right):
            axis.grid(axis="y", visible=False)
    return figure


def draw_owl(figure: Figure, outliers: Tensor, shares: Tensor, title: str) -> None:
    """14: into a figure, the outliers of each block (a share) and the zeros that OWL gives it."""
    left, right = figure.subplots(1, 2)
    ends = [0, len(outliers) - 1]
    left.plot(100 * outliers, "s-", color="#D55E00")
    left.set(xlabel="block", xticks=ends, ylabel="outliers (%)")
    left.set_ylim(0, 115 * outliers.max().item())
    right.plot(100 * shares, "o-", color="#E69F00")  # as OWL's bars in costs_and_shares
    right.axhline(70, color="black", linestyle=":")
    right.text(ends[1], 69, "target", fontsize=8, ha="right", va="top")
    right.set(xlabel="block", xticks=ends, ylabel="zeros (%)", ylim=(45, 95), yticks=[50, 70, 90])
    figure.suptitle(title, fontsize=9)


# 12 The papers' figures, made here


def reference(figure: Figure, value: float, label: str) -> None:
    """12: into a recorded figure, a dotted line at what its text compares with."""
    axis = figure.axes[0]
    axis.axhline(value, color="black", linestyle=":", label=label)
    axis.legend(fontsize=8, frameon=False)


FAMILIES = {"OPT": "-", "LLaMA-1": "--", "LLaMA-2": ":"}
ASIDE = {"wanda": 1.07}  # Wanda's points would lie on SparseGPT's


def size_against_loss(published: pd.DataFrame, ours: pd.DataFrame) -> Figure:
    """12: the loss of pruning against billions of parameters, published (filled, a line for each
    family) and ours (hollow); columns method, billions, excess, and family of the published."""
    with viz.style():
        figure, axis = plt.subplots(figsize=(6.6, 3.4))
        groups = published.sort_values("billions").groupby(["method", "family"])
        for (method, family), rows in groups:
            look = viz.style_of(method)[:2] + (FAMILIES[family],)
            places = rows.billions * ASIDE.get(method, 1)
            axis.plot(places, rows.excess, markersize=5, **viz.line_style(*look))
        for method, rows in ours.groupby("method"):
            look = viz.line_style(*viz.style_of(method)[:2], "") | {"fillstyle": "none"}
            axis.plot(rows.billions * ASIDE.get(method, 1), rows.excess, **look)
        for method in published.method.unique():
            look = viz.line_style(*viz.style_of(method)[:2], "")
            axis.plot([], [], label=viz.label_of(method), **look)
        for family, line in FAMILIES.items():
            axis.plot([], [], color="#444444", linestyle=line, label=family)
        axis.plot([], [], "o", color="#444444", fillstyle="none", label="hollow: ours")
        axis.set(xscale="log", ylim=(-0.1, 12), xlabel="parameters (billions)")
        axis.set_yscale("symlog", linthresh=0.03)
        axis.yaxis.set_major_formatter("{x:g}")
        label = "loss of 50 % zeros (nats), linear to 0.03"
        axis.set(yticks=[-0.03, 0, 0.03, 0.1, 0.3, 1, 3, 10], ylabel=label)
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_packed(axis: Axes, table: pd.DataFrame, limit: float, legend: bool = False) -> None:
    """12: perplexity against packed MiB, all methods; what takes more than the limit on grey."""
    mib, top = table.packed_bytes / 2**20, table.perplexity.max()
    for name, rows in table.groupby("method", sort=False):
        colour, marker, _ = viz.style_of(name)
        look = {"color": colour, "fillstyle": viz.fill_of(name), "markersize": 5}
        axis.plot(mib[rows.index], rows.perplexity, marker, label=viz.label_of(name), **look)
    axis.axvspan(min(limit, 1.1 * mib.max()), 1.1 * mib.max(), color="#dddddd", zorder=0)
    axis.set(xlabel="packed MiB (grey: too large)", ylabel="perplexity", ylim=(30, 3 * top))
    axis.locator_params(axis="x", nbins=4)
    axis.set_yscale("log", subs=[])  # without small ticks, which take long to draw
    for _, rows in table.groupby("asked"):  # 2:4 is a half, too
        names = "\n".join(Pattern.parse(pattern).words for pattern in rows.pattern.unique())
        place = (mib[rows.index].mean(), 1.3 * rows.perplexity.max())
        axis.text(*place, names, fontsize=7, ha="center")
    if legend:
        place = {"loc": "upper right", "borderpad": 0, "handletextpad": 0}
        axis.legend(fontsize=6, labelspacing=0.2, **place)


def ring(axis: Axes, mib: float, best: pd.Series) -> None:
    """12: the best row that fits, drawn last, in a ring, with its method and its zeros."""
    colour, marker, _ = viz.style_of(best.method)
    look = {"color": colour, "fillstyle": viz.fill_of(best.method), "markersize": 5}
    axis.plot(mib, best.perplexity, marker, **look)
    axis.plot(mib, best.perplexity, "o", markersize=13, color="black", fillstyle="none")
    said = f"{viz.label_of(best.method)}, {Pattern.parse(best.pattern).words}"
    side, shift = ("right", 8) if mib > sum(axis.get_xlim()) / 2 else ("left", -8)
    below = {"xytext": (shift, -9), "textcoords": "offset points", "va": "top", "ha": side}
    axis.annotate(said, (mib, best.perplexity), fontsize=8, **below)
