"""A stack becomes one runnable model: frozen layers folded into a copy of the base's weights.

Exams, chat, training and (later) serving all come through here, so that what was examined is
what is served.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lamina.bases import families, pipeline
from lamina.bases.load import load, load_tokenizer, too_large
from lamina.bases.pipeline import Pipeline
from lamina.bases.sharded import shards_of
from lamina.bases.supplied import SuppliedLinear
from lamina.core import heap
from lamina.core.errors import LayerError, UsageError
from lamina.core.files import atomic_directory
from lamina.core.manifests import Descriptor, LayerConfig
from lamina.lowrank import codec
from lamina.lowrank.attach import fold_into, layer_faults
from lamina.lowrank.maths import Factors, compose
from lamina.stack.resolve import ResolvedLayer, ResolvedStack
from lamina.store.layout import Store
from lamina.tokens.template import ChatFormat

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, eq=False)
class Compiled:
    """A stack as a model that answers like it."""

    stack: ResolvedStack
    model: nn.Module
    linears: dict[str, nn.Linear]
    """Every linear that layers can be on by full name, layers folded in."""
    dtype: torch.dtype
    chat: ChatFormat | None = None
    """How a text stack is talked to."""
    pad_id: int = 0

    @property
    def format(self) -> ChatFormat:
        """How it is talked to. Raises UsageError for a stack that draws."""
        if self.chat is None:
            raise _draws(self.stack)
        return self.chat

    @property
    def pipeline(self) -> Pipeline:
        """How it draws. Raises UsageError for a stack that talks."""
        if not isinstance(self.model, Pipeline):
            raise UsageError(
                f"{self.stack.label} talks, it does not draw", hint="lamina chat talks with it"
            )
        return self.model


def device_at_hand() -> str:
    """Where models train, answer and sit exams: the GPU where there is one, else the processor.

    (CUDA_VISIBLE_DEVICES picks one of several, or none.)
    """
    return "cuda" if torch.cuda.is_available() else "cpu"


def gpu_at_hand() -> str | None:
    """UUID of that GPU, None where the processor does the work."""
    if device_at_hand() != "cuda":
        return None
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


@heap.told_where_short()
def compile_stack(
    store: Store,
    stack: ResolvedStack,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    stream: bool | None = None,
    shard: bool = False,
) -> Compiled:
    """Load the base, fold the layers in (float32, rounded once). Base bytes are never written.

    Over a quantised base the layers stay factors beside its packed weights. With `stream` the
    decoder's weights stay in the store and are read as they are used; None: where they do not fit
    into the memory at hand. With `shard` they are shared out over the workers that
    torch.distributed has joined, all of which compile the same.
    Raises LayerError listing every fault of every layer, CorruptBlobError, BaseError, also where
    memory runs out.
    """
    heap.give_back()  # what an earlier stack left: reading takes memory elsewhere
    directory = base_directory(store, stack.base)
    draws = stack.draws
    if draws and (stream or shard):
        raise UsageError("the weights of image bases are loaded whole", hint="leave out --stream")
    stream = False if draws else stream
    if stream is None and not shard:
        packed = stack.base_config.quantised is not None
        stream = not packed and device == "cpu" and too_large(directory, dtype)
    wide = _folded_wide(stack) and not (stream or shard)  # which do so linear by linear
    model, linears, chat, pad_id = _loaded(
        directory,
        torch.float32 if wide else dtype,
        draws=draws,
        stream=bool(stream),
        shards_on=device if shard else None,
    )
    factors = [layer_factors(store, layer) for layer in stack.layers]
    faults = [
        f"{layer.config.name}: {fault}"
        for layer, parts in zip(stack.layers, factors, strict=True)
        for fault in layer_faults(parts, linears)
    ]
    if faults:
        raise LayerError(f"{stack.label} does not fit its base", faults=faults)
    if factors:
        fold_into(linears, compose(factors))
    if (shards := shards_of(linears.values())) is not None:
        shards.fill()
    if wide:
        for parameter in model.parameters():  # not buffers: rotary tables stay float32
            parameter.data = parameter.data.to(dtype)
    heap.give_back()  # what reading and folding left in the middle of the heap
    return Compiled(
        stack=stack,
        model=model.to(device),
        linears=linears,
        dtype=dtype,
        chat=chat,
        pad_id=pad_id,
    )


def base_linears(store: Store, stack: ResolvedStack, dtype: torch.dtype) -> dict[str, nn.Linear]:
    """Every linear of a stack's base that layers can be on, without them. Raises BaseError."""
    directory = base_directory(store, stack.base)
    return _loaded(directory, dtype, draws=stack.draws, stream=False, shards_on=None)[1]


