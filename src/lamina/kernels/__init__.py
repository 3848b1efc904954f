"""The arithmetic of a decoder layer beside its matrix products, forward and backward.

Three implementations of one set of functions: `reference` (torch, any dtype and device) says what
each means; `native` is C++ for processors with AVX-512 BF16, compiled once and kept; `accelerated`
is for GPUs: the reference compiled, and flash attention. `chosen` picks.
"""
