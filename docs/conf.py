"""The site: `make docs` builds it with Sphinx from the pages of this folder and the docstrings.

Every warning is an error there, so a link that leads nowhere or a name that is gone stops the
build. Nothing but Sphinx imports this file.
"""

from __future__ import annotations

from dlock import __version__

project = "dlock"
author = "the dlock authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["build"]
html_theme = "furo"
html_title = f"dlock {__version__}"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
autodoc_default_options = {"members": True, "show-inheritance": True}

# Only names are taken from there; without a network the page is built without those links.
intersphinx_mapping: dict[str, tuple[str, None]] = {}
