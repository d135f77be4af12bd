"""The site: these pages as they are, and those that `scripts/pages.py` makes from the code.

uv run --group docs sphinx-build -W -b html docs docs/_build/html
"""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent / "scripts"))

import pages

project = "trainer-core"
version = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["project"]["version"]
html_title = f"trainer-core {version}"
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "scripts"]
myst_heading_anchors = 6  # a heading's link is that of the repository's pages
default_role = "code"  # docstrings write code as Markdown does
napoleon_use_ivar = True


def setup(app: Any) -> None:
    """Make what is not there, and let the pages link to it."""
    pages.make()
    app.connect("source-read", _read)


def _read(app: Any, name: str, source: list[str]) -> None:
    page = pages.DOCS / f"{name}.md"
    if not name.startswith("_made/"):
        source[0] = pages.linked(source[0], page, page)
    if name == "index":
        source[0] = pages.with_navigation(source[0])
