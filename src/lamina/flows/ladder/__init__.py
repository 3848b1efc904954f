"""Carrying a layer to other parents: a ladder of rungs, the cheapest that passes is kept.

A rung is one file with one function; `registry` lists them, `carry` climbs and judges.
"""
