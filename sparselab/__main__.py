"""The same from a shell: python -m sparselab prune | plan | evaluate | zeroshot | sweep | figure |
demo | fetch | doctor."""

import argparse
import io
import os
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from .errors import SparselabError
from .runtime import distributed


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors meant for the user are one sentence on stderr and exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        with distributed.group() as device, _silence_unless_first():
            if device is not None and hasattr(options, "device"):
                options.device = str(device)
            return options.run(options) or 0
    except SparselabError as error:
        print(f"sparselab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "sparselab: interrupted; nothing half-written was left. With --stream, the same command"
            " goes on.",
            file=sys.stderr,
        )
        return 130


def _silence_unless_first():
    """Of several processes one speaks."""
    return redirect_stdout(io.StringIO()) if distributed.rank() else nullcontext()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sparselab", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    prune = _command(
        commands, "prune", _prune, "prune a model, print its report and perplexity, and save it"
    )
    _model_options(prune)
    prune.add_argument(
        "--method", default="sparsegpt", help="such as wanda or sparsellm; default: sparsegpt"
    )
    prune.add_argument(
        "--sparsity",
        default="0.5",
        help="a fraction such as 0.7, or n zeros in m inputs such as 2:4",
    )
    prune.add_argument(
        "--calibration",
        default="demo",
        metavar="TEXT",
        help="demo, c4, wikitext2, ptb or a text file",
    )
    prune.add_argument("--samples", type=_count, default=128, help="calibration windows (128)")
    prune.add_argument("--seed", type=int, default=0)
    prune.add_argument(
        "--layers", help="blocks to prune: 0:12 for the first twelve, or 'first half'"
    )
    prune.add_argument("--out", type=Path, help="folder for the pruned model; it must not exist")
    prune.add_argument(
        "--stream",
        action="store_true",
        help=(
            "block by block from the model's files to --out: for models "
            "larger than memory; killed, the same command goes on"
        ),
    )
    prune.add_argument(
        "--offload", default="auto", help="where activations wait: auto, device, cpu or disk"
    )
    prune.add_argument(
        "--dry-run",
        action="store_true",
        help="prune one block, write nothing, extrapolate the time",
    )

    plan = _command(
        commands, "plan", _plan, "memory by term and minutes, before anything is loaded"
    )
    plan.add_argument(
        "--model", default="opt-mini", help="opt-mini, smollm2-135m, a folder or a Hub id"
    )
    plan.add_argument("--method", default="sparsegpt")
    plan.add_argument("--samples", type=_count, default=128)
    plan.add_argument("--seqlen", type=_count, default=2048)
    plan.add_argument("--device", help="cpu or cuda")

    _measuring(commands)
    _figure_command(commands)

    demo = _command(
        commands, "demo", _demo, "prune the embedded models by three methods; table and figure"
    )
    demo.add_argument("--out", type=Path, default=Path("build/demo"))
    only = demo.add_mutually_exclusive_group()
    only.add_argument(
        "--readme", type=Path, help="put the table between the markers of this file too"
    )
    only.add_argument(
        "--quick",
        action="store_true",
        help="opt-mini only and an eighth of the windows: half a minute, and larger errors",
    )
    students = _command(
        commands,
        "students",
        _students,
        "write the students' edition of the notebooks: no solutions",
    )
    students.add_argument("--out", type=Path, default=Path("build/students"))
    students.add_argument(
        "--notebooks", type=Path, help="their folder; default: that of the checkout"
    )
    tables = _command(
        commands, "tables", _tables, "the results of recorded sweeps as tables.md in their folder"
    )
    tables.add_argument(
        "--folder", type=Path, default=Path("bench"), help="where the sweeps' CSV files are"
    )
    tables.add_argument(
        "--readme", type=Path, help="put the main ones between the markers of this file too"
    )
    _command(
        commands,
        "fetch",
        _fetch,
        "bring the demo texts and smollm2-135m into the cache: the folder that "
        "SPARSELAB_CACHE names, else data/cache of a checkout, else the user's cache folder",
    )
    books = _command(
        commands,
        "books",
        _books,
        "download the books that opt-mini has read and those held out, for the "
        "sweeps behind the README's tables",
    )
    books.add_argument(
        "--out", type=Path, required=True, help="the folder that SPARSELAB_DATA will name"
    )
    _command(commands, "doctor", _doctor, "what is at hand, what is missing, what to do")
    return parser


