"""Configuration of the documentation; nothing here reaches for the network."""

import importlib.util
import tomllib
from pathlib import Path

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
    "sphinx.ext.mathjax",
]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
templates_path = ["_templates"]

# Types are stated in words in the docstrings; the annotations only say "array".
autodoc_typehints = "none"
autodoc_mock_imports = [] if importlib.util.find_spec("torch") else ["torch"]
numpydoc_show_class_members = False
numpydoc_validation_checks = set(validation["checks"])
numpydoc_validation_exclude = set(validation["exclude"])

html_theme = "pydata_sphinx_theme"
html_title = "gramnorm"
html_theme_options = {"show_prev_next": False, "navigation_with_keys": False}
html_show_sourcelink = False
