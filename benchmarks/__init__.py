"""Benchmarks: `python -m benchmarks.NAME`. The last line of stdout is one JSON object.

With --keep the row is appended to benchmarks/results/NAME.jsonl.
"""