def _measuring(commands) -> None:
    """What measures models: perplexity, zero-shot tasks, many prunings."""
    evaluate = _command(commands, "evaluate", _evaluate, "measure the perplexity of a model")
    _model_options(evaluate)

    zeroshot = _command(
        commands,
        "zeroshot",
        _zeroshot,
        "zero-shot accuracy, by the definition of lm-evaluation-harness",
    )
    zeroshot.add_argument(
        "model", nargs="?", default="opt-mini", help="opt-mini, smollm2-135m, a folder or a Hub id"
    )
    zeroshot.add_argument("--tasks", help="comma-separated; default: all nine")
    zeroshot.add_argument("--limit", type=_count, help="the first so many items of each task")
    zeroshot.add_argument(
        "--folder",
        type=Path,
        help="where the tasks' files are; default: zeroshot/ in SPARSELAB_DATA",
    )
    zeroshot.add_argument(
        "--harness",
        action="store_true",
        help="let an installed lm-eval do it, with data from the Hub",
    )
    zeroshot.add_argument("--dtype", help="float32, bfloat16 or float16")
    zeroshot.add_argument("--device", help="cpu or cuda")

    sweep = _command(
        commands, "sweep", _sweep, "prune by many methods and patterns; a resumable table as CSV"
    )
    sweep.add_argument("--model", default="opt-mini")
    sweep.add_argument(
        "--methods",
        help="comma-separated; dsnot:magnitude, sparsellm:published are variants; default: all",
    )
    sweep.add_argument(
        "--sparsities", help="comma-separated, such as 0.5,0.7,2:4; default: eight of them"
    )
    sweep.add_argument(
        "--seeds", type=_numbers, default="0", help="comma-separated calibration seeds"
    )
    sweep.add_argument("--calibration", default="demo", metavar="TEXT")
    sweep.add_argument("--samples", type=_count, default=64)
    sweep.add_argument("--seqlen", type=_count, default=256)
    sweep.add_argument(
        "--texts", default="demo", help="comma-separated evaluation texts or text files"
    )
    sweep.add_argument("--windows", type=_count, default=64)
    sweep.add_argument("--out", type=Path, default=Path("build/sweep.csv"))


def _figure_command(commands) -> None:
    figure = _command(
        commands,
        "figure",
        _figure,
        "one of the papers' figures: its table as CSV, resumed, and its picture",
    )
    figure.add_argument(
        "name",
        help=(
            "sparsity, convergence, weights, costs; samples, damp, block-size, alpha-beta, epochs, "
            "order"
        ),
    )
    figure.add_argument("--model", help="default: the profile's")
    figure.add_argument(
        "--profile",
        default="mini",
        help="mini (opt-mini), small (smollm2-135m) or paper (its protocol)",
    )
    figure.add_argument("--layers", help="'first half' as in SparseLLM's tables; default: all")
    figure.add_argument(
        "--calibration",
        dest="corpus",
        metavar="TEXT",
        help="demo, c4, wikitext2, ptb or a text file",
    )
    figure.add_argument("--texts", help="comma-separated evaluation texts or text files")
    figure.add_argument("--methods", help="comma-separated, of the figures over methods")
    figure.add_argument(
        "--sparsities", dest="patterns", help="comma-separated, of the figure sparsity"
    )
    figure.add_argument("--seeds", type=_numbers, help="comma-separated calibration seeds")
    for name, text in (
        ("samples", "calibration windows"),
        ("seqlen", "tokens in a window"),
        ("windows", "evaluation windows"),
        ("epochs", "of SparseLLM's loop"),
    ):
        figure.add_argument(f"--{name}", type=_count, help=text)
    figure.add_argument("--block", type=int, help="of convergence")
    figure.add_argument(
        "--tables",
        type=Path,
        help=(
            "folder of the tables; default: bench/figures of a checkout, else "
            "./sparselab-figures, where those that ship are copied first"
        ),
    )
    figure.add_argument(
        "--out", type=Path, default=Path("build/figures"), help="folder of the pictures"
    )


