"""The course as a site: built once, and read page by page as a browser without network would."""

import re
from html import unescape
from urllib.parse import unquote

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import BROWSER, ROOT
from playwright.sync_api import sync_playwright

from tools import lessons, site

LESSONS = [path.stem for path in lessons()]
OTHERS = ["index", *(name.removesuffix(".md") for name in site.PAGES.values())]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Its folder. Sphinx's warnings, such as a link that leads nowhere, are errors."""
    out = tmp_path_factory.mktemp("site") / "site"
    site.main(["--out", str(out)])
    return out


def test_every_page_is_as_it_should_be(pages):
    """One test, for the site is built once in each process that tests it."""
    faults = [
        f"{name}: {fault}"
        for name in [*LESSONS, *OTHERS]
        for check in (fetches, broken_links, pictures, formulas)
        for fault in check(pages, (pages / f"{name}.html").read_text(encoding="utf8"))
    ]
    faults += inaccessible(pages)
    assert not faults, "\n".join(faults)
    index = (pages / "index.html").read_text(encoding="utf8")
    assert all(f"{lesson}.html" in index for lesson in LESSONS)
    folded = (pages / "02_the_local_objective.html").read_text(encoding="utf8")
    assert "<summary>Solution</summary>" in folded and "hide-input" in folded


def inaccessible(pages):
    """What axe-core finds serious or critical, light and dark; nothing without a browser."""
    if BROWSER is None:
        return
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            # Without motion: in the middle of a change of colour no contrast is what it will be.
            looks = {"color_scheme": scheme, "reduced_motion": "reduce"}
            page = browser.new_page(viewport={"width": 1280, "height": 900}, **looks)
            for name in ("index", LESSONS[1], "results"):
                page.goto((pages / f"{name}.html").as_uri())
                for fault in Axe().run(page).response["violations"]:
                    if fault["impact"] in ("serious", "critical"):
                        where = [node["html"][:120] for node in fault["nodes"][:3]]
                        yield f"{scheme} {name}: {fault['help']}: {where}"
        browser.close()


def fetches(pages, text):
    """What a browser would load from elsewhere."""
    for tag in re.findall(r"<(?:script|img|link|iframe)\b[^>]*>", text):
        if re.search(r"""(?:src|href)=["'](?:https?:)?//""", tag) and 'rel="canonical"' not in tag:
            yield tag


def broken_links(pages, text):
    for target in re.findall(r'<a\b[^>]*\bhref="([^"]*)"', text):
        name, _, anchor = unquote(unescape(target)).partition("#")
        if re.match(r"[a-z]+:", name):
            continue
        page = pages / name if name else None
        if page and not page.exists():
            yield f"{target} is not there"
        elif anchor and not name and f'id="{anchor}"' not in text:
            yield f"#{anchor} is not there"


def pictures(pages, text):
    """Every picture of a cell has a description, and is there."""
    for tag in re.findall(r"<img\b[^>]*>", text):
        if "_images/" in tag and not re.search(r'alt="(?!_images)[^"]{10,}', tag):
            yield f"no description: {tag[:120]}"
        source = re.search(r'src="([^"]*)"', tag)[1]
        if not source.startswith("data:") and not (pages / source).exists():
            yield f"{source} is not there"


def formulas(pages, text):
    """None is left as plain text: MathJax takes what stands between its own brackets."""
    prose = re.sub(
        r'<(span|div) class="math.*?</\1>|<(pre|script|style|code)\b.*?</\2>', "", text, flags=re.S
    )
    yield from re.findall(r"\\(?:frac|sum|lVert|mathbb|top|hat|bar)\b", prose)


@pytest.mark.parametrize(
    "text, led",
    [
        ("[a](00_start_here.ipynb)", "[a](00_start_here.ipynb)"),
        ("[a](README.md)", "[a](verdicts.md)"),
        ("[a](../docs/architecture.md#x)", "[a](architecture.md)"),
        ("[a](https://example.org/x)", "[a](https://example.org/x)"),
        ("[a](../sparselab/viz.py)", "a"),
        ("![a](figures/x.png)", "![a](figures/x.png)"),
    ],
)
def test_links_are_led_to_the_sites_pages(text, led):
    page = ROOT / "notebooks" / "01_what_a_pruned_model_loses.ipynb"
    assert site.linked(text, page) == led


def test_folded_formulas_are_read():
    text = "1. a\n   <details><summary>Hint</summary>$x$ is</details>\n"
    lines = "1. a\n   <details><summary>Hint</summary>\n\n   $x$ is\n\n   </details>\n"
    assert site.apart(text) == lines and site.apart(lines) == lines


def test_faults_are_seen(tmp_path):
    assert [*fetches(tmp_path, '<script src="https://cdn.example/x.js"></script>')]
    assert [*broken_links(tmp_path, '<a href="nowhere.html">')]
    assert [*broken_links(tmp_path, '<a href="#nowhere">')]
    assert [*pictures(tmp_path, '<img src="_images/x.png" alt="_images/x.png">')]
    assert [*formulas(tmp_path, r"<p>\frac{1}{2}</p>")]
