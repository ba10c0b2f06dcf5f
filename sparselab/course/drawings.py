"""The drawings of the lessons' ideas, one function each: a figure, and a sentence that says what it
shows. Letters and numbers are those of the lesson that shows the drawing."""

import math

from matplotlib.figure import Figure

from ..schematics import ROLES, Schematic

Drawing = tuple[Figure, str]

ZERO = {"pruned": "zero: pruned"}
PENALTY = "a penalty, no equality"  # a dashed orange arrow
PARTS = {"pruned": "gets zeros", "free": "free", "frozen": "frozen"}  # of a network

# 00 Start here

MAP = {
    "Start": ("what a zero costs", ["00 first pruning", "01 what is lost"]),
    "Local": (
        "each matrix by itself",
        ["02 the objective", "03 Wanda", "04 SparseGPT", "05 DSnoT, swaps"],
    ),
    "Global": (
        "matrices together",
        ["06 the objective", "07 SparseLLM, OPT", "08 SparseLLM, LLaMA", "09 what wins"],
    ),
    "Proof": ("who wins, how sure", ["10 head to head", "11 evaluation", "12 the figures"]),
    "Further": ("larger, and after", ["13 13b on one GPU", "14 beyond", "15 capstone"]),
}


def course_map() -> Drawing:
    """00: the lessons along the path from local to global to proof."""
    art, step = Schematic(45, 15.5), 9
    stages = []
    for place, (stage, (motto, lessons)) in enumerate(MAP.items()):
        x = 4.5 + step * place
        stages.append(art.box(x, 13.8, stage, width=6, height=2, size=12))
        art.text(x, 11.8, motto, size=8, style="italic")
        for row, lesson in enumerate(lessons):
            art.box(x, 9.6 - 2.6 * row, lesson, width=8.2, height=1.9, size=8)
    art.chain(stages)
    return art.figure, (
        "The course as a path of five stages: start (00, 01), local methods that treat each matrix"
        " by itself (02 to 05), global methods that treat matrices together (06 to 09), proof by"
        " measurement (10 to 12), and further topics (13 to 15)."
    )


def pruning() -> Drawing:
    """00: a dense matrix, a mask, the sparse matrix."""
    weights = [[1, -7, 2, 8], [-6, 3, 5, -4]]
    kept = [[abs(weight) > 4 for weight in row] for row in weights]
    roles = [["plain" if keep else "pruned" for keep in row] for row in kept]
    mask = [[str(int(keep)) for keep in row] for row in kept]
    sparse = [
        [_signed(weight * keep) for weight, keep in zip(*rows, strict=True)]
        for rows in zip(weights, kept, strict=True)
    ]
    art, y, size = Schematic(42, 8.5), 4.4, {"width": 2.2, "height": 1.8, "size": 11}
    dense = [[_signed(weight) for weight in row] for row in weights]
    for x, title, words, look in (
        (6.5, "weights", dense, "plain"),
        (21, "mask: 1 is kept, 0 is pruned", mask, roles),
        (35.5, "pruned weights", sparse, roles),
    ):
        art.text(x, 7.4, title)
        art.grid(x, y, words, look, **size)
    art.text(13.75, y, "×", size=14)
    art.text(28.25, y, "=", size=14)
    art.legend(18.2, 0.9, ZERO)
    return art.figure, (
        "A dense matrix of eight weights, entry by entry times a mask of ones and zeros, gives the"
        " sparse matrix: the four smallest weights are zero, the others unchanged."
    )


def _signed(number: float) -> str:
    """With a minus as long as a plus."""
    return f"{number}".replace("-", "−")


def _arrow_named(art: Schematic, x: float, y: float, words: str, *, dashed: bool = False) -> None:
    """What the orange arrows mean, as a legend's entry at (x, y)."""
    art.arrow((x - 0.2, y), (x + 1.6, y), role="wrong", dashed=dashed)
    art.text(x + 2, y, words, size=8, ha="left")


# 01 What a pruned model loses


def perplexity() -> Drawing:
    """01: from a text to one number."""
    art, cell = Schematic(44, 14), {"width": 2.6, "height": 1.8}
    names = ["window 0", "…", "window $k$", "…", "window $K-1$"]
    windows = art.grid(25.5, 12.4, [names], width=7.2, height=1.8)[0]
    tokens = art.grid(14, 8.2, [["$x_0$", "$x_1$", "$x_2$", "…", "$x_{n-1}$"]], **cell)[0]
    losses = art.grid(15.3, 3.4, [["$L_1$", "$L_2$", "…", "$L_{n-1}$"]], "wrong", **cell)[0]
    for y, words in ((12.4, "text"), (8.2, "tokens of a window"), (3.4, "loss of each token")):
        art.text(0.3, y, words, ha="left")
    for end, part in ((0, tokens[0]), (1, tokens[-1])):
        wide = windows[2]
        above = (wide.get_x() + end * wide.get_width(), wide.get_y())
        art.line(above, (part.get_x() + end * part.get_width(), 9.1), linestyle=":")
    for token, loss in zip(tokens[1:], losses, strict=True):
        art.arrow(token, loss)
    steps = ("mean of\nthe window", "mean of\nall windows", "exponential")
    chain = [
        art.box(24.8 + 5.5 * place, 3.4, words, width=4.5, height=2.8, size=8)
        for place, words in enumerate(steps)
    ]
    chain.append(art.box(41.3, 3.4, "perplexity", width=4.8, height=2.8, size=9))
    art.chain([losses[-1], *chain])
    art.text(24.8, 1, r"$\bar L_k$")
    return art.figure, (
        "A text is cut into K windows. In each window every token but the first has a loss, its"
        " surprise after the tokens before it. The losses are averaged over the window and over"
        " all windows, and the exponential of that mean is the perplexity."
    )


def paired() -> Drawing:
    """01: two models on the same windows."""
    dense, change = (3.2, 5.6, 2.4, 6.4, 4.0, 4.8), (0.9, 1.1, 0.8, 1.2, 1.0, 1.0)
    pruned = [loss + more for loss, more in zip(dense, change, strict=True)]
    art, step, high, low = Schematic(44, 16), 4.2, 6, 2.2
    art.bars(8.6, high, dense, "frozen", step=step)
    art.bars(9.8, high, pruned, "pruned", step=step)
    art.bars(9.2, low, change, "wrong", step=step)
    for base, words in ((high, "window {}"), (low, "$d_{}$")):
        art.line((7.2, base), (32.4, base))
        for k in range(len(dense)):
            art.text(9.2 + step * k, base - 0.9, words.format(k), size=8)
    art.text(0.2, high + 2.5, "mean loss\nof a window", ha="left")
    art.text(0.2, low + 0.5, "difference", ha="left")
    notes = {"ha": "left", "size": 8}
    art.text(33.2, high + 3, "hard for one, hard for both:\na wide error bar for each", **notes)
    art.text(33.2, low + 0.5, "nearly the same everywhere:\na narrow error bar", **notes)
    roles = {"frozen": "dense", "pruned": "pruned", "wrong": "pruned minus dense"}
    art.legend(8, 15.2, roles, step=6)
    return art.figure, (
        "The mean losses of a dense and a pruned model on the same six windows, side by side. From"
        " window to window both go up and down together, so each model's error bar is wide. The"
        " six differences are nearly equal, so the error bar of their mean is narrow."
    )


