"""From a base in the store to an engine that answers for every stack over it."""

from functools import partial

import torch

from lamina.core.errors import UsageError
from lamina.core.manifests import Descriptor
from lamina.serve import native
from lamina.serve.batch import Decoder
from lamina.serve.engine import Engine, Limits
from lamina.serve.generic import GenericDecoder
from lamina.stack.compile import Compiled, compile_stack, device_at_hand, layer_factors
from lamina.stack.resolve import over_base
from lamina.store.layout import Store

CONTEXT = 4096
"""Tokens a request may have over a base that does not say how many it reads."""


def open_engine(
    store: Store,
    base: Descriptor,
    *,
    limits: Limits | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> Engine:
    """Load a base and serve whatever stands over it. Takes seconds.

    Raises what `compile_stack` raises.
    """
    compiled = compile_stack(
        store, over_base(store, base, label="the base"), device=device or device_at_hand()
    )
    limits = limits or Limits()
    return Engine(
        base.digest,
        decoder_of(compiled, threads=threads, layer_bits=limits.layer_bits),
        partial(layer_factors, store),
        context=context_of(compiled),
        limits=limits,
    )


def decoder_of(compiled: Compiled, *, threads: int | None = None, layer_bits: int = 16) -> Decoder:
    """The fastest decoder that the model and the machine allow. The model is used up.

    Raises UsageError for layers in 8 bits where only the generic decoder is to be had.
    """
    with torch.inference_mode():
        reason = native.why_not(compiled.model)
        if not reason:
            return native.NativeDecoder(compiled.model, threads=threads, layer_bits=layer_bits)
        if layer_bits != 16:
            raise UsageError(f"layers in {layer_bits} bits need the native kernels: {reason}")
        return GenericDecoder(compiled.model)


def context_of(compiled: Compiled) -> int:
    """Tokens that the base reads at most."""
    known = getattr(compiled.model.config, "max_position_embeddings", None)
    return known if isinstance(known, int) else CONTEXT
