"""A deck of slides for each lesson: python -m tools.slides [--out FOLDER]

From the executed notebook: its aims, a slide for each section that has a picture (a schematic,
where there is one), and its summary; at most 15. sphinx-revealjs builds them with its own copy of
reveal.js, so that a lecture room needs no network.
"""

import argparse
import base64
import re
import shutil
from pathlib import Path

import nbformat

from . import ROOT, build_pages, lessons

MOST = 15
LEFT_OUT = ("Going further", "Questions", "References", "Summary", "Exercise")

SETTINGS = """project = "sparselab"
extensions = ["myst_parser", "sphinx_revealjs", "sphinx-mathjax-offline"]
myst_enable_extensions = ["dollarmath", "amsmath"]
revealjs_style_theme = "white"
revealjs_static_path = ["."]
revealjs_css_files = ["slides.css"]
revealjs_script_conf = {"hash": True, "slideNumber": "c/t", "center": False, "margin": 0.06}
html_show_copyright = False
suppress_warnings = ["toc.not_included", "myst.header", "myst.xref_missing"]
"""

STYLE = """.reveal { font-size: 26px; }
.reveal h1 { font-size: 1.7em; text-transform: none; text-align: left; }
.reveal h2 { font-size: 1.4em; text-transform: none; text-align: left; }
.reveal p, .reveal ul, .reveal table { text-align: left; display: block; }
.reveal img { max-height: 420px; max-width: 100%; margin: 0.3em auto; display: block; }
.reveal blockquote { width: 100%; font-size: 0.75em; box-shadow: none; font-style: normal; }
"""


def main(arguments: list[str] | None = None) -> None:
    """Lay the decks out, and build them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "slides")
    args = parser.parse_args(arguments)
    source = args.out.parent / f"{args.out.name}-source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    (source / "conf.py").write_text(SETTINGS, encoding="utf8")
    (source / "slides.css").write_text(STYLE, encoding="utf8")
    decks = [write_deck(lesson, source) for lesson in lessons()]
    links = "\n".join(f"- [{title}]({name}.md)" for name, title in decks)
    (source / "index.md").write_text(f"# Slides\n\n{links}\n", encoding="utf8")
    build_pages("revealjs", source, args.out)
    print(f"{len(decks)} decks: {args.out / 'index.html'}")


def write_deck(lesson: Path, folder: Path) -> tuple[str, str]:
    """One lesson's deck in Markdown, its pictures beside it; its name and title."""
    slides = deck(nbformat.read(lesson, as_version=4))
    title = slides[0]["title"]
    parts = [f"# {title}\n\n{slides[0]['text']}"]
    for number, slide in enumerate(slides[1:], 1):
        parts.append(f"## {slide['title']}\n\n{slide['text']}")
        if slide["picture"]:
            name = f"{lesson.stem}-{number}.png"
            (folder / name).write_bytes(base64.b64decode(slide["picture"]))
            alt = re.sub(r"[\[\]\n]", " ", slide["alt"])
            parts.append(f"![{alt}]({name})\n\n> {slide['alt']}")
    (folder / f"{lesson.stem}.md").write_text("\n\n".join(parts) + "\n", encoding="utf8")
    return lesson.stem, title


def deck(notebook: nbformat.NotebookNode) -> list[dict[str, str]]:
    """The slides of a notebook: title, text, picture (PNG, base64) and its description.

    Returns
    -------
    list of dict
        Aims first, then the sections with a picture in their order, the summary last; at most
        `MOST`.
    """
    sections = _sections(notebook)
    first = sections[0]
    aims = re.search(
        r"\*\*You will be able to\*\*\n(.*?)(?:\n\n\*\*|\Z)", first["words"], re.DOTALL
    )
    slides = [_slide(first["title"], aims[1].strip() if aims else "")]
    for section in sections[1:]:
        if section["pictures"] and not section["title"].startswith(LEFT_OUT):
            _, picture, alt = min(section["pictures"], key=lambda found: not found[0])
            slides.append(_slide(section["title"], _equation(section["words"]), picture, alt))
    end = [_slide("Summary", s["words"]) for s in sections if s["title"] == "Summary"]
    return slides[: MOST - len(end)] + end


def _sections(notebook: nbformat.NotebookNode) -> list[dict]:
    """Title, words, and pictures (is it a schematic, PNG, description) of each section."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for part in re.split(r"^(?=#{1,3} )", cell.source, flags=re.MULTILINE):
                heading = re.match(r"#{1,3} (.*)\n?", part)
                if heading:
                    found.append({"title": heading[1], "words": "", "pictures": []})
                    part = part[heading.end() :]
                if part.strip():  # before a first heading stands nothing
                    found[-1]["words"] += part.strip() + "\n\n"
            continue
        schematic = "schematic" in cell.metadata.get("tags", [])
        for output in cell.outputs:
            if picture := output.get("data", {}).get("image/png"):
                alt = output.metadata.get("image/png", {}).get("alt", "")
                found[-1]["pictures"].append((schematic, picture, alt))
    for section in found:
        section["words"] = section["words"].strip()
    return found


def _slide(title: str, text: str, picture: str = "", alt: str = "") -> dict[str, str]:
    return {"title": title, "text": text, "picture": picture, "alt": alt}


def _equation(words: str) -> str:
    """The first displayed formula of a section; '' without one."""
    found = re.search(r"\$\$.*?\$\$", words, re.DOTALL)
    return found[0] if found else ""


if __name__ == "__main__":
    main()
