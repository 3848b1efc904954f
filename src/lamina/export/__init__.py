"""Stacks in other tools' formats, each with a parity check. Knows no flows and no HTTP."""
