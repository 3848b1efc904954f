"""Tests, one folder a room; `pico.py` builds models on the spot."""
