"""The words everything else is written in: errors, digests, atomic files, names, manifest types.

Imports nothing of lamina and no heavy library (no torch, no transformers).
"""
