"""Readers: containers (jsonl, csv, parquet, text, hub) give rows; row formats make them examples.

A new container is one file with one function, listed in `sources`; a new row format is one file
with one `RowFormat`, listed in `registry`.
"""
