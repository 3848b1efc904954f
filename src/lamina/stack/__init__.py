"""Stacks: which layers in which order, and the model that they make together."""
