"""Data: from files in anybody's format to examples, split by hash. Knows no tokenizer, no torch."""
