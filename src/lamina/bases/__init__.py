"""Bases: where a pretrained model comes from, how it becomes a folder, how the folder is loaded.

Knows no store: a source becomes a folder; a flow puts that folder's files into the store.
"""