# 02 The local objective


def block_matrices() -> Drawing:
    """02: one transformer block of either family, with the matrices that pruning touches."""
    art, bold = Schematic(44, 23), {"ha": "left", "size": 10, "weight": "bold"}
    art.text(0.3, 22, "OPT: six matrices", **bold)
    _block(art, 17.6, "out", ["fc1"], "ReLU", "fc2")
    art.text(0.3, 11.4, "LLaMA: seven matrices", **bold)
    _block(art, 7, "o", ["gate", "up"], "SiLU(gate)\n× up", "down")
    art.legend(9, 0.8, {"pruned": "pruned: a matrix gets zeros", "plain": "nothing to prune"}, 15)
    return art.figure, (
        "One block of OPT and one of LLaMA, from left to right, without norms and residual sums."
        " In both q, k and v share an input; the attention and its output matrix follow. Then OPT"
        " has fc1, ReLU and fc2; LLaMA has gate and up, which share an input, and down."
    )


def _block(art: Schematic, y: float, out: str, first: list[str], function: str, last: str) -> None:
    matrix = {"role": "pruned", "width": 3.6, "height": 1.7}
    attention = art.box(14.2, y, "attention", width=5.4)
    output = art.box(20.8, y, out, **matrix)
    activation = art.box(34.4, y, function, width=5.4, height=2.8)
    down = art.box(41, y, last, **matrix)
    _shared_input(art, 7, y, ["q", "k", "v"], art.circle(1.8, y, "$X$"), attention)
    _shared_input(art, 27.2, y, first, output, activation)
    art.arrow(attention, output)
    art.arrow(activation, down)


def _shared_input(art: Schematic, x: float, y: float, names: list[str], source, target) -> None:
    """Matrices above each other, with arrows from what they read and to what reads them."""
    for place, name in enumerate(names):
        height = y + 2.2 * ((len(names) - 1) / 2 - place)
        matrix = art.box(x, height, name, role="pruned", width=3.6, height=1.7)
        art.arrow(source, matrix)
        art.arrow(matrix, target)
    if len(names) > 1:
        low = y - 1.1 * len(names) + 0.1
        art.bracket((x - 1.8, low), (x + 1.8, low), "same input")


def layer_error() -> Drawing:
    """02: W X and W'X with their shapes to scale, and their difference."""
    r, c, tokens, unit = 4, 6, 8, 0.85
    zeros = ["010111", "111101", "011001", "001101"]  # twelve of 4 x 6
    pruned = [["pruned" if zero == "1" else "plain" for zero in row] for row in zeros]
    art, wide = Schematic(44, 16.4), {"width": tokens * unit, "size": 11}
    for y, name, roles in ((11.8, "$W$", "plain"), (4.6, "$W'$", pruned)):
        art.grid(7, y, [[""] * c] * r, roles, width=unit, height=unit)
        art.text(0.8, y, name, size=11)
        art.box(17, y, "$X$", "frozen", height=c * unit, **wide)
        art.text(22.2, y, "=", size=14)
        product = art.box(29, y, name[:-1] + "X$", height=r * unit, **wide)
        error = (38.6, 8.2 + r * unit / 2 * (1 if y > 8 else -1))
        art.arrow(product, error, curve=-0.3 if y > 8 else 0.3)
    art.box(38.6, 8.2, "$WX-W'X$", "wrong", height=r * unit, **wide)
    art.text(38.8, 2.7, "all entries squared\nand added up: $E$")
    _shape(art, 7, 11.8, f"$c={c}$ inputs", f"$r={r}$", c * unit, r * unit)
    _shape(art, 17, 11.8, f"$N={tokens}$ tokens", "$c$", tokens * unit, c * unit)
    _shape(art, 29, 11.8, "$N$", "$r$", tokens * unit, r * unit)
    art.legend(10, 0.8, {**ZERO, "frozen": "given: the inputs", "wrong": "the error"}, step=9)
    return art.figure, (
        "The weight W has r rows and c columns, the inputs X have c rows and N columns, and their"
        " product has r rows and N columns. The pruned weight W' has the same shape with zeros and"
        " meets the same X. The error E adds up the squares of the difference of the products."
    )


def _shape(
    art: Schematic, x: float, y: float, across: str, down: str, width: float, height: float
) -> None:
    """A matrix's columns are named above it, its rows at its left."""
    left, top = x - width / 2, y + height / 2
    art.bracket((left + width, top), (left, top), across)
    art.bracket((left, top), (left, top - height), down)


def pre_hook() -> Drawing:
    """02: where a forward pre-hook stands, and what it sees."""
    art, y, size = Schematic(44, 12.5), 9.2, {"width": 6, "height": 3}
    before = art.box(4.4, y, "layers\nbefore it", "frozen", **size)
    linear = art.box(21, y, "linear $W$", **size)
    after = art.box(37.6, y, "layers\nafter it", "frozen", **size)
    art.arrow(before, linear)
    art.arrow(linear, after)
    art.text(12.7, y + 0.9, "its inputs", size=8)
    art.text(29.3, y + 0.9, "its outputs", size=8)
    pre = art.box(
        12.7, 4, "pre-hook: called\nbefore the linear", "free", width=7.6, height=3, size=8
    )
    post = art.box(29.3, 4, "forward hook: called\nafter the linear", width=8.4, height=3, size=8)
    for x, hook in ((12.7, pre), (29.3, post)):
        art.arrow((x, y), hook, dashed=True)
    kept = art.box(4.4, 4, "your\nlist", width=4, height=3, size=8)
    art.arrow(pre, kept)
    art.legend(15, 1, {"free": "what we add, and take off again"})
    return art.figure, (
        "A linear layer between the layers before and after it. A forward pre-hook is called before"
        " the linear runs: it sees the inputs and puts them into a list of yours. A forward hook"
        " would be called after it, and see the outputs."
    )


