"""The lessons' figures of data that take more than one call to draw; a lesson shows one with a
sentence of its own."""

import matplotlib.pyplot as plt
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
