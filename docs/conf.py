"""Sphinx settings of the documentation site: `make docs` builds it into build/site."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

project = "flowkern"
copyright = "the flowkern authors, MIT licence"  # noqa: A001  (Sphinx's name)
extensions = ["myst_parser", "sphinx_design", "mathml", "measured", "repository", "layout", "excerpts", "api"]
exclude_patterns = ["_ext", "pictures"]
templates_path = []

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # an included README may begin below the page's own level

html_theme = "furo"
html_title = "flowkern"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "native"
