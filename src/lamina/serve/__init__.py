"""The many-stacks engine: one base answers for every stack over it, in one batch.

Tokens in, tokens out: it knows no HTTP, no names and no text. A request says which stack (by
digest) continues which token ids; the engine reads prompts in chunks, decodes all rows together,
adds each stack's low-rank terms to its own rows, and tells each request's listener what came.
"""
