"""The same from a shell: python -m sparselab COMMAND. Each command is a function of its name below;
the function's parameters are its options, and its docstring is its help."""

import io
import os
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypedDict, Unpack

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.help import DefaultFormatter, PanelSpec
from cyclopts.validators import MutuallyExclusive
from rich.box import Box
from rich.console import Console

import sparselab as sl

from .errors import SparselabError
from .runtime import distributed
from .runtime.output import patient


def main(arguments: list[str] | None = None) -> int:
    """Run one command, and return its exit status. What is wrong is one sentence on stderr: status
    2 for a command line that cannot be read, 1 for everything else. An output that nobody reads
    any more (`| head -1`) is no fault, and stops no work."""
    with patient("stdout") as output, patient("stderr"):
        status = _run(arguments)
    if output.error is not None and not isinstance(output.error, BrokenPipeError):
        print(f"sparselab: the output was not written: {output.error.strerror}.", file=sys.stderr)
        return status or 1
    return status


def _run(arguments: list[str] | None) -> int:
    try:
        command, given, _ = app.parse_args(arguments, print_error=False, exit_on_error=False)
        with distributed.group() as device, _silence_unless_first():
            if device is not None:
                _set_device(given, str(device))
            return command(*given.args, **given.kwargs) or 0
    except CycloptsError as error:
        print(f"sparselab: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except SparselabError as error:
        print(f"sparselab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        left = "nothing half-written was left. With prune --stream, the same command goes on."
        print(f"sparselab: interrupted; {left}", file=sys.stderr)
        return 130


def _silence_unless_first():
    """Of several processes one speaks."""
    return redirect_stdout(io.StringIO()) if distributed.rank() else nullcontext()


def _set_device(given, device: str) -> None:
    """Of several processes each has its own device, whatever was given."""
    given.apply_defaults()
    for name, value in given.arguments.items():
        if name == "device":
            given.arguments[name] = device
        elif isinstance(value, ModelOptions):
            given.arguments[name] = replace(value, device=device)


def _whole(_, tokens) -> int:
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is not a whole number") from None


def _count(_, tokens) -> int:
    text = tokens[0].value
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{text!r} is not a whole number above 0")
    return int(text)


def _seeds(_, tokens) -> tuple[int, ...]:
    try:
        return tuple(map(int, tokens[0].value.split(",")))
    except ValueError:
        raise ValueError(f"{tokens[0].value!r}: write whole numbers such as 0,1,2") from None


def _names(_, tokens) -> tuple[str, ...]:
    return tuple(tokens[0].value.split(","))


Whole = Annotated[int, Parameter(converter=_whole)]
Count = Annotated[int, Parameter(converter=_count)]
Seeds = Annotated[tuple[int, ...], Parameter(converter=_seeds, n_tokens=1, metavar="0,1")]
Names = Annotated[tuple[str, ...], Parameter(converter=_names, n_tokens=1, metavar="A,B")]
ONE_OF_THEM = Parameter(group=Group(validator=MutuallyExclusive()))


@dataclass(frozen=True)
class ModelOptions:
    """A model, and the text on which its perplexity is measured."""

    model: str = "opt-mini"
    "The model: opt-mini, smollm2-135m, a folder or a Hub id."
    dtype: str | None = None
    "Type of the weights: float32, bfloat16 or float16. Default: float32 on a CPU."
    device: str | None = None
    "Where to compute: cpu or cuda. Default: cuda where there is one."
    seqlen: Count | None = None
    "Tokens in a window. Default: 2048, or the context if it is shorter."
    text: str = "demo"
    "Evaluation text: demo, wikitext2, ptb, c4 or a text file."
    windows: Count | None = None
    "Evaluate on N windows only, evenly spaced over the text. Default: all."

    def load(self):
        """The model and its tokenizer."""
        return sl.load(self.model, dtype=self.dtype, device=self.device)

    def structure(self):
        """The model without its weights, and its tokenizer: for one that is read block by block."""
        from .models.checkpoint import Checkpoint
        from .models.loading import tokenizer_of

        model = Checkpoint(self.model).skeleton(None)
        return model, tokenizer_of(model)

    def window(self, model) -> int:
        """Tokens in a window."""
        from .models.architecture import context_length

        return self.seqlen or min(2048, context_length(model))

    def perplexity(self, model, tokenizer, **place) -> str:
        """One line: which model, which text, what perplexity, and what the papers print for it
        where they do. `place`: of a model that is read from its files, see `_place`."""
        seqlen = self.window(model)
        ids = sl.tokens(tokenizer, self.text, windows=self.windows, seqlen=seqlen)
        result = sl.perplexity(self.model if place else model, ids, seqlen=seqlen, **place)
        known = sl.known_dense(self.model, self.text, seqlen)
        papers = f"; the papers print {known} for the dense model" if known else ""
        return f"{self.model} on {self.text}: perplexity {result!r}{papers}"


MODEL_OPTIONS = ModelOptions()


class ExperimentOptions(TypedDict, total=False):
    """What sweeps and figures share. What is not given is as in a sweep or a figure's profile."""

    model: str
    "The model: opt-mini, smollm2-135m, a folder or a Hub id. Default: opt-mini in a sweep."
    methods: Names
    "Methods, with commas between them; dsnot:magnitude is a variant. Default: all in a sweep."
    patterns: Annotated[Names, Parameter(name="--sparsities")]
    "Sparsities, with commas between them, such as 0.5,0.7,2:4. Default: eight in a sweep."
    seeds: Seeds
    "Calibration seeds, with commas between them. Default: 0 in a sweep."
    corpus: Annotated[str, Parameter(name="--calibration")]
    "Calibration text: demo, c4, wikitext2, ptb or a text file. Default: demo in a sweep."
    samples: Count
    "Calibration windows. Default: 64 in a sweep."
    seqlen: Count
    "Tokens in a window. Default: 256 in a sweep."
    texts: Names
    "Evaluation texts or text files, with commas between them. Default: demo in a sweep."
    windows: Count
    "Evaluation windows. Default: 64 in a sweep."
    spread: bool
    "Take them from all over each text. Default: the first ones, as in the recorded tables."


def prune(
    *,
    options: Annotated[ModelOptions, Parameter(name="*")] = MODEL_OPTIONS,
    method: str = "sparsegpt",
    sparsity: str = "0.5",
    calibration: str = "demo",
    samples: Count = 128,
    seed: Whole = 0,
    layers: str | None = None,
    out: Path | None = None,
    stream: bool = False,
    offload: str = "auto",
    dry_run: bool = False,
) -> None:
    """Prune a model and print its report; with --out, save it. A model in memory also gets its
    perplexity, before and after.

    Parameters
    ----------
    method
        Name of the method, such as sparsegpt, wanda, sparsellm or admm:guided, with its settings
        as in 'admm:targets=dense-stream;fisher=True'.
    sparsity
        A fraction of zeros such as 0.7, or n zeros in m inputs such as 2:4.
    calibration
        Calibration text: demo, c4, wikitext2, ptb or a text file.
    samples
        Calibration windows.
    seed
        Seed that draws the calibration windows.
    layers
        Blocks to prune: 0:12 for the first twelve, or 'first half'. Default: all.
    out
        Folder for the pruned model. It must not exist.
    stream
        Prune from files to --out, for a model larger than memory. The same command resumes it.
    offload
        Where activations wait: auto, device, cpu or disk.
    dry_run
        Prune one block, write nothing, and extrapolate the time.
    """
    from .methods.registry import named_method
    from .models.saving import check_room_for

    out = out and _writable(out)
    if out and os.path.lexists(out):
        raise SparselabError(f"{out} exists already. Choose another --out.")
    named_method(method, "OPT"), sl.Pattern.parse(sparsity)  # wrong ones before minutes pass
    call = {"method": method, "sparsity": sparsity, "layers": _layers(layers)}
    call |= {"offload": offload, "dry_run": dry_run}
    if stream:
        model, tokenizer = options.structure()
    else:
        model, tokenizer = options.load()
        _check_blocks(model, call["layers"], sparsity)
        if out:
            check_room_for(model, out)
    windows = sl.calibration(
        tokenizer, calibration, samples=samples, seqlen=options.window(model), seed=seed
    )
    if stream:
        place = {"out": out, "dtype": options.dtype, "device": options.device}
        print(sl.prune(options.model, windows, **place, **call))
    elif dry_run:
        print(sl.prune(model, windows, **call))
    else:
        print(f"dense: {options.perplexity(model, tokenizer)}")
        report = sl.prune(model, windows, **call)
        if out and distributed.rank() == 0:
            sl.save(model, report, out)
        distributed.barrier()
        print(report)
        if out:
            print(f"saved in {out}")
        print(f"pruned: {options.perplexity(model, tokenizer)}")


def _layers(text: str | None) -> range | str | None:
    if text is None or text == "first half":
        return text
    try:
        first, last = map(int, text.split(":"))
        if not 0 <= first < last:
            raise ValueError
    except ValueError:
        raise SparselabError(
            f"--layers {text!r}: write FIRST:END, such as 0:12 for the blocks 0 to 11, or 'first"
            " half'."
        ) from None
    return range(first, last)


def _check_blocks(model, layers: range | str | None, sparsity: str) -> None:
    """What only the model can tell of the options, before its dense perplexity is measured."""
    count = len(sl.blocks_of(model))
    if isinstance(layers, range) and layers.stop > count:
        raise SparselabError(
            f"--layers {layers.start}:{layers.stop}: the blocks are 0 to {count - 1}."
        )
    for name, linear in sl.linears_of(model).items():
        sl.Pattern.parse(sparsity).check_width(linear.in_features, name)


def plan(
    *,
    model: str = "opt-mini",
    method: str = "sparsegpt",
    samples: Count = 128,
    seqlen: Count = 2048,
    device: str | None = None,
) -> None:
    """Tell the memory and the minutes of a pruning, before anything is loaded.

    Parameters
    ----------
    model
        The model: opt-mini, smollm2-135m, a folder or a Hub id.
    method
        Name of the method, such as sparsegpt, wanda, sparsellm or admm:guided, with its settings
        as in 'admm:targets=dense-stream;fisher=True'.
    samples
        Calibration windows.
    seqlen
        Tokens in a window.
    device
        Where to compute: cpu or cuda. Default: cuda where there is one.
    """
    print(sl.plan(model, method, samples, seqlen, device))


def evaluate(
    *,
    options: Annotated[ModelOptions, Parameter(name="*")] = MODEL_OPTIONS,
    stream: bool = False,
    offload: str = "auto",
) -> None:
    """Measure the perplexity of a model.

    Parameters
    ----------
    stream
        Read the blocks from files one by one, for a model larger than memory.
    offload
        Where activations wait in a streamed run: auto, device, cpu or disk.
    """
    place = _place(stream, offload, options.dtype, options.device)
    loaded = options.structure() if stream else options.load()
    print(options.perplexity(*loaded, **place))


def _place(stream: bool, offload: str, dtype: str | None, device: str | None) -> dict:
    """How a model in files is scored, as sl.perplexity and sl.zeroshot take it; nothing for a model
    in memory."""
    if stream:
        return {"offload": offload, "dtype": dtype, "device": device}
    if offload != "auto":
        raise SparselabError(
            f"--offload {offload} belongs to --stream: in a model in memory no activations wait."
        )
    return {}


def zeroshot(
    model: str = "opt-mini",
    /,
    *,
    tasks: Names | None = None,
    limit: Count | None = None,
    folder: Path | None = None,
    harness: bool = False,
    dtype: str | None = None,
    device: str | None = None,
    stream: bool = False,
    offload: str = "auto",
) -> None:
    """Measure zero-shot accuracy, as lm-evaluation-harness defines it.

    Parameters
    ----------
    model
        The model: opt-mini, smollm2-135m, a folder or a Hub id.
    tasks
        Tasks, with commas between them. Default: all nine.
    limit
        Take the first so many items of each task. Default: all.
    folder
        Folder with the files of the tasks. Default: zeroshot/ in SPARSELAB_DATA.
    harness
        Let an installed lm-eval do it, with data from the Hub.
    dtype
        Type of the weights: float32, bfloat16 or float16. Default: float32 on a CPU.
    device
        Where to compute: cpu or cuda. Default: cuda where there is one.
    stream
        Read the blocks from files one by one, once a task, for a model larger than memory.
    offload
        Where activations wait in a streamed run: auto, device, cpu or disk.
    """
    from .evaluation.tasks import TASKS

    place = _place(stream, offload, dtype, device)
    loaded = (model, None) if stream else sl.load(model, dtype=dtype, device=device)
    call = {"limit": limit, "folder": folder, "harness": harness, **place}
    table = sl.zeroshot(*loaded, tasks or tuple(TASKS), **call)
    print(table.round(4).to_string(index=False, na_rep=""))


def sweep(*, out: Path = Path("build/sweep.csv"), **options: Unpack[ExperimentOptions]) -> None:
    """Prune by many methods and patterns, into a table that can be resumed.

    Parameters
    ----------
    out
        The table, a CSV file. Rows that are there are not made again.
    """
    from .experiments.sweep import BEYOND, METHODS, PATTERNS, Sweep
    from .experiments.tables import claims

    out = _writable(out)
    if out.is_dir():
        raise SparselabError(f"{out} is a folder. Name a CSV file with --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    methods = options.pop("methods", METHODS + BEYOND)
    patterns = options.pop("patterns", PATTERNS)
    seeds = options.pop("seeds", (0,))
    table = Sweep(**options).run(out, methods, patterns, seeds)
    if "sparsegpt" in set(table.method):
        print("excess log-perplexity over dense, as a share of SparseGPT's:")
        print(claims(table).round(3).to_string())
    print(f"table in {out}")


def figure(
    name: str = "",
    /,
    *,
    list: bool = False,
    page: bool = False,
    profile: str | None = None,
    layers: str | None = None,
    epochs: Count | None = None,
    block: Whole | None = None,
    tables: Path | None = None,
    out: Path = Path("build/figures"),
    formats: Names = ("png",),
    **options: Unpack[ExperimentOptions],
) -> None:
    """Make one of the papers' figures or tables: its rows, which can be resumed, and its picture.

    Parameters
    ----------
    name
        An entry of --list, such as sparsellm-table-1; or what entries share: sparsity, convergence,
        weights, costs, zeroshot, samples, damp, block-size, alpha-beta, epochs, order, threshold,
        cycles, criteria, starts.
    list
        Print all entries, and what was done of each; make none.
    page
        Draw all that is recorded into one page, index.html in --out; make none.
    profile
        Source of all options that are not given: mini (opt-mini), small (smollm2-135m) or paper.
        Default: an entry's first, else mini.
    layers
        Blocks to prune: 'first half' as in SparseLLM's tables. Default: all.
    epochs
        Epochs of SparseLLM's loop. Default: the profile's.
    block
        The block of the figure convergence. Default: the paper's.
    tables
        Folder of the tables. Default: bench/figures of a checkout, else ./sparselab-figures.
    out
        Folder of the pictures.
    formats
        Of the picture, with commas between them: png, svg, pdf.
    """
    from .experiments import catalogue, figures
    from .runtime.files import figure_tables

    if list:
        print(catalogue.listing(tables))
        return
    if page:
        _writable(out / "index.html")
        print(f"page in {catalogue.write_page(out, tables)}")
        return
    if not name:
        raise SparselabError("name a figure, or see them all with --list.")
    own = {"layers": layers, "epochs": epochs, "block": block}
    changes = options | {key: value for key, value in own.items() if value is not None}
    folder = tables or figure_tables()
    _writable(folder / "a table")
    _, chosen = figures.named_figure(name, profile, **changes)
    picture = _writable(out / f"{name}-{Path(chosen.model).name}.png")
    _, drawing, alt = figures.figure(name, profile=profile, folder=tables, **changes)
    files = sl.viz.save(drawing, picture.with_suffix(""), formats)
    print(f"{alt}\ntable in {folder}, picture in {', '.join(map(str, files))}")


def demo(
    *,
    out: Path = Path("build/demo"),
    readme: Annotated[Path | None, ONE_OF_THEM] = None,
    quick: Annotated[bool, ONE_OF_THEM] = False,
) -> None:
    """Prune the embedded models by six methods; make a table and a figure.

    Parameters
    ----------
    out
        Folder of the table and the figure.
    readme
        Put the table between the markers of this file too.
    quick
        Take opt-mini only and an eighth of the windows: half a minute, and larger errors.
    """
    from .experiments import comparison

    _writable(out / comparison.TABLE_FILE)
    comparison.demo(out, readme, quick=quick)


def students(*, out: Path = Path("build/students"), notebooks: Path | None = None) -> None:
    """Write the students' edition of the notebooks, without solutions and results.

    A copy that is there already and was worked in stays as it is.

    Parameters
    ----------
    out
        Folder for the students' edition.
    notebooks
        Folder of the notebooks. Default: that of the checkout.
    """
    from .course.student import write_student_editions
    from .runtime.files import of_checkout

    folder = notebooks or of_checkout("notebooks", "the students' edition")
    files = sorted(folder.expanduser().glob("*.ipynb"))
    if not files:
        raise SparselabError(
            f"{folder} holds no notebook. Name the folder of the course with --notebooks."
        )
    _writable(out / files[0].name)
    print(write_student_editions(files, out))


def tables(*, folder: Path = Path("bench"), page: Path | None = None) -> None:
    """Write the results of recorded sweeps into tables.md in their folder.

    Parameters
    ----------
    folder
        Folder of the sweeps' CSV files.
    page
        Put the main tables between the markers of this file too.
    """
    from .experiments.tables import insert, written

    text = written(folder)
    if not text:
        raise SparselabError(
            f"{folder} holds no table of a sweep. Name the folder of the CSV files with --folder."
        )
    (folder / "tables.md").write_text(text + "\n", encoding="utf8")
    if page:
        insert(page, written(folder, texts=1), "tables")
    print(text)


def verdicts(*, page: Path | None = None) -> None:
    """Say what of the papers' claims held here, by the recorded rows.

    Parameters
    ----------
    page
        Put them between the markers of this file too.
    """
    from .experiments.tables import insert
    from .experiments.verdicts import table_of, verdicts_of

    found = verdicts_of()
    if page:
        insert(page, table_of(found), "verdicts")
    print(table_of(found))


def fetch() -> None:
    """Bring the demo texts and smollm2-135m into the cache.

    The cache is the folder that SPARSELAB_CACHE names. Else it is
    data/cache of a checkout, else the user's cache folder.
    """
    from .data.demo_corpus import fetch_demo
    from .models.embedded import smollm2_folder

    print(f"demo texts in {fetch_demo()}")
    print(f"smollm2-135m in {smollm2_folder()}")


def books(*, out: Path) -> None:
    """Download the books that opt-mini has read and those held out.

    The sweeps behind the README's tables need them.

    Parameters
    ----------
    out
        The folder that SPARSELAB_DATA will name.
    """
    from .data.books import write_books

    for file in write_books(out):
        print(file)
    print(
        "The same books from the same sources as those of the README's tables, but not the same"
        " bytes: their cleaning was another, which 2 in 100 paragraphs show."
    )


def doctor() -> int:
    """Say what is at hand, what is missing, and what to do."""
    from . import doctor

    return 0 if doctor.doctor() else 1


def _writable(path: Path) -> Path:
    """A path at which a file or folder can be made; what is wrong with it is said before hours
    pass."""
    path = path.expanduser()
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise SparselabError(
            f"{path} cannot be written: {parent} is not a folder that you may write to. Choose"
            " another."
        )
    return path


def _shown(default) -> str | None:
    """A default in the help; nothing for what is off, or found out later."""
    return None if default is None or default is False else str(default)


BLANK = Box("    \n" * 8)  # no frames around the help
app = App(
    name="python -m sparselab",
    help="Prune large language models, and measure them. COMMAND --help tells more.",
    help_format="plaintext",
    help_formatter=DefaultFormatter(panel_spec=PanelSpec(box=BLANK, padding=(0, 3))),
    console=Console(color_system=None),
    version_flags=(),
    default_parameter=Parameter(negative=(), allow_repeating=True, show_default=_shown),
)
COMMANDS = (
    prune,
    plan,
    evaluate,
    zeroshot,
    sweep,
    figure,
    demo,
    students,
    tables,
    verdicts,
    fetch,
    books,
)
for place, command in enumerate((*COMMANDS, doctor)):
    app.command(command, sort_key=place)


if __name__ == "__main__":
    sys.exit(main())
