"""What work will take before it is begun: memory. Pure formulas over shapes; no torch."""
