"""Low-rank maths: pure functions, the fused linear, reversible attach, and the PEFT codec.

Knows nothing of text, stores or training loops.
"""
