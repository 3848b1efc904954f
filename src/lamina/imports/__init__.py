"""Layers that other tools made, read with suspicion: one file a format.

A reader turns files into an `Adapter`; `place` puts it over a base. Nothing here writes.
"""
