"""Names of modules and tensors as tools write them, brought to the base's own.

    name     = { wrapper "." } { owner "." } own
    wrapper  = "base_model" | "module" | "_orig_mod" | …    what wraps a model, anywhere
    owner    = "model" | "language_model" | "text_model" | …   what a decoder is a part of
    own      = "layers.0.self_attn.q_proj" | "embed_tokens" | "lm_head" | …

Towers for pictures and sound have names of their own before `layers`, so that theirs never pass
for the decoder's.
"""

import re
from collections.abc import Iterable

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:base_model\.model|base_model|module|_orig_mod|_fsdp_wrapped_module"
    r"|_checkpoint_wrapped_module|base_layer)\."
)
_OWNERS = re.compile(r"(?:(?:model|language_model|text_model|transformer|decoder|llm)\.){0,6}")


def unwrapped(name: str) -> str:
    """A name without what training tools wrapped around the model."""
    return _WRAPPERS.sub("", name)


class Names:
    """The base's own names, to be found by others'."""

    def __init__(self, known: Iterable[str]) -> None:
        self.known = frozenset(known)
        self._by_tail: dict[str, list[str]] = {}
        for name in sorted(self.known):
            self._by_tail.setdefault(_tail(name), []).append(name)

    def find(self, name: str) -> str | None:
        """The base's name for what a file calls `name`; None where there is none, or several."""
        plain = unwrapped(name)
        if plain in self.known:
            return plain
        found = self._by_tail.get(_tail(plain), [])
        return found[0] if len(found) == 1 else None


def _tail(name: str) -> str:
    match = _OWNERS.match(name)
    return name[match.end() :] if match else name
