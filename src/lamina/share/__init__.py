"""Sharing: what moves between stores, and the places that it moves to and from."""