def _loaded(
    directory: Path, dtype: torch.dtype, *, draws: bool, stream: bool, shards_on: str | None
) -> tuple[nn.Module, dict[str, nn.Linear], ChatFormat | None, int]:
    """A base's model and linears; of one that talks, its format and padding token too."""
    if draws:
        drawing = pipeline.load(directory, dtype=dtype).model
        return drawing, pipeline.linears(drawing), None, 0
    loaded = load(directory, dtype=dtype, stream=stream, shards_on=shards_on)
    pad_id = loaded.tokenizer.pad_token_id
    chat = ChatFormat(loaded.tokenizer)
    return loaded.model, families.linears(loaded.model), chat, 0 if pad_id is None else pad_id


def _draws(stack: ResolvedStack) -> UsageError:
    return UsageError(
        f"{stack.label} draws, it does not talk", hint=f'lamina draw {stack.label} "a red fox"'
    )


def _folded_wide(stack: ResolvedStack) -> bool:
    """Whether to fold in float32 before rounding, so that a float32 base is rounded only once."""
    base = stack.base_config
    return bool(stack.layers) and base.quantised is None and base.dtype == "float32"


def unpacked(compiled: Compiled) -> Compiled:
    """The same with plain weights where the base's are not in memory: for arithmetic on the weights
    themselves. Takes the modules of what it is given, and the memory of a plain base."""
    for name, linear in compiled.linears.items():
        if isinstance(linear, SuppliedLinear):
            plain = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(linear.weight, requires_grad=False)
            plain.bias = linear.bias
            owner, _, leaf = name.rpartition(".")
            setattr(compiled.model.get_submodule(owner), leaf, plain)
            compiled.linears[name] = plain
    return compiled


def base_format(store: Store, stack: ResolvedStack) -> ChatFormat:
    """The base's tokenizer and template alone, without weights. Raises UsageError for one that
    draws."""
    if stack.draws:
        raise _draws(stack)
    return ChatFormat(load_tokenizer(base_directory(store, stack.base)))


def layer_factors(store: Store, layer: ResolvedLayer) -> dict[str, Factors]:
    """A stored layer's factors, times its weight in the stack."""
    factors = stored_factors(store, layer.digest)
    return {name: part.weighted(layer.weight) for name, part in factors.items()}


def stored_factors(store: Store, layer: str) -> dict[str, Factors]:
    """The factors of the layer with this digest, as they were stored.

    Raises LayerError with every fault, StoreError.
    """
    manifest = store.manifest(layer)
    config, weights = manifest.blob(codec.CONFIG_FILE), manifest.blob(codec.WEIGHTS_FILE)
    if config is None or weights is None:
        raise LayerError(f"layer {layer} has no adapter in it")
    name = store.config(manifest, LayerConfig).name
    return codec.decode(store.read(config.digest), str(store.path(weights.digest)), f"layer {name}")


def base_directory(store: Store, base: Descriptor) -> Path:
    """A folder of links to a base's blobs under their file names, each blob checked.

    The folder is a cache keyed by the manifest's digest; links to swept blobs are made anew.
    """
    manifest = store.manifest(base.digest)
    paths = {item.title: store.path(item.digest) for item in manifest.layers}
    directory = store.cache_dir / "bases" / base.digest.removeprefix("sha256:")
    if not _links_hold(directory, list(paths)):
        directory = _link_all(directory, paths)
    return directory


def _links_hold(directory: Path, titles: Sequence[str]) -> bool:
    return all((directory / title).exists() for title in titles)


def _link_all(directory: Path, paths: dict[str, Path]) -> Path:
    shutil.rmtree(directory, ignore_errors=True)  # links to swept blobs, if anything
    with atomic_directory(directory) as work:
        for title, path in paths.items():
            # from the final folder, which is the work folder's sibling
            (work / title).symlink_to(os.path.relpath(path, directory))
    return directory
