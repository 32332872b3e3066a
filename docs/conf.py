"""Sphinx: `tox run -e docs`."""

from __future__ import annotations

project = "litefs_django"
copyright = "litefs_django contributors"
exclude_patterns = ["_build"]
html_theme = "alabaster"
