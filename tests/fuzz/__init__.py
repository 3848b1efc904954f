"""Fuzz targets: `python -m tests.fuzz.NAME --seconds 600`. Only lamina's errors may come out."""
