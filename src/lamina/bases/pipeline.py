"""A latent diffusion base in memory: denoiser, autoencoder, text encoder, tokenizer, schedule.

The models are diffusers' and transformers' own. Images are (B, 3, S, S) in [-1, 1]; latents
(B, C, h, w), scaled as the denoiser was trained on them; a caption's states (B, L, D).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from lamina.bases.convolution import PatchLinear, fault
from lamina.bases.identity import read_json
from lamina.bases.load import load_tokenizer
from lamina.bases.pipeline_files import (
    DENOISERS,
    INDEX,
    MODELS,
    NOISE,
    SEPARATOR,
    WORDS,
    module_shapes,
    nested,
)
from lamina.bases.quiet import quiet
from lamina.bases.shell import Files
from lamina.core import heap
from lamina.core.errors import BaseError, MissingPartError, UsageError
from lamina.core.recipe import ALL_LINEAR

_ENCODER_LAYERS = ("layers", "block")
"""What the list of a text encoder's layers is called: CLIP's and T5's."""
_ATTENTION = ("transformer_blocks", "attentions")
_TIMES = ("resnets", "time_embedding")
"""Where else a denoiser has linears: of the noise's level."""
_BLOCKS = ("resnets", "attentions", "downsamplers", "upsamplers")
CONVOLUTIONS = "conv"
"""The target that names the convolutions of a denoiser's blocks."""
MAX_WORDS = 512
"""Longest caption in tokens, where the tokenizer does not say."""


class Caption(NamedTuple):
    """A caption as the text encoder reads it."""

    ids_L: Tensor
    """int64, padded to the tokenizer's full length."""
    mask_L: Tensor
    """1 where there is a word, 0 where there is padding."""


