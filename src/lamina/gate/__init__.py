"""The gate: whether a name may move. A pure function of comparisons and a policy; no numerics."""