def _command(commands, name: str, run, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command


def _model_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", default="opt-mini", help="opt-mini, smollm2-135m, a folder or a Hub id"
    )
    command.add_argument("--dtype", help="float32, bfloat16 or float16")
    command.add_argument("--device", help="cpu or cuda")
    command.add_argument(
        "--seqlen", type=_count, help="tokens in a window; default: 2048, or the context if shorter"
    )
    command.add_argument(
        "--text", default="demo", help="evaluation text: demo, wikitext2, ptb, c4 or a text file"
    )
    command.add_argument(
        "--windows", type=_count, help="evaluate on the first so many windows only"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write whole numbers such as 0,1,2") from None


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


def _load(options):
    from .models.architecture import context_length
    from .models.loading import load

    model, tokenizer = load(options.model, dtype=options.dtype, device=options.device)
    options.seqlen = options.seqlen or min(2048, context_length(model))
    return model, tokenizer


def _perplexity(options, model, tokenizer) -> str:
    """One line: which model, which text, what perplexity, and what the papers print for it where
    they do."""
    from .data.calibration import tokens
    from .evaluation.perplexity import perplexity
    from .evaluation.published import known_dense

    ids = tokens(tokenizer, options.text)
    result = perplexity(
        model,
        ids[: options.windows * options.seqlen] if options.windows else ids,
        seqlen=options.seqlen,
    )
    known = known_dense(options.model, options.text, options.seqlen)
    papers = f"; the papers print {known} for the dense model" if known else ""
    return f"{options.model} on {options.text}: perplexity {result!r}{papers}"


def _prune(options) -> None:
    from .engine.pruning import prune
    from .methods.registry import find_method
    from .models.saving import save
    from .patterns import Pattern

    options.out = options.out and _writable(options.out)
    if options.out and options.out.exists():
        raise SparselabError(f"{options.out} exists already. Choose another --out.")
    (
        find_method(options.method),
        Pattern.parse(options.sparsity),
    )  # say what is wrong before minutes pass
    call = {
        "method": options.method,
        "sparsity": options.sparsity,
        "layers": _layers(options.layers),
        "offload": options.offload,
        "dry_run": options.dry_run,
    }
    if options.stream:
        print(
            prune(
                options.model,
                _windows(options),
                out=options.out,
                dtype=options.dtype,
                device=options.device,
                **call,
            )
        )
        return
    model, tokenizer = _load(options)
    _check_blocks(model, call["layers"], options.sparsity)
    windows = _windows(options, model, tokenizer)
    if options.dry_run:
        print(prune(model, windows, **call))
        return
    print(f"dense: {_perplexity(options, model, tokenizer)}")
    report = prune(model, windows, **call)
    print(report)
    print(f"pruned: {_perplexity(options, model, tokenizer)}")
    if options.out:
        if distributed.rank() == 0:
            save(model, report, options.out)
        distributed.barrier()
        print(f"saved in {options.out}")


def _check_blocks(model, layers: range | str | None, sparsity: str) -> None:
    """What only the model can tell of the options, before its dense perplexity is measured."""
    from .models.architecture import blocks_of, linears_of
    from .patterns import Pattern

    count = len(blocks_of(model))
    if isinstance(layers, range) and layers.stop > count:
        raise SparselabError(
            f"--layers {layers.start}:{layers.stop}: the blocks are 0 to {count - 1}."
        )
    for name, linear in linears_of(model).items():
        Pattern.parse(sparsity).check_width(linear.in_features, name)


def _windows(options, model=None, tokenizer=None):
    """Calibration windows; for a model in files from its tokenizer and configuration alone."""
    from .data.calibration import calibration
    from .models.architecture import context_length
    from .models.checkpoint import Checkpoint
    from .models.loading import tokenizer_of

    if model is None:
        model = Checkpoint(options.model).skeleton(None)
        tokenizer = tokenizer_of(model)
    seqlen = options.seqlen or min(2048, context_length(model))
    return calibration(
        tokenizer, options.calibration, samples=options.samples, seqlen=seqlen, seed=options.seed
    )


def _plan(options) -> None:
    from .engine.planning import plan

    print(plan(options.model, options.method, options.samples, options.seqlen, options.device))


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


def _evaluate(options) -> None:
    print(_perplexity(options, *_load(options)))


def _zeroshot(options) -> None:
    from .evaluation.zeroshot import TASKS, zeroshot
    from .models.loading import load

    tasks = options.tasks.split(",") if options.tasks else list(TASKS)
    table = zeroshot(
        *load(options.model, dtype=options.dtype, device=options.device),
        tasks,
        limit=options.limit,
        folder=options.folder,
        harness=options.harness,
    )
    print(table.round(4).to_string(index=False, na_rep=""))


def _sweep(options) -> None:
    from .experiments.sweep import METHODS, PATTERNS, Sweep
    from .experiments.tables import claims

    sweep = Sweep(
        options.model,
        options.calibration,
        options.samples,
        options.seqlen,
        tuple(options.texts.split(",")),
        options.windows,
    )
    options.out = _writable(options.out)
    if options.out.is_dir():
        raise SparselabError(f"{options.out} is a folder. Name a CSV file with --out.")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    methods, patterns = (
        given.split(",") if given else known
        for given, known in ((options.methods, METHODS), (options.sparsities, PATTERNS))
    )
    table = sweep.run(options.out, methods, patterns, options.seeds)
    if "sparsegpt" in set(table.method):
        print("excess log-perplexity over dense, as a share of SparseGPT's:")
        print(claims(table).round(3).to_string())
    print(f"table in {options.out}")


def _figure(options) -> None:
    from .experiments.figures import figure
    from .runtime.files import figure_tables

    names = (
        "model",
        "layers",
        "corpus",
        "samples",
        "seqlen",
        "windows",
        "epochs",
        "block",
        "seeds",
    )
    changes = {name: getattr(options, name) for name in names}
    for name in ("texts", "methods", "patterns"):
        given = getattr(options, name)
        changes[name] = given and tuple(given.split(","))
    folder = options.tables or figure_tables()
    _writable(folder / "a table")
    picture = _writable(
        options.out / f"{options.name}-{Path(options.model or options.profile).name}.png"
    )
    _, drawing, alt = figure(
        options.name,
        profile=options.profile,
        folder=options.tables,
        **{name: value for name, value in changes.items() if value is not None},
    )
    picture.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(picture, dpi=150)
    print(f"{alt}\ntable in {folder}, picture in {picture}")


def _demo(options) -> None:
    from .experiments.comparison import TABLE_FILE, demo

    _writable(options.out / TABLE_FILE)
    demo(options.out, options.readme, quick=options.quick)


def _students(options) -> None:
    from .course.student import write_student_edition
    from .runtime.files import of_checkout

    folder = options.notebooks or of_checkout("notebooks", "the students' edition")
    files = sorted(folder.expanduser().glob("*.ipynb"))
    if not files:
        raise SparselabError(
            f"{folder} holds no notebook. Name the folder of the course with --notebooks."
        )
    _writable(options.out / files[0].name)
    for file in files:
        print(write_student_edition(file, options.out))


def _tables(options) -> None:
    from .experiments.tables import insert, page

    text = page(options.folder)
    if not text:
        raise SparselabError(
            f"{options.folder} holds no table of a sweep. Name the folder of the CSV files with"
            " --folder."
        )
    (options.folder / "tables.md").write_text(text + "\n", encoding="utf8")
    if options.readme:
        insert(options.readme, page(options.folder, texts=1), "tables")
    print(text)


def _books(options) -> None:
    from .data.books import write_books

    for file in write_books(options.out):
        print(file)
    print(
        "The same books from the same sources as those of the README's tables, but not the same"
        " bytes: their cleaning was another, which 2 in 100 paragraphs show."
    )


def _fetch(options) -> None:
    from .data.demo_corpus import fetch_demo
    from .models.embedded import smollm2_folder

    print(f"demo texts in {fetch_demo()}")
    print(f"smollm2-135m in {smollm2_folder()}")


def _doctor(options) -> int:
    from .doctor import doctor

    return 0 if doctor() else 1


if __name__ == "__main__":
    sys.exit(main())
