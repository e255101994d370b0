"""Builds the site from `nbs/` and `_quarto.yml`; not part of the package."""
