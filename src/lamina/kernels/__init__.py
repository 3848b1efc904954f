"""The arithmetic of a decoder layer beside its matrix products, forward and backward.

Two implementations of one set of functions: `reference` (torch, any dtype and device) says what
each means; `native` is C++ for processors with AVX-512 BF16, compiled once and kept.
`chosen` picks.
"""
