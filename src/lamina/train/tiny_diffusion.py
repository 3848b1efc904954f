"""A small latent diffusion base from captioned images, trained from nothing on a processor.

An autoencoder first, then a denoiser together with its text encoder on the images' latents. What
comes out is an ordinary Stable Diffusion pipeline of diffusers, a few million parameters large. It
is no rival of a real one: it is what layers can be trained over where none can be downloaded.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamina.bases.normal import write_json
from lamina.bases.pipeline_files import INDEX
from lamina.bases.quiet import quiet
from lamina.core.errors import DataError, MissingPartError
from lamina.core.seeds import derive
from lamina.data.example import Example
from lamina.kernels.build import suits
from lamina.train.attending import in_float32
from lamina.train.building import Builder, Length, Report, Stage
from lamina.train.noising import Noising
from lamina.train.pictures import pictures

AUTOENCODER = Stage("autoencoder", share=0.3, peak=2e-3)
DENOISER = Stage("denoiser", share=0.7, peak=1e-3)
BATCH = 64
AUTOENCODER_BATCH = 16
DROPPED = 0.1
"""Share of captions left out, for guidance (arXiv:2207.12598)."""
FEWEST = 16
"""Images that a base is made from at least."""
_KL = 1e-6


@dataclass(frozen=True)
class Shape:
    """How large the models are."""

    side: int
    """Pixels."""
    autoencoder: tuple[int, ...] = (16, 32, 64, 64)
    """Channels; each but the first halves the picture."""
    latent: int = 8
    """Channels of the latents."""
    denoiser: tuple[int, ...] = (64, 128)
    heads: int = 4
    text: int = 96
    """Width of the text encoder."""
    text_layers: int = 2
    words: int = 24
    """Longest caption, in tokens."""
    vocabulary: int = 2048
    groups: int = 8
    """Of the norms."""

    @property
    def latents(self) -> int:
        """Side of the latents."""
        return int(self.side // 2 ** (len(self.autoencoder) - 1))


def build(
    examples: Sequence[Example],
    out: Path,
    shape: Shape,
    length: Length,
    *,
    work: Path,
    seed: int = 0,
    prediction: str = "v_prediction",
    report: Report = lambda stage, step, share, loss: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train a base on captioned images and write it into `out`, a pipeline's folder.

    `work`: where what is done is kept while it is not whole; a call with the same arguments goes
    on from there. With `length.steps` the same images give the same base on one machine. Raises
    DataError, MissingPartError, TrainInterrupted (nothing is written into `out` then).
    """
    if len(examples) < FEWEST:
        raise DataError(
            f"{len(examples)} images are too few to make a base of", hint="give some hundreds"
        )
    diffusers = _library()
    images = pictures(examples, shape.side)
    captions = [example.text or "" for example in examples]
    tokenizer = _tokenizer(captions, shape)
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "tiny diffusion"))
        vae = _autoencoder(diffusers, shape)
        builder = Builder(work, length, seed, report=report, should_stop=should_stop)
        _train_autoencoder(vae, images, builder)
        latents = _latents(vae, images)
        scale = 1 / float(latents.std())
        vae.register_to_config(scaling_factor=scale)
        denoiser, encoder = _denoiser(diffusers, shape), _text_encoder(shape, tokenizer)
        schedule = diffusers.DDPMScheduler(
            num_train_timesteps=1000,
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type=prediction,
            clip_sample=False,
            timestep_spacing="trailing",
        )
        words = tokenizer(
            [*captions, ""],
            padding="max_length",
            max_length=shape.words,
            truncation=True,
            return_tensors="pt",
        )["input_ids"]
        noising = Noising.of(schedule.config)
        _train_denoiser(denoiser, encoder, latents * scale, words, noising, builder)
    _write(out, denoiser, vae, encoder, tokenizer, schedule)


def _library() -> Any:
    try:
        with quiet():
            import diffusers

            for name in ("AutoencoderKL", "UNet2DConditionModel", "DDPMScheduler"):
                getattr(diffusers, name)  # is loaded only when it is asked for, with what it says
    except ImportError as error:
        raise MissingPartError(
            "image bases need diffusers", hint="pip install 'lamina[images]'"
        ) from error
    return diffusers


