"""A latent diffusion base in memory: denoiser, autoencoder, text encoder, tokenizer, schedule.

The models are diffusers' and transformers' own. Images are (B, 3, S, S) in [-1, 1]; latents
(B, C, h, w), scaled as the denoiser was trained on them; a caption's states (B, L, D).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from lamina.bases.identity import read_json
from lamina.bases.load import load_tokenizer
from lamina.bases.pipeline_files import DENOISERS, INDEX, MODELS, NOISE, SEPARATOR, WORDS, nested
from lamina.bases.quiet import quiet
from lamina.core import heap
from lamina.core.errors import BaseError, MissingPartError, UsageError
from lamina.core.recipe import ALL_LINEAR

_ENCODER_LAYERS = ("layers", "block")
"""What the list of a text encoder's layers is called: CLIP's and T5's."""
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
        """Of the weights."""
        return next(self.denoiser.parameters()).dtype  # type: ignore[no-any-return]

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
    """Every linear of the denoiser's attention blocks and of the text encoder's layers, by name."""
    found = named_linears(dict(model.named_children()))
    if not any(name.startswith(f"{model.denoiser_name}.") for name in found):
        raise BaseError("this denoiser has no attention", hint="use a base with cross-attention")
    return found


def named_linears(parts: Mapping[str, nn.Module]) -> dict[str, nn.Linear]:
    """The same of parts by their names."""
    found: dict[str, nn.Linear] = {}
    for part, model in parts.items():
        for name, module in model.named_modules():
            inside = name.split(".")
            if part in DENOISERS:
                taken = "transformer_blocks" in inside or "attentions" in inside
            else:
                taken = part == "text_encoder" and any(each in inside for each in _ENCODER_LAYERS)
            if taken and isinstance(module, nn.Linear):
                found[f"{part}.{name}"] = module
    return found


def chosen(linears: Mapping[str, nn.Linear], targets: Sequence[str]) -> dict[str, nn.Linear]:
    """As `families.select`, but 'all-linear' is the denoiser's; the text encoder's are asked for by
    'text_encoder', a part by its name.

    Raises UsageError listing every target that names nothing.
    """
    found: dict[str, nn.Linear] = {}
    unknown = []
    for target in targets:
        fits = {
            name: linear
            for name, linear in linears.items()
            if (target == ALL_LINEAR and name.partition(".")[0] in DENOISERS)
            or name == target
            or name.startswith(f"{target}.")
            or name.endswith(f".{target}")
        }
        found |= fits
        if not fits:
            unknown.append(target)
    if unknown or not found:
        suffixes = sorted({name.rpartition(".")[2] for name in linears if not name[-1].isdigit()})
        raise UsageError(
            "no linear of the base is named by these targets",
            faults=[repr(target) for target in unknown] or ["no targets given"],
            hint=f"use {ALL_LINEAR!r}, 'text_encoder', or suffixes such as {', '.join(suffixes)}",
        )
    return {name: linear for name, linear in linears.items() if name in found}


def _shift_and_scale(vae: Any) -> tuple[float, float]:
    """latents = (what the autoencoder says - shift) * scale."""
    return float(getattr(vae.config, "shift_factor", None) or 0.0), float(vae.config.scaling_factor)
