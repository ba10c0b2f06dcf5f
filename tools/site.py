"""The course as a site that needs no network: python -m tools.site [--out FOLDER]

Sphinx builds it, with MyST for the notebooks (they come executed; nothing is run), a theme that
folds inputs and knows light and dark, and MathJax from a package. This file lays out the pages:
lessons in parts, documents, and for each figure the description that its notebook holds.
"""

import argparse
import re
import shutil
from pathlib import Path

import nbformat

from sparselab.course.drawings import MAP

from . import ROOT, build_pages, lessons

SETTINGS = ROOT / "docs" / "site"
PAGES = {  # what is not a lesson: file, and its name on the site
    "notebooks/README.md": "verdicts.md",
    "docs/methods.md": "methods.md",
    "docs/results.md": "results.md",
    "docs/evaluation.md": "evaluation.md",
    "docs/large-models.md": "large-models.md",
    "docs/teaching.md": "teaching.md",
    "docs/architecture.md": "architecture.md",
    "docs/several-gpus.md": "several-gpus.md",
}


def main(arguments: list[str] | None = None) -> None:
    """Lay out and build."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site")
    args = parser.parse_args(arguments)
    source = args.out.parent / f"{args.out.name}-source"
    lay_out(source)
    build_pages("html", source, args.out)
    print(f"The site: {args.out / 'index.html'}")


def lay_out(source: Path) -> None:
    """All pages in one folder, made anew.

    Parameters
    ----------
    source : Path
        The folder; what it held is removed.
    """
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(SETTINGS, source)
    for lesson in lessons():
        notebook = nbformat.read(lesson, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = apart(linked(cell.source, lesson))
        nbformat.write(described(notebook), source / lesson.name)
    for page, name in PAGES.items():
        text = (ROOT / page).read_text(encoding="utf8")
        (source / name).write_text(linked(text, ROOT / page), encoding="utf8")
    index = source / "index.md"
    trees = "\n".join([*_trees(), _tree("Beside the course", [*PAGES.values()])])
    index.write_text(f"{index.read_text(encoding='utf8')}\n{trees}", encoding="utf8")


def described(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same notebook, with each figure's description where MyST looks for it: in the metadata of
    its cell, not of its output."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        words = [
            about["alt"]
            for output in cell.outputs
            if output.output_type in ("display_data", "execute_result")
            for about in output.metadata.values()
            if isinstance(about, dict) and about.get("alt")
        ]
        if words:
            cell.metadata["mystnb"] = {"image": {"alt": " ".join(words)}}
    return notebook


def apart(text: str) -> str:
    """Folded text that shares its line with the tags gets lines of its own: MyST reads a formula
    only outside of a line of HTML."""
    line = r"^([ \t]*)(<details><summary>.*?</summary>)[ \t]*(\S.*?)[ \t]*(</details>)[ \t]*$"
    return re.sub(line, r"\1\2\n\n\1\3\n\n\1\4", text, flags=re.MULTILINE)


def linked(text: str, page: Path) -> str:
    """A page with its links to files of the project led to the pages of the site; where the site
    has none, the words stay."""
    names = {lesson: lesson.name for lesson in lessons()}
    names |= {ROOT / file: name for file, name in PAGES.items()}

    def mend(link: re.Match) -> str:
        words, target = link.groups()
        if target.startswith(("http:", "https:", "#")):
            return link.group()
        name = names.get((page.parent / target.partition("#")[0]).resolve())
        return f"[{words}]({name})" if name else words

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", mend, text)


def _trees() -> list[str]:
    """The lessons by the stages of the course's map."""
    found = []
    for stage, (motto, titles) in MAP.items():
        numbers = {title[:2] for title in titles}
        names = [lesson.name for lesson in lessons() if lesson.name[:2] in numbers]
        found.append(_tree(f"{stage}: {motto}", names))
    return found


def _tree(caption: str, names: list[str]) -> str:
    pages = "\n".join(name.rpartition(".")[0] for name in names)
    return f"```{{toctree}}\n:maxdepth: 1\n:caption: {caption}\n\n{pages}\n```\n"


if __name__ == "__main__":
    main()