def _train_autoencoder(vae: Any, images: Tensor, builder: Builder) -> None:
    def loss_of(draw: torch.Generator) -> Tensor:
        chosen = torch.randint(len(images), (AUTOENCODER_BATCH,), generator=draw)
        x = images[chosen]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=suits()):
            found = vae.encode(x).latent_dist
            noise = torch.randn(found.mean.shape, generator=draw)
            y = vae.decode(found.mean + found.std * noise).sample.float()
        far = (y - x).abs().mean() + (y - x).square().mean()
        return far + _KL * found.kl().mean()  # type: ignore[no-any-return]

    vae.train()
    builder.train(AUTOENCODER, [vae], loss_of)
    vae.eval()


@torch.no_grad()
def _latents(vae: Any, images: Tensor) -> Tensor:
    parts = torch.split(images, 64)
    return torch.cat([vae.encode(part).latent_dist.mean for part in parts])


def _train_denoiser(
    denoiser: Any,
    encoder: Any,
    latents: Tensor,
    words: Tensor,
    noising: Noising,
    builder: Builder,
) -> None:
    def loss_of(draw: torch.Generator) -> Tensor:
        chosen = torch.randint(len(latents), (BATCH,), generator=draw)
        x = latents[chosen]
        times = noising.times(torch.rand(BATCH, generator=draw))
        noise = torch.randn(x.shape, generator=draw)
        dropped = torch.rand(BATCH, generator=draw) < DROPPED
        ids = words[torch.where(dropped, len(words) - 1, chosen)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=suits()):
            said = denoiser(
                noising.noisy(x, noise, times),
                timestep=times,
                encoder_hidden_states=encoder(ids)[0],
            ).sample
        each = (said.float() - noising.target(x, noise, times)).square().mean((1, 2, 3))
        return (each * noising.weight(times, 5.0)).mean()  # type: ignore[no-any-return]

    in_float32(denoiser)
    denoiser.train()
    encoder.train()
    builder.train(DENOISER, [denoiser, encoder], loss_of)
    denoiser.eval()
    encoder.eval()


# -- the models ------------------------------------------------------------------------------------


def _autoencoder(diffusers: Any, shape: Shape) -> Any:
    count = len(shape.autoencoder)
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        block_out_channels=shape.autoencoder,
        layers_per_block=1,
        latent_channels=shape.latent,
        norm_num_groups=shape.groups,
        sample_size=shape.side,
        mid_block_add_attention=False,
    )


def _denoiser(diffusers: Any, shape: Shape) -> Any:
    count = len(shape.denoiser)
    return diffusers.UNet2DConditionModel(
        sample_size=shape.latents,
        in_channels=shape.latent,
        out_channels=shape.latent,
        down_block_types=("CrossAttnDownBlock2D",) * count,
        up_block_types=("CrossAttnUpBlock2D",) * count,
        block_out_channels=shape.denoiser,
        layers_per_block=1,
        cross_attention_dim=shape.text,
        attention_head_dim=shape.heads,
        norm_num_groups=shape.groups,
    )


def _text_encoder(shape: Shape, tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.text,
            intermediate_size=4 * shape.text,
            projection_dim=shape.text,
            num_hidden_layers=shape.text_layers,
            num_attention_heads=shape.heads,
            max_position_embeddings=shape.words,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _tokenizer(captions: Sequence[str], shape: Shape) -> Any:
    """CLIP's kind of tokenizer, its words from the captions."""
    from tokenizers import models, trainers
    from transformers import CLIPTokenizer

    plain = CLIPTokenizer().backend_tokenizer
    plain.model = models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix="")
    letters = _bytes_of_words()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocabulary,
        # letters that end a word are numbered as they come out of a hash table, and ties between
        # merges go by number; told as special they come in order, and are special to no one after
        special_tokens=["<|startoftext|>", "<|endoftext|>", *(f"{each}</w>" for each in letters)],
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    plain.train_from_iterator(captions, trainer)
    model = json.loads(plain.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ", 1)) for m in model["merges"]]
    vocabulary = dict(model["vocab"])
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=shape.words)


def _bytes_of_words() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _write(out: Path, denoiser: Any, vae: Any, encoder: Any, tokenizer: Any, schedule: Any) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with quiet():
        denoiser.save_pretrained(out / "unet")
        vae.save_pretrained(out / "vae")
        encoder.save_pretrained(out / "text_encoder")
        tokenizer.save_pretrained(out / "tokenizer")
        schedule.save_pretrained(out / "scheduler")
    write_json(
        out / INDEX,
        {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", "DDPMScheduler"],
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
        },
    )
