"""Training one layer: objective, schedule, loop, checkpoints, events.

Takes a model and encoded rows, returns factors; knows no store and no command line.
"""
