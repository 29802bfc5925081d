"""Configuration of the site: sphinx-build -W -n docs build/site."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "ext"))

import fastopt
import generated

project = "fastopt"
author = "the authors of fastopt"
version = release = fastopt.__version__
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_design",
]
templates_path = ["templates"]
exclude_patterns = ["ext", "templates", "generated/*.md", "generated/gallery.rst"]
highlight_language = "none"
default_role = "autolink"
nitpicky = True
nitpick_ignore_regex = [
    # Backticks are parameters' names too, and some are attributes' as well; other libraries' sites may be out of reach.
    ("py:obj", r"[a-z_]+"),
    ("py:obj", r"(scipy|sklearn|torch)\..*"),
]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings have them
autodoc_mock_imports = generated.missing("torch", "cupy")
numpydoc_show_class_members = False

html_theme = "pydata_sphinx_theme"
html_title = "fastopt"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_sidebars = {page: [] for page in ("gallery", "performance")}  # room for wide formulas and tables
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "collapse_navigation": True,
    "show_toc_level": 2,
    "header_links_before_dropdown": 5,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
}

# For people: sphinx-build -b linkcheck docs build/links
linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", generated.mark_parameters)
    app.connect("config-inited", lambda *_: generated.write(Path(__file__).parent / "generated"))