class Pipeline(nn.Module):
    """The models of a base, frozen, in eval mode; a linear's name begins with its part's."""

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        tokenizer: PreTrainedTokenizerFast,
        schedule: Mapping[str, Any],
    ) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.denoiser_name = next(name for name in DENOISERS if name in parts)
        self.tokenizer, self.schedule = tokenizer, dict(schedule)
        self.name_or_path = ""

    @property
    def denoiser(self) -> Any:
        """The UNet or transformer."""
        return getattr(self, self.denoiser_name)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one image's latents."""
        size = self.denoiser.config.sample_size
        side = size if isinstance(size, int) else size[0]
        return int(self.denoiser.config.in_channels), side, side

    @property
    def image_side(self) -> int:
        """Pixels of an image's side."""
        vae: Any = self.vae
        return int(self.latent_shape[1] * 2 ** (len(vae.config.block_out_channels) - 1))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights. (The denoiser's first parameter may be a layer's, in float32.)"""
        vae: Any = self.vae
        return next(vae.parameters()).dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.denoiser.parameters()).device  # type: ignore[no-any-return]

    def captions(self, texts: Sequence[str]) -> list[Caption]:
        """Captions as ids, cut and padded to the length that the tokenizer says."""
        known = self.tokenizer.model_max_length
        length = known if known <= MAX_WORDS else MAX_WORDS
        found = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        )
        pairs = zip(found["input_ids"], found["attention_mask"], strict=True)
        return [Caption(ids_L.long(), mask_L.long()) for ids_L, mask_L in pairs]

    def read(self, captions: Sequence[Caption]) -> Tensor:
        """What the text encoder makes of captions: (B, L, D)."""
        encoder: Any = self.text_encoder
        ids_BL = torch.stack([each.ids_L for each in captions]).to(self.device)
        mask_BL = self._mask(captions)
        states: Tensor = encoder(ids_BL, attention_mask=mask_BL)[0]
        return states.to(self.dtype)

    def _mask(self, captions: Sequence[Caption]) -> Tensor | None:
        """PixArt's encoder and denoiser look past padding; Stable Diffusion's do not."""
        if self.denoiser_name == "unet":
            return None
        return torch.stack([each.mask_L for each in captions]).to(self.device)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, C, h, w) of images' latents."""
        vae: Any = self.vae
        found = vae.encode(images.to(self.device, self.dtype)).latent_dist
        shift, scale = _shift_and_scale(vae)
        return (found.mean - shift) * scale, found.std * scale

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents, in [-1, 1], float32."""
        vae: Any = self.vae
        shift, scale = _shift_and_scale(vae)
        images: Tensor = vae.decode(latents.to(self.dtype) / scale + shift).sample
        return images.float().clamp(-1, 1)

    def denoise(
        self, latents: Tensor, times_B: Tensor, states: Tensor, captions: Sequence[Caption]
    ) -> Tensor:
        """What the denoiser says of noisy latents (B, C, h, w) at times (B,), in float32."""
        given: dict[str, Any] = {"encoder_hidden_states": states}
        if self.denoiser_name == "transformer":
            given["encoder_attention_mask"] = self._mask(captions)
            given["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
        said: Tensor = self.denoiser(
            latents.to(self.dtype), timestep=times_B, return_dict=False, **given
        )[0]
        return said[:, : latents.shape[1]].float()  # beyond are learned variances


@dataclass(frozen=True)
class LoadedPipeline:
    """A base in memory."""

    model: Pipeline
    directory: Path


@heap.told_where_short()
def load(directory: Path, *, dtype: torch.dtype) -> LoadedPipeline:
    """Load a pulled image base, frozen, in eval mode. Raises BaseError, also where memory runs out;
    MissingPartError."""
    heap.bound_code(heap.CODE_OF_IMAGES)
    index = read_json(directory / INDEX)
    try:
        with quiet(), nested(directory) as folder:
            parts = {
                name: _class(*index[name])
                .from_pretrained(
                    folder / name,
                    torch_dtype=dtype,
                    use_safetensors=True,
                    local_files_only=True,
                    **({} if name == "text_encoder" else {"low_cpu_mem_usage": False}),
                )
                .eval()
                .requires_grad_(False)
                for name in MODELS
                if name in index
            }
            tokenizer = load_tokenizer(folder / WORDS)
    except (BaseError, MissingPartError):
        raise
    except Exception as error:  # diffusers and safetensors raise kinds of many parents
        if heap.is_short(error):
            raise
        raise BaseError(
            f"the base in {directory} cannot be loaded: {type(error).__name__}: {error}",
            hint="pull the base again",
        ) from error
    schedule = read_json(directory / f"{NOISE}{SEPARATOR}scheduler_config.json")
    model = Pipeline(parts, tokenizer, schedule)
    model.eval()
    model.name_or_path = str(directory)
    return LoadedPipeline(model, directory)


def _class(library: str, name: str) -> Any:
    """A model's class, of those that are known (see `MODELS`)."""
    if name not in {known for names in MODELS.values() for known in names}:
        raise BaseError(f"{name} is no part that is known", hint="pull the base again")
    if library == "transformers":
        import transformers

        return getattr(transformers, name)
    try:
        from diffusers import models
    except ImportError as error:
        raise MissingPartError(
            "image bases need diffusers", hint="pip install 'lamina[images]'"
        ) from error
    return getattr(models, name)


def linears(model: Pipeline) -> dict[str, nn.Linear]:
    """Every linear and convolution that layers can be on, by name: see `named_linears`."""
    found = named_linears(dict(model.named_children()))
    if not any(_attends(name) for name in found):
        raise BaseError("this denoiser has no attention", hint="use a base with cross-attention")
    return found


def named_linears(parts: Mapping[str, nn.Module]) -> dict[str, nn.Linear]:
    """Of parts by their names: the linears of the denoiser's attention blocks, of its embedding of
    time, and of the text encoder's layers; and the denoiser's convolutions, each as the linear of
    its patches."""
    found: dict[str, nn.Linear] = {}
    for name, module in _modules(parts):
        if isinstance(module, nn.Linear) and (
            _attends(name) or _tells_time(name) or _of_words(name)
        ):
            found[name] = module
        elif _of_denoiser(name) and isinstance(module, nn.Conv2d) and fault(module) is None:
            found[name] = PatchLinear(module)
    return found