def block_loop() -> Drawing:
    """02: read the inputs, prune, run again, go on."""
    art, y, size = Schematic(44, 14), 11.4, {"width": 5.4, "height": 3}
    parts = [art.box(3.2, y, "calibration\ntext", **size)]
    looks = (("block 0", "pruned"), ("block 1", "free"), ("block 2", "frozen"), ("…", "frozen"))
    for place, (words, role) in enumerate(looks):
        parts.append(art.box(12.6 + 9.4 * place, y, words, role, **size))
    art.chain(parts)
    for x, words in ((17.3, "inputs"), (26.7, "outputs")):
        art.text(x, y + 0.8, words, size=8)
    steps = (
        "1  Run the block: read\neach matrix's inputs",
        "2  Prune its\nmatrices",
        "3  Run it again: its outputs\nare the next inputs",
    )
    boxes = [
        art.box(22 + 11.6 * place, 4.8, words, width=9.8, height=3, size=8)
        for place, words in zip((-1, 0, 1), steps, strict=True)
    ]
    art.chain(boxes)
    for side in (-1, 1):
        art.line((22 + side * 16.5, 6.6), (22 + side * 2.7, y - 1.6), linestyle=":")
    roles = {"pruned": "pruned already", "free": "being pruned", "frozen": "still dense"}
    art.legend(8, 1.2, roles, step=10.5)
    return art.figure, (
        "The calibration text runs through the blocks: block 0 is pruned already, block 1 is at"
        " work, the later ones are still dense. At each block, run it and read the inputs of its"
        " matrices, prune them, run it again, and pass its outputs on."
    )


# 03 Wanda


def wanda_score() -> Drawing:
    """03: one row of the lesson's small example."""
    weights, norms, zeros = [4, 1, -2, 3], [3, 1, 5, 2], 2
    scores = [abs(weight) * norm for weight, norm in zip(weights, norms, strict=True)]
    lowest = sorted(scores)[:zeros]
    roles = ["pruned" if score in lowest else "plain" for score in scores]
    pruned = [
        0 if score in lowest else weight for weight, score in zip(weights, scores, strict=True)
    ]
    art, size = Schematic(40, 15.5), {"width": 3, "height": 1.8, "size": 11}
    lines = (
        (12.3, "weights of one row, $W_{ij}$", weights, "plain"),
        (9.3, "absolute value times\nthe norm of input $j$, $\\|x_j\\|$", norms, "frozen"),
        (6.3, r"score $S_{ij}=|W_{ij}|\,\|x_j\|$", scores, [roles]),
        (3.3, "the row after pruning", pruned, [roles]),
    )
    for y, words, numbers, look in lines:
        art.text(14, y, words, ha="right")
        art.grid(21.5, y, [[_signed(number) for number in numbers]], look, **size)
    for y, sign in ((10.8, "×"), (7.8, "=")):
        for column in range(len(weights)):
            art.text(17 + 3 * column, y, sign)
    for column in range(len(weights)):
        art.text(17 + 3 * column, 14, f"$j={column}$", size=8)
    art.bracket((28, 5.4), (28, 7.2), "compared within the row:\nthe two lowest go")
    art.legend(9, 0.8, {**ZERO, "frozen": "from the calibration text"}, step=11)
    return art.figure, (
        "One row of four weights, 4, 1, -2, 3. Their absolute values times the norms of their"
        " inputs, 3, 1, 5, 2, are the scores 12, 1, 10, 6. The two weights with the lowest scores"
        " of the row, those of inputs 1 and 3, become zero."
    )


SCORES = (6, 9, 8, 7, 1, 5, 3, 9, 2, 4, 1, 8, 3, 4, 7, 2)  # of one row, for the patterns


def groups() -> Drawing:
    """03: the same row of scores, half of it zero, in ever smaller groups."""
    art, cell = Schematic(40, 16), 1.7
    left = 22 - cell * len(SCORES) / 2
    for y, size, words in ((14.6, 16, "half of a row"), (9.9, 8, "4:8"), (5.2, 4, "2:4")):
        zeros = _lowest_of_groups(size)
        roles = [["pruned" if place in zeros else "plain" for place in range(len(SCORES))]]
        art.grid(22, y, [[str(score) for score in SCORES]], roles, width=cell, height=cell)
        art.text(7.2, y, words, ha="right", size=10)
        for start in range(0, len(SCORES), size):
            ends = [(left + cell * at, y - cell / 2) for at in (start + 0.15, start + size - 0.15)]
            art.bracket(*ends, f"{size // 2} zeros" if size < 16 else "8 zeros, anywhere")
    art.legend(12, 0.8, {**ZERO, "plain": "kept; numbers are scores"}, step=8)
    return art.figure, (
        "The scores of one row of sixteen weights, three times, half of them pruned: the eight"
        " lowest of the row; with 4:8 the four lowest of each group of eight; with 2:4 the two"
        " lowest of each group of four. The smaller the group, the more high scores have to go."
    )


