"""How parallel layers become one: one file with one function for each method, in `registry`."""
