"""How answers become values: one file with one function for each scorer, listed in `registry`."""
