"""Every notebook is whole, honest and readable as stored: what nbval does not look at. And each
check can fail."""

import re
import symtable
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode, v4

NOTEBOOK_FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(NOTEBOOK_FOLDER.glob("*.ipynb"))

NOT_COMPARED = {"nbval-ignore-output", "nbval-skip"}
TAGS = NOT_COMPARED | {
    "raises-exception",
    "solution",
    "exercise",
    "hide-input",
    "schematic",
    "claim",
}
MOST_LINES = 20
MOST_BYTES = 500_000
ALT_WORDS = 3
MEDIAN_LINES = 6
LESSON = (
    r"You will be able to",
    r"You need",
    r"^##+ .*Exercise",
    r"^## .*Summary",
    r"^## .*Questions",
    r"^## .*References",
)

ABSOLUTE_PATH = re.compile(
    r"(?<![\w.:/~<\])}])/(?:(?:home|root|Users|tmp|mnt|opt|usr|work|content)\b|[\w.-]+/[\w.-]+)"
    r"|\b[A-Z]:\\+(?:Users|Windows|Temp)\b"
)
SHELL = re.compile(
    r"^\s*(?:[\w, ]+=\s*)?!(?!=)|^\s*(?:[\w, ]+=\s*)?%%?(?:pip|conda|mamba|uv|sh|bash|sx|system)\b"
)
PICTURE = re.compile(r"!\[(?P<alt>[^\]]*)\][(\[]|<img\b(?P<html>[^>]*)>")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
BARE_REPR = re.compile(r"\[?<.*>,?\]?")  # <Figure size 640x480 with 1 Axes>, [<Line2D at 0x7f3a>]

