"""Sphinx's settings for the course site: `make site`. tools/site.py lays the pages out beside a
copy of this file."""

import os
from importlib.metadata import version as version_of

project = "sparselab"
author = "the founders of sparselab"
copyright = "sparselab, Apache-2.0"
version = release = version_of("sparselab-pruning")
language = "en"

extensions = ["myst_nb", "sphinx-mathjax-offline"]
myst_enable_extensions = ["dollarmath", "amsmath", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks come executed
nb_merge_streams = True
exclude_patterns = ["_build"]

html_theme = "sphinx_book_theme"
html_title = "sparselab: how language models are pruned"
html_static_path = ["site.css", "site.js"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_sourcelink = False
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": True,  # the notebook itself, and a print to PDF
    "use_fullscreen_button": True,
    "use_sidenotes": False,
    "navbar_persistent": [],  # the search stands in the sidebar
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}

# With SITE_REPOSITORY=https://github.com/OWNER/NAME the pages have buttons that open a lesson on
# Binder, which installs environment.yml, and on Colab, where the first cell has to install it.
repository = os.environ.get("SITE_REPOSITORY")
if repository:
    html_theme_options |= {
        "repository_url": repository,
        "repository_branch": os.environ.get("SITE_BRANCH", "main"),
        "path_to_docs": "notebooks",
        "use_repository_button": True,
        "launch_buttons": {
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
            "notebook_interface": "jupyterlab",
        },
    }