def refused(model: Pipeline) -> dict[str, str]:
    """Name -> why the denoiser's convolution of that name takes no layers."""
    return {
        name: why
        for name, module in _modules(dict(model.named_children()))
        if _of_denoiser(name) and isinstance(module, nn.Conv2d) and (why := fault(module))
    }


def _modules(parts: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    for part, model in parts.items():
        for name, module in model.named_modules():
            yield f"{part}.{name}", module


def _is_inside(name: str, some: Collection[str]) -> bool:
    return not set(some).isdisjoint(name.split("."))


def _of_denoiser(name: str) -> bool:
    return name.partition(".")[0] in DENOISERS


def _attends(name: str) -> bool:
    return _of_denoiser(name) and _is_inside(name, _ATTENTION)


def _tells_time(name: str) -> bool:
    return _of_denoiser(name) and _is_inside(name, _TIMES)


def _of_words(name: str) -> bool:
    return name.startswith("text_encoder.") and _is_inside(name, _ENCODER_LAYERS)


def chosen(
    linears: Mapping[str, nn.Linear],
    targets: Sequence[str],
    without: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, nn.Linear]:
    """As `families.select`, but 'all-linear' is the denoiser's attention, 'conv' its blocks'
    convolutions, and the beginning of a name ('text_encoder', 'unet.mid_block') what there is of
    attention and of the text encoder. Whatever else (the first and the last convolution, the
    embedding of time) is asked for by its own name or a suffix.

    `without`: see `refused`. Raises UsageError listing every target that names nothing, or one of
    those.
    """
    found: dict[str, nn.Linear] = {}
    faults = []
    for target in targets:
        fits = {name: each for name, each in linears.items() if _asked(name, each, target)}
        found |= fits
        never = [f"{name}: {why}" for name, why in without.items() if _ends(name, target)]
        faults += never if never or fits else [repr(target)]
    if faults or not found:
        suffixes = sorted({name.rpartition(".")[2] for name in linears if not name[-1].isdigit()})
        raise UsageError(
            "no linear of the base is named by these targets",
            faults=faults or ["no targets given"],
            hint=f"use {ALL_LINEAR!r}, {CONVOLUTIONS!r}, 'text_encoder', or suffixes such as "
            f"{', '.join(suffixes)}",
        )
    return {name: linear for name, linear in linears.items() if name in found}


def _asked(name: str, linear: nn.Linear, target: str) -> bool:
    if _ends(name, target):
        return True
    if isinstance(linear, PatchLinear):
        return target == CONVOLUTIONS and _is_inside(name, _BLOCKS)
    if target == ALL_LINEAR:
        return _attends(name)
    return name.startswith(f"{target}.") and (_attends(name) or _of_words(name))


def _ends(name: str, target: str) -> bool:
    return name == target or (bool(target) and name.endswith(f".{target}"))


def files(directory: Path) -> Files:
    """The stored tensors of a pulled image base; their names begin with their part's."""
    parts = {
        path: f"{path.name.partition(SEPARATOR)[0]}."
        for path in sorted(directory.glob(f"*{SEPARATOR}*.safetensors"))
    }
    return Files(directory, parts)


def kernels(directory: Path) -> dict[str, tuple[int, int]]:
    """(kh, kw) of every convolution of a pulled image base's denoiser, by name; no weight is
    read."""
    return {
        name: (shape[2], shape[3])
        for name, shape in module_shapes(directory).items()
        if _of_denoiser(name) and len(shape) == 4
    }


def _shift_and_scale(vae: Any) -> tuple[float, float]:
    """latents = (what the autoencoder says - shift) * scale."""
    return float(getattr(vae.config, "shift_factor", None) or 0.0), float(vae.config.scaling_factor)