Check = Callable[[NotebookNode], Iterator[str]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """A check yields one sentence for each fault."""
    CHECKS.append(function)
    return function


def cells(notebook: NotebookNode, kind: str) -> list[tuple[str, NotebookNode]]:
    """The cells of a kind, each with the name that faults give it: its place in the file."""
    return [
        (f"cell {place}", cell)
        for place, cell in enumerate(notebook.cells)
        if cell.cell_type == kind
    ]


def tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def texts(output: NotebookNode) -> list[str]:
    """What an output says in words, standard error and exceptions left out."""
    if output.output_type == "stream":
        return [output.text] if output.name == "stdout" else []
    return [output.data["text/plain"]] if "text/plain" in output.get("data", {}) else []


@check
def executed_in_order(notebook):
    """A fresh kernel ran every cell, from the first to the last."""
    for count, (name, cell) in enumerate(cells(notebook, "code"), start=1):
        if cell.execution_count != count:
            yield f"{name} has execution count {cell.execution_count}, not {count}"


@check
def no_errors(notebook):
    """Only a cell that is meant to fail may show an error."""
    for name, cell in cells(notebook, "code"):
        if "raises-exception" not in tags(cell) and any(
            output.output_type == "error" for output in cell.outputs
        ):
            yield f"{name} ended in an error; tag it raises-exception if it should"


@check
def no_printed_traceback(notebook):
    """A traceback in the text of an output means that something failed and went on."""
    for name, cell in cells(notebook, "code"):
        printed = [
            output.get("text", "") + output.get("data", {}).get("text/plain", "")
            for output in cell.outputs
        ]
        if "Traceback (most recent call last)" in "".join(printed):
            yield f"{name} prints a traceback"


@check
def no_semicolon(notebook):
    """nbval ignores a trailing semicolon, so the output that it hides here would appear there."""
    for name, cell in cells(notebook, "code"):
        if any(line.rstrip().endswith(";") for line in cell.source.splitlines()):
            yield f"{name} has a line that ends in a semicolon; write `_ = ...`"


@check
def known_tags(notebook):
    """A misspelt tag does nothing, and so would a comment that nbval reads in its place escape the
    count below."""
    for place, cell in enumerate(notebook.cells):
        if unknown := tags(cell) - TAGS:
            yield f"cell {place} has unknown tags: {', '.join(sorted(unknown))}"
        if cell.cell_type == "code" and "NBVAL_" in cell.source:
            yield f"cell {place} steers nbval by a comment; use a tag"


@check
def short_cells(notebook):
    """A reader takes in a screenful; helpers live in the package."""
    for name, cell in cells(notebook, "code"):
        if (lines := len(cell.source.splitlines())) > MOST_LINES:
            yield f"{name} has {lines} lines, more than {MOST_LINES}"


@check
def nearly_all_compared(notebook):
    """One cell in ten may escape the comparison, or one in a shorter notebook; each says why."""
    code = cells(notebook, "code")
    escaped = [(name, cell) for name, cell in code if tags(cell) & NOT_COMPARED]
    if len(escaped) > max(1, len(code) // 10):
        yield f"{len(escaped)} of {len(code)} code cells are not compared"
    for name, cell in escaped:
        if not re.search(r"^# not compared: \w", cell.source, re.MULTILINE):
            yield f"{name} is not compared and has no line `# not compared: ...` with the reason"


@check
def no_widget_state(notebook):
    """GitHub refuses notebooks whose stored widget state it cannot read."""
    if "widgets" in notebook.metadata:
        yield "metadata.widgets is stored"


@check
def no_embedded_pictures(notebook):
    """Pictures in text come from files, which can be reviewed."""
    for name, cell in cells(notebook, "markdown"):
        if "data:image" in cell.source or cell.get("attachments"):
            yield f"{name} has a picture inside its text"


@check
def no_absolute_paths(notebook):
    """A path of the author's machine fails on every other."""
    for place, cell in enumerate(notebook.cells):
        if found := ABSOLUTE_PATH.search(cell.source):
            yield f"cell {place} has an absolute path: {found[0]}"


@check
def no_shell(notebook):
    """Nothing is installed or started behind Python's back."""
    for name, cell in cells(notebook, "code"):
        if found := [line for line in cell.source.splitlines() if SHELL.match(line)]:
            yield f"{name} calls the shell: {found[0]}"


@check
def pictures_described(notebook):
    """Who cannot see a picture reads its alt text."""
    for name, cell in cells(notebook, "markdown"):
        for picture in PICTURE.finditer(cell.source):
            html = re.search(r"""\balt=(["'])(.*?)\1""", picture["html"] or "", re.DOTALL)
            alt = html[2] if html else picture["alt"] or ""
            if len(alt.split()) < ALT_WORDS:
                yield f"{name} has a picture with alt text {alt!r}, fewer than {ALT_WORDS} words"


@check
def figures_described(notebook):
    """nbval compares no pixels: the line of text beside a figure is what it compares, and what some
    readers hear."""
    for name, cell in cells(notebook, "code"):
        drawn = any(
            mime.startswith("image/") for output in cell.outputs for mime in output.get("data", {})
        )
        lines = [
            line for output in cell.outputs for text in texts(output) for line in text.splitlines()
        ]
        if drawn and not any(
            line.strip() and not BARE_REPR.fullmatch(line.strip()) for line in lines
        ):
            yield f"{name} draws a figure and says nothing about it"


@check
def headings_in_steps(notebook):
    """Screen readers and tables of contents go by levels: # first, none skipped."""
    last = 0
    for name, cell in cells(notebook, "markdown"):
        for heading in re.finditer(r"^(#{1,6}) .*", FENCED.sub("", cell.source), re.MULTILINE):
            if len(heading[1]) > last + 1:
                yield f"{name} jumps from level {last} to {heading[0]!r}"
            last = len(heading[1])


@check
def opens_with_cost(notebook):
    """The first cell gives the title and, below it, one line with the time to read and to run."""
    first = notebook.cells[0] if notebook.cells else v4.new_raw_cell()
    if first.cell_type != "markdown" or not re.search(r"^# \S", first.source, re.MULTILINE):
        yield "the first cell is not markdown with a title"
    text = [line for line in first.source.splitlines() if not line.startswith("#")]
    if not any({"read", "run"} <= set(re.findall(r"\w+", line)) for line in text):
        yield "the first cell has no line with the time to read and to run"


@check
def cells_are_mostly_short(notebook):
    """Half of the code cells have at most 6 lines."""
    lengths = sorted(len(cell.source.splitlines()) for _, cell in cells(notebook, "code"))
    if lengths and (median := lengths[len(lengths) // 2]) > MEDIAN_LINES:
        yield f"half of the code cells have {median} lines or more, above {MEDIAN_LINES}"


@check
def equations_count_up(notebook):
    """Numbered equations go 1, 2, 3; a number is used once."""
    text = "\n".join(cell.source for _, cell in cells(notebook, "markdown"))
    numbers = [int(a or b) for a, b in re.findall(r"\\q+uad\s*\((\d+)\)|\\tag\{(\d+)\}", text)]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"equations are numbered {numbers}"


@check
def links_lead_somewhere(notebook):
    """Links to other notebooks and files exist."""
    for name, cell in cells(notebook, "markdown"):
        for target in re.findall(r"(?<!!)\[[^\]]*\]\((?!https?:|#|mailto:)([^)#\s]+)", cell.source):
            if not (NOTEBOOK_FOLDER / target).exists():
                yield f"{name} links to {target}, which is not there"


@check
def lessons_are_complete(notebook):
    """A lesson says what it teaches and needs; it ends with summary, questions, references."""
    text = "\n".join(cell.source for _, cell in cells(notebook, "markdown"))
    if "course.check(" in "".join(cell.source for _, cell in cells(notebook, "code")):
        for part in LESSON:
            if not re.search(part, text, re.MULTILINE):
                yield f"nothing in the text matches {part!r}"


@check
def sliders_keep_their_names(notebook):
    """A slider draws again after the last cell has run: by then, nothing that it reads may have
    another value."""
    code = cells(notebook, "code")
    if not any("course.explore(" in cell.source for _, cell in code):
        return
    tables = [
        symtable.symtable(re.sub(r"(?m)^%.*", "", cell.source), name, "exec") for name, cell in code
    ]
    for place, (name, cell) in enumerate(code):
        for function in re.findall(r"course\.explore\((\w+)", cell.source):
            needed = names_read(function, tables[: place + 1])
            for (later, _), table in zip(code[place + 1 :], tables[place + 1 :], strict=True):
                if again := needed & {
                    symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned()
                }:
                    yield (
                        f"{later} gives {', '.join(sorted(again))} another value, which the slider"
                        f" of {name} reads"
                    )


def names_read(function: str, tables: list[symtable.SymbolTable]) -> set[str]:
    """The notebook's names that a function reads, by itself and through the functions that it
    calls."""
    found, todo = set(), [function]
    while todo:
        found.add(name := todo.pop())
        functions = (child for table in reversed(tables) for child in table.get_children())
        defined = next((child for child in functions if child.get_name() == name), None)
        todo += {*globals_of(defined)} - found if defined else ()
    return found


def globals_of(table: symtable.SymbolTable) -> set[str]:
    inner = [globals_of(child) for child in table.get_children()]
    return {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}.union(*inner)


@check
def runs_in_any_folder(notebook):
    """Students' editions and copies lie elsewhere: files are found from the package, not from the
    notebook."""
    for name, cell in cells(notebook, "code"):
        if found := re.search(r"""["']\.\.?/[^"']*""", cell.source):
            yield f"{name} reads {found[0][1:]}, which is relative to the notebook's folder"


@check
def small(notebook):
    """Notebooks are read in browsers and reviewed in diffs."""
    if (size := len(nbformat.writes(notebook).encode())) > MOST_BYTES:
        yield f"{size} bytes, more than {MOST_BYTES}"


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, check):
    """One verdict for each notebook and check."""
    faults = list(check(nbformat.read(path, as_version=4)))
    assert not faults, "\n".join(faults)


# Each check can fail: a sound notebook, and what breaks it.


def printed(text: str, name: str = "stdout") -> NotebookNode:
    return v4.new_output("stream", name=name, text=text)


def drawn(mime: str = "image/png") -> NotebookNode:
    return v4.new_output(
        "display_data",
        data={mime: "iVBORw0KGgo=", "text/plain": "<Figure size 640x480 with 1 Axes>"},
    )


def error() -> NotebookNode:
    return v4.new_output(
        "error",
        ename="ZeroDivisionError",
        evalue="division by zero",
        traceback=["Traceback (most recent call last)", "ZeroDivisionError: division by zero"],
    )


def sound() -> NotebookNode:
    """A notebook that no check may complain about, with what a hasty pattern would take for a
    fault."""
    notebook = v4.new_notebook(
        cells=[
            v4.new_markdown_cell("# Masks\n25 min to read, 40 s to run on a laptop"),
            v4.new_code_cell(
                "n, m = 2, 4\nassert (n\n        != m)\nf'{n}/data/a'",
                metadata={"tags": ["hide-input"]},
            ),
            v4.new_markdown_cell(
                "## Paths\n```sh\n#### no heading\n```\n[paper](https://arxiv.org/abs/2301.00774)"
                " and/or "
                r"$$a \qquad (1)$$ $$b \tag{2}$$ [see](00_start_here.ipynb) "
                "data/models/opt-mini, 1/2/3,"
                " ../data/texts\n<details>\n$\\|WX\\|/\\|X\\|$</details>"
            ),
            v4.new_code_cell("1 / 0", outputs=[error()], metadata={"tags": ["raises-exception"]}),
            v4.new_markdown_cell(
                '### Figure\n![scores of one row](row.png) <img src="a.png" alt="mask of one'
                ' layer">'
            ),
            v4.new_code_cell(
                "figure()",
                outputs=[drawn(), printed("Wanda keeps 2 of 4\n"), printed("90%", "stderr")],
            ),
            v4.new_code_cell(
                "# not compared: seconds\n%timeit n % m", metadata={"tags": ["nbval-ignore-output"]}
            ),
            v4.new_markdown_cell("## Summary"),
        ]
    )
    for count, (_, cell) in enumerate(cells(notebook, "code"), start=1):
        cell.execution_count = count
    return notebook


MARKDOWN, CODE, FAILING, FIGURE, ESCAPED = 2, 1, 3, 5, 6  # places in the sound notebook


def source(place: int, text: str) -> Callable[[NotebookNode], None]:
    """Replace a cell's source."""
    return lambda notebook: notebook.cells[place].update(source=text)


def tag(place: int, *names: str) -> Callable[[NotebookNode], None]:
    """Replace a cell's tags."""
    return lambda notebook: notebook.cells[place].metadata.update(tags=list(names))


def outputs(place: int, *new: NotebookNode) -> Callable[[NotebookNode], None]:
    """Replace a cell's outputs."""
    return lambda notebook: notebook.cells[place].update(outputs=list(new))


MUTATIONS: list[tuple[Check, str, Callable[[NotebookNode], object]]] = [
    (
        executed_in_order,
        "not run",
        lambda notebook: notebook.cells[CODE].update(execution_count=None),
    ),
    (
        executed_in_order,
        "run twice",
        lambda notebook: notebook.cells[FIGURE].update(execution_count=7),
    ),
    (executed_in_order, "run from bottom to top", lambda notebook: notebook.cells.reverse()),
    (no_errors, "untagged error", tag(FAILING)),
    (
        no_printed_traceback,
        "on stderr",
        outputs(CODE, printed("Traceback (most recent call last):\n", "stderr")),
    ),
    (no_semicolon, "at the end", source(CODE, "plot(x);")),
    (no_semicolon, "before a blank", source(CODE, "for x in y:\n    plot(x); \nshow()")),
    (known_tags, "misspelt", tag(ESCAPED, "nbval-ignore-outputs")),
    (known_tags, "on markdown", tag(MARKDOWN, "slide")),
    (known_tags, "by comment", source(CODE, "# NBVAL_SKIP\nx = 1")),
    (short_cells, "21 lines", source(CODE, "x = 1\n" * 21)),
    (nearly_all_compared, "two of four", tag(FIGURE, "nbval-skip")),
    (nearly_all_compared, "no reason", source(ESCAPED, "%timeit n % m")),
    (nearly_all_compared, "empty reason", source(ESCAPED, "# not compared:\n%timeit n % m")),
    (no_widget_state, "stored", lambda notebook: notebook.metadata.update(widgets={})),
    (
        no_embedded_pictures,
        "base64",
        source(MARKDOWN, "![a mask drawn](data:image/png;base64,iVBORw0KGgo=)"),
    ),
    (
        no_embedded_pictures,
        "pasted",
        lambda notebook: notebook.cells[MARKDOWN].update(attachments={"a.png": {}}),
    ),
    (no_absolute_paths, "in code", source(CODE, "load('/work/main')")),
    (no_absolute_paths, "one part", source(CODE, "load('/tmp')")),
    (no_absolute_paths, "in text", source(MARKDOWN, "see [it](/data/models/opt)")),
    (no_absolute_paths, "Windows", source(CODE, r"load(r'C:\Users\ada')")),
    (no_shell, "command", source(CODE, "x = 1\n!ls")),
    (no_shell, "assigned", source(CODE, "files = !ls")),
    (no_shell, "indented", source(CODE, "if True:\n    %pip install sparselab")),
    (no_shell, "cell magic", source(CODE, "%%bash\nls")),
    (pictures_described, "empty", source(MARKDOWN, "![](row.png)")),
    (pictures_described, "two words", source(MARKDOWN, "![a row](row.png)")),
    (pictures_described, "by reference", source(MARKDOWN, "![a row][row]")),
    (pictures_described, "html without", source(MARKDOWN, '<img src="row.png">')),
    (pictures_described, "html short", source(MARKDOWN, '<img src="row.png" alt="a row">')),
    (
        pictures_described,
        "the second",
        source(MARKDOWN, "![a row of scores](row.png) ![](column.png)"),
    ),
    (figures_described, "only its repr", outputs(FIGURE, drawn())),
    (figures_described, "SVG", outputs(FIGURE, drawn("image/svg+xml"))),
    (
        figures_described,
        "only stderr",
        outputs(FIGURE, drawn(), printed("Wanda keeps 2 of 4\n", "stderr")),
    ),
    (figures_described, "a blank line", outputs(FIGURE, drawn(), printed("\n"))),
    (
        figures_described,
        "lines' repr",
        outputs(FIGURE, drawn(), printed("[<matplotlib.lines.Line2D at 0x7f3a5c>]\n")),
    ),
    (headings_in_steps, "skipped", source(MARKDOWN, "### Paths")),
    (headings_in_steps, "skipped in one cell", source(MARKDOWN, "## Paths\ntext\n#### Far down")),
    (headings_in_steps, "starts low", source(0, "## Masks\n25 min to read, 40 s to run")),
    (opens_with_cost, "no title", source(0, "25 min to read, 40 s to run")),
    (opens_with_cost, "no cost", source(0, "# Masks to read and run")),
    (opens_with_cost, "two lines", source(0, "# Masks\n25 min to read\n40 s to run")),
    (opens_with_cost, "code first", lambda notebook: notebook.cells.pop(0)),
    (opens_with_cost, "empty", lambda notebook: notebook.cells.clear()),
    (
        cells_are_mostly_short,
        "seven lines",
        lambda notebook: [
            cell.update(source="x = 1\n" * 7) for cell in notebook.cells if cell.cell_type == "code"
        ],
    ),
    (equations_count_up, "a gap", source(MARKDOWN, r"$$x \qquad (1)$$ $$y \qquad (3)$$")),
    (equations_count_up, "twice", source(MARKDOWN, r"$$x \tag{1}$$ $$y \qquad (1)$$")),
    (links_lead_somewhere, "no such file", source(MARKDOWN, "see [02](02_nothing.ipynb)")),
    (lessons_are_complete, "no summary", source(CODE, "f = course.check('01.1', f)")),
    (
        sliders_keep_their_names,
        "through a call",
        lambda notebook: notebook.cells.extend(
            map(
                v4.new_code_cell,
                [
                    (
                        "part = 1\ndef solve(x):\n    return part * x\ndef draw(figure, x):\n   "
                        " return solve(x)"
                    ),
                    "course.explore(draw, [])",
                    "part = 2",
                ],
            )
        ),
    ),
    (
        runs_in_any_folder,
        "a relative path",
        source(CODE, 'rows = pd.read_csv("../bench/opt-mini.csv")'),
    ),
    (small, "a large figure", outputs(CODE, printed("x" * MOST_BYTES))),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_check_accepts_a_sound_notebook(check):
    assert list(check(sound())) == []


@pytest.mark.parametrize(
    "check, mutate",
    [
        pytest.param(check, mutate, id=f"{check.__name__}-{what}")
        for check, what, mutate in MUTATIONS
    ],
)
def test_check_rejects(check, mutate):
    notebook = sound()
    mutate(notebook)
    assert list(check(notebook))


def test_every_check_is_seen_to_fail():
    assert {check for check, _, _ in MUTATIONS} == set(CHECKS)
