"""Configuration of the documentation; nothing here reaches for the network."""

import html
import importlib.util
import re
import tomllib
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

root = Path(__file__).parents[1]
settings = tomllib.loads((root / "pyproject.toml").read_text())
validation = settings["tool"]["numpydoc_validation"]

project = "gramnorm"
author = "The gramnorm developers"
project_copyright = "2026, the gramnorm developers"
version = release = settings["project"]["version"]

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "benchmarks/*"]  # the tables are included by benchmarks.md
templates_path = ["_templates"]

# Types are stated in words in the docstrings; the annotations only say "array".
autodoc_typehints = "none"
has_torch = importlib.util.find_spec("torch") is not None
has_digits = has_torch and importlib.util.find_spec("sklearn") is not None
autodoc_mock_imports = [] if has_torch else ["torch"]
numpydoc_show_class_members = False
numpydoc_validation_checks = set(validation["checks"])
numpydoc_validation_exclude = set(validation["exclude"])

html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "gramnorm"
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    # one line from 960 pixels, below which the theme folds all of it into a menu
    "header_links_before_dropdown": 6,
    "navbar_align": "left",
    "navbar_persistent": ["search-button"],
    # all pages but those of functions, which have one heading and need the room
    "secondary_sidebar_items": {"[!g]**": ["page-toc"], "g[!e]**": ["page-toc"]},
}
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_sidebars = {"*": []}  # pages without pages below them

# The examples that run in seconds: their pages show the code, what it printed and the figures.
sphinx_gallery_conf = {
    "examples_dirs": str(root / "examples"),
    "gallery_dirs": "gallery",
    "ignore_pattern": "regularised_training|train_digits"
    + ("" if has_torch else "|muon")
    + ("" if has_digits else "|network_constant"),
    "filename_pattern": r"\.py$",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
}

DIALECT = {
    r"\\dots(?![a-z])": r"\\ldots",
    r"\\([bB])ig(?=[)\]])": r"\\\1igr",
    r"\\([bB])ig(?![a-z])": r"\\\1igl",
    r"\\frac(\d)(\d)": r"\\frac{\1}{\2}",
    r"([_^])(\d)(?=\d)": r"\1{\2}",
}
"""LaTeX that the converter does not know, or would take for something else."""


def mathml(node, *, as_block):
    """Return a formula as MathML: browsers show it by themselves, without a script from the network."""
    formula = node.astext()
    for ours, theirs in DIALECT.items():
        formula = re.sub(ours, theirs, formula)
    try:
        converted = tex2mathml(formula, as_block=as_block)
    except MathError as error:
        logging.getLogger(__name__).warning("%s in the formula %s", error, formula, location=node)
        return html.escape(formula)
    # bars are fences here, not relations with space around them; and of two, the one that carries an
    # index would be drawn at another height if it could grow
    converted = converted.replace("<mo>‖</mo>", '<mo stretchy="false">‖</mo>')
    converted = re.sub(r"<mo>\u2236</mo>\s*<mo>=</mo>", "<mo>≔</mo>", converted)
    return re.sub(r"<mo([^>]*)>([|‖])</mo>", r'<mo\1 lspace="0" rspace="0">\2</mo>', converted)


def inline_math(translator, node):
    """Write a formula within a line."""
    translator.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def displayed_math(translator, node):
    """Write a formula on lines of its own."""
    translator.body.append(f'<div class="displayed">{mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def without_blank_end(_app, doctree):
    """Drop the blank line that ends a doctest from what is shown of it."""
    for block in doctree.findall(nodes.literal_block):
        block.rawsource = block.rawsource.rstrip()
        block[:] = [nodes.Text(block.rawsource)] if block.rawsource else block[:]


def setup(app):
    """Make MathML the way to write formulas, and tidy blocks of code."""
    app.connect("doctree-read", without_blank_end)
    app.add_html_math_renderer("mathml", (inline_math, None), (displayed_math, None))