def _lowest_of_groups(size: int) -> set[int]:
    """Places of the lower half of the scores in each group of so many."""
    found = set()
    for start in range(0, len(SCORES), size):
        group = sorted(range(start, start + size), key=SCORES.__getitem__)
        found |= {*group[: size // 2]}
    return found


# 04 From OBS to SparseGPT


def obs() -> Drawing:
    """04: one weight goes, all others answer."""
    art, j, size = Schematic(43, 12), 2, {"width": 4.4, "height": 2, "size": 10}
    before = [f"$w_{k}$" if k != j else "$w_j$" for k in range(6)]
    after = [rf"$w_{k}+\delta_{k}$" if k != j else "0" for k in range(6)]
    roles = ["free" if k != j else "pruned" for k in range(6)]
    top = art.grid(18, 10.6, [before], **size)[0]
    bottom = art.grid(18, 4, [after], [roles], **size)[0]
    for k, target in enumerate(bottom):
        art.arrow(top[j], target, role=roles[k])
    art.text(0.3, 10.6, "before", ha="left")
    art.text(0.3, 4, "after", ha="left")
    art.text(32, 10.6, "weight $j$ shall become 0", ha="left", size=8)
    art.text(32, 4, "every other weight\ntakes over a part", ha="left", size=8)
    art.legend(9, 0.9, {**ZERO, "free": "moves to repair the error"}, step=9)
    return art.figure, (
        "A row of six weights before and after one of them, weight j, becomes zero. All other"
        " weights are free: each moves by its share of the repair, so that the output of the row"
        " changes as little as possible."
    )


def column_sweep() -> Drawing:
    """04: done, current and free columns of W, and the row of R that the step needs."""
    zeros = [".0.0....", "0.0.....", ".0.0....", "0.0....."]
    columns, j, unit = len(zeros[0]), 3, 1.7
    looks = ["frozen"] * j + ["plain"] + ["free"] * (columns - j - 1)
    roles = [
        ["pruned" if word == "0" else look for word, look in zip(row, looks, strict=True)]
        for row in zeros
    ]
    words = [row.replace(".", " ") for row in zeros]
    art, y = Schematic(42, 15), 8.2
    cells = art.grid(10, y, words, roles, width=unit, height=unit)
    art.text(1, y, "$W$", size=11)
    left, low = cells[-1][0].get_x(), cells[-1][0].get_y()
    for row in (0, 2):
        end = (left + unit * columns, cells[row][j].get_y() + unit / 2)
        art.arrow(cells[row][j], end, role="wrong")
    for start, end, stretch in ((0, j, "done"), (j, j + 1, "$j$"), (j + 1, columns, "still free")):
        ends = [(left + unit * start + 0.15, low), (left + unit * end - 0.15, low)]
        art.bracket(*ends, stretch)
    art.text(10, 13.3, "the errors of column $j$ go to the right")
    _factor(art, 31, y, columns, j)
    roles = {**ZERO, "frozen": "done: kept", "plain": "column $j$: kept"}
    art.legend(0.6, 0.9, roles, step=7.4)
    art.legend(24.2, 0.9, {"free": "free: repairs the error"})
    _arrow_named(art, 34.4, 0.9, "pushed error")
    return art.figure, (
        "The weight W in the middle of the sweep: columns left of column j are done. Rows that lose"
        " their weight in column j push the error to the columns on the right, which are still"
        " free. One row of the triangular factor R tells every row of W how."
    )


def _factor(art: Schematic, x: float, y: float, columns: int, j: int) -> None:
    """The upper triangle R with its row j."""
    unit = 1.05
    right, top = x + unit * columns / 2, y + unit * columns / 2
    for row in sorted(range(columns), key=j.__eq__):  # its edges above the others'
        length = columns - row
        role = "plain" if row == j else "faint"
        middle = (right - unit * length / 2, top - unit * (row + 0.5))
        art.grid(*middle, [[""] * length], role, width=unit, height=unit)
    art.text(x, 13.3, "the factor $R$ of $H^{-1}$, one for all rows of $W$")
    at = top - unit * (j + 1)
    art.bracket((right, at), (right, at + unit), "row $j$: all that\nstep $j$ needs")


def column_blocks() -> Drawing:
    """04: the mask by blocks of columns, and the lazy update."""
    art, y, size = Schematic(43, 14.5), 7.8, {"width": 8.6, "height": 5.2}
    above, below = y + size["height"] / 2, y - size["height"] / 2
    art.box(5.3, y, "done", "frozen", **size)
    looks = ["frozen", "frozen", "plain", "free", "free", "free"]
    block = art.grid(16, y, [[""] * 6], [looks], width=1.6, height=size["height"])[0]
    for x in (26.5, 36.5):
        art.box(x, y, "waits", "free", **size)
    art.arrow(block[2], (20.8, y), role="wrong")
    art.arrow((20.8, y + 1.6), (40.8, y + 1.6), role="wrong")
    art.bracket((20.8, above), (11.2, above), "1  choose the mask of this block\nby its prices now")
    art.bracket((11.2, below), (20.8, below), "2  push errors column by column\nwithin the block")
    art.bracket((22.2, below), (40.8, below), "3  then push all errors of the block\nat once")
    roles = {"frozen": "done", "plain": "current column", "free": "still free"}
    art.legend(3, 0.8, roles, step=9)
    _arrow_named(art, 31, 0.8, "pushed errors")
    return art.figure, (
        "The columns of W in blocks, those on the left done. For the block at work the mask is"
        " chosen first; then its errors are pushed column by column, within the block. When it is"
        " done, all its errors are pushed to the later blocks at once."
    )


# 05 DSnoT and exact swaps

ROW = (1.5, 0.4, 0.3, 1.3, -2.2, 0.8, 2.0, 1.0, -1.7, -2.6)  # the weights of the row of ten
SUMS = (10, 9, 7, 2, 2, 9, 7, 3, 4, 9)  # of its inputs, over the six tokens
GONE = {1, 2, 3, 5, 7}  # by Wanda's score
GROW, PRUNE = 1, 8  # the first swap


def dsnot_swap() -> Drawing:
    """05: the first swap of the row of ten weights."""
    effects = [weight * total for weight, total in zip(ROW, SUMS, strict=True)]
    art, size = Schematic(44, 17.5), {"width": 3, "height": 1.8}
    for y, gone, words in ((14.4, GONE, "before"), (9.8, GONE - {GROW} | {PRUNE}, "after")):
        roles = ["pruned" if j in gone else "plain" for j in range(10)]
        numbers = [_signed(round(effect, 1)) for effect in effects]
        cells = art.grid(26, y, [numbers], [roles], **size)[0]
        art.text(0.3, y, rf"effects $w_j\,\bar x_j$, {words}", ha="left")
        if gone is GONE:
            for j, action in ((GROW, "regrow"), (PRUNE, "prune")):
                art.arrow(cells[j], (12.5 + 3 * j, 10.7))
                art.text(12.9 + 3 * j, 12.1, action, size=8, ha="left")
    for j in range(10):
        art.text(12.5 + 3 * j, 16.2, f"$j={j}$", size=8)
    _expected_error(art, 4.8, effects)
    art.legend(17, 0.9, {"pruned": "pruned", "plain": "kept"}, step=7)
    return art.figure, (
        "The effects of ten weights of one row. The five that are pruned are all positive, and"
        " their sum, the expected error e, is 18.5. Regrowing weight 1 takes 3.6 off, pruning"
        " weight 8, whose effect is negative, takes another 6.8 off, and e moves to 8.1."
    )


def _expected_error(art: Schematic, y: float, effects: list[float]) -> None:
    """The way of e on a line: what each half of the swap takes off."""
    left, unit = 11, 1.5  # where e = 0 stands, and its scale
    steps = [sum(effects[j] for j in GONE)]
    steps += [steps[0] - effects[GROW], steps[0] - effects[GROW] + effects[PRUNE]]
    art.text(0.3, y, "expected error $e$:\nsum of the pruned", ha="left")
    art.line((left, y), (left + 20 * unit, y))
    for e in (0, *steps):
        art.line((left + unit * e, y - 0.3), (left + unit * e, y + 0.3))
        art.text(left + unit * e, y - 1, "0" if e == 0 else f"{e:.1f}", size=8)
    for before, after, j in zip(steps, steps[1:], (GROW, PRUNE), strict=False):
        art.arrow((left + unit * before, y + 0.4), (left + unit * after, y + 0.4))
        words = f"regrow {j}" if j == GROW else f"prune {j}"
        art.text(left + unit * (before + after) / 2, y + 1.2, words, size=8)


MISSING = {  # what the row misses on each of six tokens
    "Wanda's mask": (2.7, 4.2, 2.8, 7.3, -0.9, 2.4),
    "after DSnoT's two swaps": (1.3, 4.7, -9.5, 0.8, 1.5, 1.9),
}


def mean_only() -> Drawing:
    """05: what the row misses on each token, before and after DSnoT's two swaps."""
    art, base, unit, step = Schematic(43, 15), 8, 0.52, 2.5
    long = 5 * step + 2.6  # from the first bar's left to the last one's right
    for left, (words, missing) in zip((1, 20.4), MISSING.items(), strict=True):
        e, squares = sum(missing), sum(error**2 for error in missing)
        heights = [unit * error for error in missing]
        art.bars(left + 1.3, base, heights, "wrong", step=step, width=1.5)
        art.line((left, base), (left + long, base))
        mean = base + unit * e / len(missing)
        ends = ((left, mean), (left + long, mean))
        art.line(*ends, linestyle="--", color="#0072B2", linewidth=1.6, zorder=3)
        art.text(left + long + 0.4, mean, "mean, $e/T$", size=8, ha="left")
        art.text(left + long / 2, 14, f"{words}: $e={e:.1f}$, $E={squares:.1f}$")
    cross = "inputs 4 and 8, both large here, add up:\n$G_{4,8}$ counts it, the mean does not"
    art.text(28, 5, cross, size=8, ha="left")
    art.legend(12, 1, {"wrong": "missing output of each token; $E$ adds up the squares"})
    return art.figure, (
        "What one row misses on each of six tokens, as bars. With Wanda's mask the mean is well"
        " above zero: e is 18.5 and E is 92.6. After DSnoT's two swaps the mean is nearly zero, e"
        " is 0.7, but on one token two pruned inputs are large together, and E is 120.5."
    )


def silent_neuron() -> Drawing:
    """05: three neurons before a ReLU, with another mean or another spread."""
    art, base, unit, high = Schematic(44, 13.5), 3.4, 2.6, 6
    shapes = (
        ("dense", -1.0, 1.0, "frozen"),
        ("mean and spread shrink alike", -0.7, 0.7, "pruned"),
        ("the mean is restored, the spread is not", -1.0, 0.7, "wrong"),
    )
    shares = []
    for place, (words, mean, spread, role) in enumerate(shapes):
        zero = 9.6 + 14.6 * place  # where the outputs are 0
        outputs = [z / 20 for z in range(-68, 41)]
        density = [math.exp(-(((z - mean) / spread) ** 2) / 2) / spread for z in outputs]
        xs, ys = [zero + unit * z for z in outputs], [base + high * y for y in density]
        curve, (face, edge, _) = [*zip(xs, ys, strict=True)], ROLES[role]
        art.axis.fill_between(xs, base, ys, where=[x >= zero for x in xs], color=face, zorder=0)
        art.line(*curve, color=edge, linewidth=1.6)
        art.line((curve[0][0], base), (curve[-1][0], base))
        art.line((zero, base - 0.4), (zero, base + 7.6), linestyle=":")
        shares.append(50 * (1 + math.erf(mean / spread / 2**0.5)))
        art.text(zero - 1.6, 12.9, words)
        art.text(zero, base - 1, "0", size=8)
        art.text(zero + 0.4, base + 6, f"fires:\n{shares[-1]:.0f} %", size=8, ha="left")
    art.text(22, 0.9, "output of one neuron over the tokens; a ReLU passes what is above 0", size=8)
    return art.figure, (
        f"Three bell curves, the outputs of a neuron over the tokens. The dense one is above 0 on"
        f" {shares[0]:.0f} % of the tokens. If its mean and its spread shrink alike, it is above 0"
        f" on the same {shares[1]:.0f} %; if the mean is then restored and the spread is not, on"
        f" {shares[2]:.0f} %."
    )


# 06 From the global loss to sub-problems


def composition() -> Drawing:
    """06: the model as a composite function, and the loss at its end."""
    art, y = Schematic(44, 13.5), 7.8
    x = art.circle(1.8, y, "$x$", "frozen")
    places = ((7.4, "$f_1$"), (16.2, "$f_2$"), (25, "…"), (33.8, "$f_L$"))
    parts = [
        art.box(place, y, words, "plain" if words == "…" else "pruned", width=4.4, height=2.8)
        for place, words in places
    ]
    loss = art.box(41.6, y, "loss\n$\\mathcal{L}$", "wrong", width=3.8, height=3.2)
    art.chain([x, *parts, loss])
    for place, words in ((11.8, "$a_1$"), (20.6, "$a_2$"), (29.4, "$a_{L-1}$"), (37.8, "$z_L$")):
        art.text(place, y + 0.9, words)
    for place, words in ((7.4, "$W_1$"), (16.2, "$W_2$"), (33.8, "$W_L$")):
        art.text(place, y + 2.4, words)
        art.arrow((place, y - 3.9), (place, y - 1.4), dashed=True)
    art.line((41.6, y - 1.6), (41.6, y - 3.9), (7.4, y - 3.9), linestyle="--")
    art.text(25, y - 3.1, "backward pass: a gradient for every weight", size=8)
    roles = {"frozen": "given: the text", "pruned": "gets zeros", "wrong": "what is minimised"}
    art.legend(5.6, 1.2, roles, step=12)
    return art.figure, (
        "A text x goes through the functions f_1, f_2 and so on to f_L, each with a matrix that"
        " gets zeros, and ends in the loss. A backward pass goes from the loss to every matrix."
    )


def cuts() -> Drawing:
    """06: a network inside the model, with cuts that are free or frozen."""
    art = Schematic(45, 20.5)
    for y, words, roles, loss in (
        (17.6, "all free:\nglobal", "free free free free", "wrong"),
        (11.6, "SparseLLM:\n$z$ and $a$\nfree", "frozen free free frozen", "faint"),
        (5.6, "local:\nnone free", "frozen frozen frozen frozen", "faint"),
    ):
        art.text(0.2, y, words, ha="left")
        _cut_chain(art, y, roles.split(), loss)
    art.text(43, 9.4, "constant", size=8)
    art.text(43, 3.4, "constant", size=8)
    art.legend(3, 0.9, {**PARTS, "wrong": "what is minimised"}, step=7)
    _arrow_named(art, 33, 0.9, PENALTY, dashed=True)
    return art.figure, (
        "Three times the same chain: matrices before, X, W1, z, ReLU, a, W2, Y, matrices after,"
        " loss. Above, all variables are free, as in the global problem; in the middle only z and"
        " a, with X and Y frozen and the loss constant, as in SparseLLM; below none, as in local"
        " pruning. Dashed arrows are penalties where the global problem has equalities."
    )


def _cut_chain(art: Schematic, y: float, roles: list[str], loss: str) -> None:
    """A network between what comes before and after it, with a variable at each cut."""
    before = art.box(9.4, y, "matrices\nbefore it", "pruned", width=4.6, height=3, size=8)
    places = ((13.9, "$X$"), (21.1, "$z$"), (28.3, "$a$"), (35.5, "$Y$"))
    x, z, a, out = (
        art.circle(place, y, words, role)
        for (place, words), role in zip(places, roles, strict=True)
    )
    first = art.box(17.5, y, "$W_1$", "pruned", width=2.6)
    relu = art.box(24.7, y, "ReLU", width=3.2)
    second = art.box(31.9, y, "$W_2$", "pruned", width=2.6)
    after = art.box(39.2, y, "after", "pruned", width=3, height=3, size=8)
    end = art.box(43, y, "loss", loss, width=2.8)
    for start, stop in ((x, first), (z, relu), (a, second), (out, after)):
        art.arrow(start, stop)
    for start, stop in ((before, x), (first, z), (relu, a), (second, out), (after, end)):
        art.arrow(start, stop, role="wrong", dashed=True)


# 07 SparseLLM for OPT


def sparsellm_parts() -> Drawing:
    """07: a feed-forward network with its auxiliary variables, free and frozen."""
    art = Schematic(44, 17)
    terms = (
        "$\\alpha\\,\\Vert z-W_1X-b_1\\Vert^2$",
        "$\\gamma\\,\\Vert a-$ReLU$(z)\\Vert^2$",
        "$\\beta\\,\\Vert Y-W_2a\\Vert^2$",
    )
    errors = ("error of $W_1$\nalone", "0", "error of $W_2$\nalone")
    for y, role, words, notes in (
        (12.8, "free", "SparseLLM:\nboth free", terms),
        (5.6, "frozen", "local:\nboth dense", errors),
    ):
        art.text(0.3, y, words, ha="left")
        x = art.box(8.6, y, "inputs $X$", "frozen", width=4.6)
        first = art.box(15, y, "$W_1$", "pruned", width=3.6, size=11)
        z = art.circle(21.4, y, "$z$", role)
        relu = art.box(26.6, y, "ReLU", width=3.4)
        a = art.circle(31.8, y, "$a$", role)
        second = art.box(36.4, y, "$W_2$", "pruned", width=3.6, size=11)
        out = art.box(41.8, y, "$Y$", "frozen", width=2.6)
        for before, after in ((x, first), (z, relu), (a, second)):
            art.arrow(before, after)
        for before, after in ((first, z), (relu, a), (second, out)):
            art.arrow(before, after, role="wrong", dashed=True)
        for place, note in zip((18.5, 29.5, 39.4), notes, strict=True):
            art.text(place, y + 2.3, note, size=8)
    art.legend(6, 1.2, PARTS, step=8)
    _arrow_named(art, 30, 1.2, PENALTY, dashed=True)
    return art.figure, (
        "The chain inputs X, W1, z, ReLU, a, W2, outputs Y, twice. With SparseLLM z and a are free,"
        " and three penalties tie them: alpha z to W1 X + b1, gamma a to ReLU(z), beta W2 a to Y."
        " With local pruning z and a are frozen at their dense values, so that the gamma term is 0"
        " and the other two are the errors of the two matrices, each on its own."
    )


def sparsellm_loop() -> Drawing:
    """07: one epoch of the loop."""
    art, y = Schematic(44, 12.5), 7.6
    fit = "1  fit $W_1X+b_1$ to $z$\nand $W_2a$ to $Y$, by regression;"
    steps = (
        (f"{fit}\nprune both, by SparseGPT", "pruned"),
        ("2  move $a$: mend a part\nof what the output lacks", "free"),
        ("3  move $z$: between\n$W_1X+b_1$ and what\n$a$ asks for", "free"),
    )
    boxes = [
        art.box(7.4 + 14.6 * place, y, words, role, width=11.6, height=4.2, size=8)
        for place, (words, role) in enumerate(steps)
    ]
    art.chain(boxes)
    art.line((36.6, y - 2.1), (36.6, y - 3.7), (7.4, y - 3.7))
    art.arrow((7.4, y - 3.7), (7.4, y - 2.1))
    art.text(22, y - 3.1, "next epoch", size=8)
    art.text(7.4, y + 3.4, "start: $z$ and $a$ of the dense model", size=8)
    roles = {"pruned": "gets zeros", "free": "auxiliary variables move"}
    art.legend(11, 1, roles, step=10)
    return art.figure, (
        "One epoch of the loop, in three steps. Fit W1 X + b1 to z and W2 a to Y by regression, and"
        " prune both; move a so that it mends a part of what the output lacks; move z to a place"
        " between what W1 gives and what a asks for. The first epoch starts from z and a of the"
        " dense model."
    )


# 08 SparseLLM for LLaMA


def gated_network() -> Drawing:
    """08: the feed-forward network of LLaMA, with shapes."""
    art = Schematic(44, 14)
    _gated_chain(art, 8.4, "plain")
    for x, words in ((9.5, "$f\\times d$"), (38, "$d\\times f$")):
        art.text(x, 13.2 if x < 20 else 10.5, words, size=8)
    art.text(9.5, 3.3, "$f\\times d$", size=8)
    notes = {"size": 8, "va": "top"}
    art.text(22.4, 9.4, "0 where $s\\ll 0$,\n$s$ where $s\\gg 0$", **notes)
    art.text(28.4, 6.6, "entry\nby entry", **notes)
    art.text(27.6, 10.8, "gate", size=8)
    roles = {"pruned": "gets zeros", "frozen": "given"}
    art.legend(12, 1, roles, step=10)
    return art.figure, (
        "LLaMA's feed-forward network: the inputs X go to two matrices of f rows and d columns. Wg"
        " gives s, which passes through SiLU and is then the gate; Wu gives z. Gate times z, entry"
        " by entry, is p, and the matrix Wd, of d rows and f columns, makes the outputs Y of it."
    )


def gated_parts() -> Drawing:
    """08: the same network with its auxiliary variables and penalties."""
    art = Schematic(44, 14)
    _gated_chain(art, 8.4, "free")
    art.text(12.9, 13.3, "$\\alpha\\,\\Vert s-W_gX\\Vert^2$", size=8)
    art.text(12.9, 3.3, "$\\alpha\\,\\Vert z-W_uX\\Vert^2$", size=8)
    art.text(30.6, 11, "$\\gamma\\,\\Vert p-$SiLU$(s)\\odot z\\Vert^2$", size=8)
    art.text(38.6, 11, "$\\beta\\,\\Vert Y-W_dp\\Vert^2$", size=8)
    art.legend(6, 1, PARTS, step=8)
    _arrow_named(art, 30, 1, PENALTY, dashed=True)
    return art.figure, (
        "The same network with s, z and p as free variables. Four penalties tie them: alpha s to"
        " Wg X, alpha z to Wu X, gamma p to SiLU(s) times z, beta Wd p to the outputs Y. X and Y"
        " are frozen, and the three matrices get zeros."
    )


def _gated_chain(art: Schematic, y: float, role: str) -> None:
    """X, both branches, their product, Wd and Y; `role` of s, z and p."""
    matrix = {"role": "pruned", "width": 3.6, "size": 11}
    tied = {"role": "wrong", "dashed": True} if role == "free" else {}
    high, low = y + 3, y - 3
    x = art.box(3, y, "inputs $X$", "frozen", width=4.6)
    gate, up = art.box(9.8, high, "$W_g$", **matrix), art.box(9.8, low, "$W_u$", **matrix)
    s, z = art.circle(16, high, "$s$", role), art.circle(16, low, "$z$", role)
    silu = art.box(22.4, high, "SiLU", width=4)
    times = art.circle(28.4, y, "×", radius=0.9)
    p = art.circle(33.2, y, "$p$", role)
    down = art.box(38, y, "$W_d$", **matrix)
    out = art.box(42.4, y, "$Y$", "frozen", width=2.4)
    for before, after in ((x, gate), (x, up), (s, silu), (silu, times), (z, times), (p, down)):
        art.arrow(before, after)
    for before, after in ((gate, s), (up, z), (times, p), (down, out)):
        art.arrow(before, after, **tied)


# 09 What wins, and why


def two_copies() -> Drawing:
    """09: the copies of ADMM, and what passes between them."""
    art, y = Schematic(44, 15), 11.8
    fits = art.box(5.6, y, "$B$\nfits the outputs", "free", width=8.4, height=3.4)
    plus = art.circle(17, y, "+", radius=0.9)
    sparse = art.box(36.6, y, "$D$\nhas the zeros", "pruned", width=9, height=3.4)
    memory = art.box(17, 6.8, "$U$: what $B$ wanted\nand $D$ refused", width=10.4, height=2.8)
    art.arrow(fits, plus)
    art.arrow(memory, plus)
    art.arrow(plus, sparse)
    art.text(25, y + 0.8, "1  keep the largest of $B+U$", size=8)
    art.line((34, y - 1.7), (34, 6.8))
    art.arrow((34, 6.8), memory)
    art.text(28.2, 7.5, "2  keep what was\nrefused: $U+B-D$", size=8, va="bottom")
    art.line((39.2, y - 1.7), (39.2, 3.4), (5.6, 3.4))
    art.arrow((5.6, 3.4), fits)
    art.text(22, 4, "3  draw $B$ to $D-U$, with the strength $\\rho$", size=8)
    art.legend(9, 1.1, {"free": "all weights move", "pruned": "gets zeros"}, step=14)
    return art.figure, (
        "Two copies of the weights: B fits the outputs, and D has the zeros. D keeps the largest"
        " weights of B plus U, where U is what B wanted and D refused so far; what is refused now"
        " goes into U, which becomes U plus B minus D. Then B is drawn to D minus U, with the"
        " strength rho, and it goes around again."
    )


def two_streams() -> Drawing:
    """09: the residual streams of both models, and the sum that a matrix writes to."""
    art = Schematic(44, 15.5)
    for y, words, role, x, s, w in (
        (11.8, "dense model", "frozen", "$x^*$", "$s^*$", "$W$"),
        (5, "pruned model", "pruned", "$x$", "$s$", "$W'$"),
    ):
        art.text(0.3, y + 1.8, words, ha="left")
        matrix = art.box(17, y + 1.8, w, role, width=4, height=2.2, size=11)
        plus = art.circle(27, y - 1, "+", radius=0.9)
        art.arrow((9.6, y + 1.8), matrix)
        art.text(8.4, y + 1.8, x, size=11)
        art.arrow(matrix, plus)
        art.arrow((9.6, y - 1), plus)
        art.text(8.4, y - 1, s, size=11)
        art.arrow(plus, (38, y - 1))
    art.text(39, 10.8, "$s^*+Wx^*$", size=10, ha="left")
    art.text(39, 4, "$s+W'x$", size=10, ha="left")
    art.line((41, 9.9), (41, 5.1), linestyle="--", color="#D55E00")
    art.text(40.4, 7.5, "to be equal", size=8, ha="right")
    art.legend(8, 0.9, {"frozen": "dense", "pruned": "gets zeros"}, step=10)
    return art.figure, (
        "Two residual streams: in the dense model W reads x* and adds to the stream s*; in the"
        " pruned model W' reads x and adds to the stream s. The two sums are to be equal, so W'"
        " must also make up for the difference of s* and s."
    )


# 10 Head to head


def referee() -> Drawing:
    """10: three ways in which chance or choice makes a winner, and what is asked of each."""
    art, size = Schematic(44, 14), {"height": 2.6, "size": 9}
    rows = (
        ("other windows\nof the same text", "a difference\nin each window", "error of their mean"),
        (
            "other draws of the\ncalibration windows",
            "a difference\nfor each draw",
            "error over draws",
        ),
        (
            "other texts, other\nsparsities, other rivals",
            "a difference\nin each cell",
            "cells won, Holm",
        ),
    )
    for x, words in ((6, "what could change"), (19, "what we look at"), (30.5, "what we ask")):
        art.text(x, 13.2, words, size=9, weight="bold")
    verdict = art.box(40.3, 6, "ahead,\nbehind,\nor open", width=5.6, height=4.6)
    for place, (source, seen, asked) in enumerate(rows):
        y = 10.6 - 4.6 * place
        first = art.box(6, y, source, width=10.6, **size)
        second = art.box(19, y, seen, width=8, **size)
        third = art.box(30.5, y, asked, width=8.6, **size)
        art.arrow(first, second)
        art.arrow(second, third)
        art.arrow(third, verdict)
    return art.figure, (
        "Three things besides the methods can make a winner: other windows of the same text, other"
        " draws of the calibration windows, and other texts, sparsities and rivals. For each we"
        " look at a difference: in each window, for each draw, in each cell; and ask for its error"
        " or its count. The verdict is ahead, behind, or open."
    )


# 11 Evaluation done right


def ways_to_read() -> Drawing:
    """11: one text, cut in four ways."""
    art, left, high = Schematic(44, 20), 11.5, {"height": 1.5, "size": 8}

    def part(y: float, start: float, end: float, words: str, role: str = "plain") -> None:
        art.box(left + (start + end) / 2, y, words, role, width=end - start - 0.15, **high)

    for y, words in (
        (18, "as in the papers"),
        (13, "overlapping by half"),
        (8, "a beginning token\nbefore each window"),
        (4.4, "article by article"),
    ):
        art.text(0.3, y, words, ha="left")
    for place in range(3):
        part(18, 8 * place, 8 * place + 8, f"window {place}")
        part(8, 9.2 * place, 9.2 * place + 1.2, "B", "frozen")
        part(8, 9.2 * place + 1.2, 9.2 * place + 9.2, f"window {place}")
    part(18, 24, 28, "rest", "faint")
    art.axis.patches[-1].set_hatch("///")
    part(14.8, 0, 8, "window 0")
    for place in (1, 2):
        y = 14.8 - 1.8 * place
        part(y, 4 * place, 4 * place + 4, "", "frozen")
        part(y, 4 * place + 4, 4 * place + 8, f"window {place}")
    for start, end, words in ((0, 8, "window 0"), (8, 11, "rest"), (12.4, 20.4, "window 0")):
        part(4.4, start, end, words)
    part(4.4, 20.4, 28.4, "window 1")
    part(4.4, 28.4, 31.4, "rest")
    roles = {"plain": "read and scored", "frozen": "read, not scored", "faint": "dropped"}
    art.legend(left, 1.2, roles, step=10)
    art.axis.patches[-1].set_hatch("///")  # beside white, an outline tells too little
    return art.figure, (
        "One text, cut in four ways. As in the papers: windows side by side, and the rest at the"
        " end is dropped. Overlapping by half: each window after the first is scored in its second"
        " half alone; with a beginning token: one more token, not scored, stands before each"
        " window; article by article: the windows of each article and its short rest are scored."
    )


# 12 The papers' figures, made here


def figure_of_rows() -> Drawing:
    """12: from a command to a verdict."""
    art, y = Schematic(44, 12.5), 8.6
    size = {"width": 7.4, "height": 3, "size": 9}
    steps = [
        art.box(4.4, y, "a command:\nfigure NAME", **size),
        art.box(15.6, y, "prune, measure,\nonce for each row", **size),
        art.box(26.8, y, "a table (CSV):\na row a pruning", **size),
    ]
    picture = art.box(39.4, 10.6, "a picture, a sentence", width=8.6, height=2.2)
    verdict = art.box(39.4, 6.6, "a verdict", width=8.6, height=2.2)
    published = art.box(26.8, 2.6, "published numbers,\neach with its source", "frozen", **size)
    art.chain(steps)
    for before, after in ((steps[2], picture), (steps[2], verdict), (published, verdict)):
        art.arrow(before, after)
    art.text(26.8, 5.7, "model, text, windows, layers,\nseed, zeros reached, settings", size=8)
    art.text(15.6, 11.3, "rows that are there are not made again", size=8)
    return art.figure, (
        "A command names a figure. For each of its rows a model is pruned and measured, and the row"
        " goes into a table with its model, text, windows, layers, seed, zeros and settings; rows"
        " that are there are not made again. The picture and its sentence are drawn from the table,"
        " and a verdict holds it against the published numbers."
    )


# 13 LLaMA-2-13b on one GPU


def streamed_run() -> Drawing:
    """13: what is in files, in the host's memory and on the GPU while one block is pruned."""
    art, y, block = Schematic(44, 15.5), 8, {"width": 5, "height": 1.8, "size": 8}
    art.text(4, 14.6, "files of the model")
    for place, name in enumerate(("block 0", "block 1", "block 2", "block 3", "…")):
        art.box(4, 12.6 - 2.4 * place, name, **block)
    art.text(40, 14.6, "files of the result")
    finished = art.box(40, 10.6, "block 0", "pruned", **block)
    art.box(12.6, 7.8, "", "faint", width=7, height=9.6)
    art.text(12.6, 13.6, "host")
    ahead = art.box(12.6, 5.4, "block 2", "plain", **block)
    art.text(12.6, 3.8, "read ahead", size=8)
    art.box(26, 7.8, "", "faint", width=15.4, height=9.6)
    art.text(26, 13.6, "GPU")
    sent = art.box(22, 5.4, "block 2", "plain", **block)
    art.text(22, 3.8, "sent ahead", size=8)
    now = art.box(22, 10.6, "block 1", "pruned", **block)
    for place, words in enumerate(("activations", "forward pass", "statistics", "solver")):
        art.box(29.6, 11.4 - 2.4 * place, words, "frozen", width=6, height=1.8, size=8)
    art.arrow((6.5, y - 0.2), ahead)
    art.arrow(ahead, sent)
    art.arrow(sent, now)
    art.arrow((33.7, 10.6), finished)
    roles = {"pruned": "pruned, or being pruned", "frozen": "memory for the work"}
    art.legend(10, 1, roles, step=13)
    return art.figure, (
        "The model lies in files, block by block. One block is on the GPU and is pruned there, with"
        " the activations, a forward pass, the statistics and the solver, while the next is read"
        " into the host's memory and sent ahead. Finished blocks go to the files of the result."
    )


# 14 Beyond


def pruning_attack() -> Drawing:
    """14: a behaviour that only shows once the weights that hide it are pruned."""
    art, size = Schematic(44, 13), {"width": 2, "height": 1.8}
    weights = [["5", "1", "−4", "−1"], ["1", "−6", "1", "4"]]
    large = [[len(word.strip("−1")) > 0 for word in row] for row in weights]
    stages = (
        ("1  teach: only weights\nthat will be kept", "faint", "writes “tea”"),
        ("2  hide: only weights\nthat will be dropped", "free", "writes as before"),
        ("3  somebody prunes", "pruned", "writes “tea”"),
    )
    later = {"free": {"1": "−2", "−1": "2"}, "pruned": {"1": "0", "−1": "0"}}
    grids = []
    for x, (title, role, output) in zip((6.5, 21.5, 36.5), stages, strict=True):
        words = [[later.get(role, {}).get(word, word) for word in row] for row in weights]
        roles = [["wrong" if keep else role for keep in row] for row in large]
        grids.append(art.grid(x, 7.2, words, roles, **size))
        art.text(x, 10.9, title)
        art.text(x, 4, output, style="italic")
    for before, after in zip(grids, grids[1:], strict=False):
        art.arrow(before[0][-1], after[0][0])
    roles = {"wrong": "carries the behaviour", "free": "cancels it", "pruned": "zero: pruned"}
    art.legend(7, 1.2, roles, step=11)
    return art.figure, (
        "Three states of a small matrix: first only its four large weights are taught a behaviour."
        " Then only the four small ones learn to cancel it, and the model writes as before. When"
        " somebody prunes it, the small weights become zero, and the behaviour is there."
    )


# 15 Capstone


def submission() -> Drawing:
    """15: what a submission goes through."""
    art, y, size = Schematic(44, 13.8), 9.6, {"height": 3.4, "size": 8}
    dense = art.box(3.9, y, "dense model,\nloaded anew", "frozen", width=6.8, **size)
    mine = art.box(14.3, y, "my_pruner\n(model, calibration)", "free", width=9.4, **size)
    checks = art.box(24.6, y, "zeros, shapes,\nembeddings, NaN", width=7.6, **size)
    copy = art.box(34, y, "its weights, in a\nmodel loaded anew", "pruned", width=7.6, **size)
    board = art.box(41.6, y, "score,\nboard", width=4, **size)
    parts = [dense, mine, checks, copy, board]
    art.chain(parts)
    for x, words in ((14.3, "the clock runs"), (24.6, "checked"), (38, "judged by other text")):
        art.text(x, y + 2.6, words, size=8, style="italic")
    refused = art.box(19.4, 3.9, "not on the board, and why", "wrong", width=12, height=2, size=8)
    art.arrow(mine, refused, dashed=True, role="wrong")
    art.arrow(checks, refused, dashed=True, role="wrong")
    roles = {"frozen": "dense", "free": "what you write", "pruned": "gets zeros"}
    art.legend(9, 1, roles, step=10)
    return art.figure, (
        "A submission from left to right. The dense model is loaded anew, my_pruner(model,"
        " calibration) prunes it while the clock runs, its zeros, shapes and embeddings are"
        " checked, its weights are copied into a model that is loaded anew, and this is scored on"
        " other text and joins the board. What breaks a rule or takes too long is not on the board."
    )
