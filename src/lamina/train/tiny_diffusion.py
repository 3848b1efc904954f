"""A small latent diffusion base from captioned images, trained from nothing on a processor.

An autoencoder first, then a denoiser together with its text encoder on the images' latents. What
comes out is an ordinary Stable Diffusion pipeline of diffusers, a few million parameters large. It
is no rival of a real one: it is what layers can be trained over where none can be downloaded.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lamina.bases.normal import write_json
from lamina.bases.pipeline_files import INDEX
from lamina.bases.quiet import quiet
from lamina.core.errors import DataError, MissingPartError, TrainInterrupted
from lamina.core.seeds import derive
from lamina.data.example import Example
from lamina.train.noising import Noising
from lamina.train.pictures import pictures

AUTOENCODER_SHARE = 0.3
"""Share of the time that goes into the autoencoder."""
BATCH = 32
AUTOENCODER_BATCH = 16
DROPPED = 0.1
"""Share of captions left out, for guidance (arXiv:2207.12598)."""
FEWEST = 16
"""Images that a base is made from at least."""
_KL = 1e-6
_EMA = 0.998

Report = Callable[[str, int, float, float], None]
"""Called with (stage, step, share of it done, loss)."""


@dataclass(frozen=True)
class Shape:
    """How large the models are."""

    side: int = 64
    """Pixels."""
    autoencoder: tuple[int, ...] = (32, 64, 64)
    """Channels; each but the first halves the picture."""
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


@dataclass(frozen=True)
class Length:
    """How long to train: so many minutes, or exactly so many steps of the denoiser."""

    minutes: float | None = 20.0
    steps: int | None = None


def build(
    examples: Sequence[Example],
    out: Path,
    shape: Shape,
    length: Length,
    *,
    seed: int = 0,
    prediction: str = "v_prediction",
    report: Report = lambda stage, step, share, loss: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train a base on captioned images and write it into `out`, a pipeline's folder.

    With `length.steps` the same images give the same base on one machine. Raises DataError,
    MissingPartError, TrainInterrupted (nothing is written then).
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
        clock = _Clock(length, AUTOENCODER_SHARE, should_stop)
        _train_autoencoder(vae, images, clock, seed, report)
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
        clock = _Clock(length, 1 - AUTOENCODER_SHARE, should_stop)
        noising = Noising.of(schedule.config)
        _train_denoiser(denoiser, encoder, latents * scale, words, noising, clock, seed, report)
    _write(out, denoiser, vae, encoder, tokenizer, schedule)


def _library() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise MissingPartError(
            "image bases need diffusers", hint="pip install 'lamina[images]'"
        ) from error
    return diffusers


class _Clock:
    """How far a stage is."""

    def __init__(self, length: Length, share: float, should_stop: Callable[[], bool]) -> None:
        self._began, self._step, self._should_stop = time.perf_counter(), 0, should_stop
        self._seconds = None if length.minutes is None else 60 * share * length.minutes
        self._steps = length.steps

    def share(self) -> float:
        """Of the stage that is done, 0 to 1."""
        if self._steps is not None:
            return min(1.0, self._step / self._steps)
        assert self._seconds is not None
        return min(1.0, (time.perf_counter() - self._began) / self._seconds)

    def step(self) -> int:
        """One more. Raises TrainInterrupted."""
        if self._should_stop():
            raise TrainInterrupted("stopped; no base was written", hint="build it again")
        self._step += 1
        return self._step


def _rate(peak: float, share: float) -> float:
    """A short rise, then a cosine down to a hundredth."""
    falling = 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * share))
    return peak * min(1.0, share / 0.02 + 0.01, falling)


def _fit(
    modules: Sequence[nn.Module],
    peak: float,
    clock: _Clock,
    loss_of: Callable[[torch.Generator], Tensor],
    report: Report,
    stage: str,
    seed: int,
) -> None:
    """Minimise until the clock says so; the modules end with a running mean of their weights."""
    weights: list[Tensor] = [p for module in modules for p in module.parameters()]
    mean = [p.detach().clone() for p in weights]
    adam = torch.optim.AdamW(weights, lr=peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    draw = torch.Generator().manual_seed(derive(seed, stage))
    smooth = None
    while (share := clock.share()) < 1:
        step = clock.step()
        for group in adam.param_groups:
            group["lr"] = _rate(peak, share)
        adam.zero_grad(set_to_none=True)
        loss = loss_of(draw)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(mean, weights, 1 - min(_EMA, step / (step + 10)))
        now = float(loss.detach())
        smooth = now if smooth is None else 0.98 * smooth + 0.02 * now
        report(stage, step, share, smooth)
    with torch.no_grad():
        for weight, kept in zip(weights, mean, strict=True):
            weight.copy_(kept)


def _train_autoencoder(vae: Any, images: Tensor, clock: _Clock, seed: int, report: Report) -> None:
    def loss_of(draw: torch.Generator) -> Tensor:
        chosen = torch.randint(len(images), (AUTOENCODER_BATCH,), generator=draw)
        x = images[chosen]
        found = vae.encode(x).latent_dist
        noise = torch.randn(found.mean.shape, generator=draw)
        y = vae.decode(found.mean + found.std * noise).sample
        far = (y - x).abs().mean() + (y - x).square().mean()
        return far + _KL * found.kl().mean()  # type: ignore[no-any-return]

    vae.train()
    _fit([vae], 2e-3, clock, loss_of, report, "autoencoder", seed)
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
    clock: _Clock,
    seed: int,
    report: Report,
) -> None:
    def loss_of(draw: torch.Generator) -> Tensor:
        chosen = torch.randint(len(latents), (BATCH,), generator=draw)
        x = latents[chosen]
        times = noising.times(torch.rand(BATCH, generator=draw))
        noise = torch.randn(x.shape, generator=draw)
        dropped = torch.rand(BATCH, generator=draw) < DROPPED
        ids = words[torch.where(dropped, len(words) - 1, chosen)]
        said = denoiser(
            noising.noisy(x, noise, times), timestep=times, encoder_hidden_states=encoder(ids)[0]
        ).sample
        each = (said - noising.target(x, noise, times)).square().mean((1, 2, 3))
        return (each * noising.weight(times, 5.0)).mean()  # type: ignore[no-any-return]

    denoiser.train()
    encoder.train()
    _fit([denoiser, encoder], 1e-3, clock, loss_of, report, "denoiser", seed)
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
        latent_channels=4,
        norm_num_groups=shape.groups,
        sample_size=shape.side,
        mid_block_add_attention=False,
    )


def _denoiser(diffusers: Any, shape: Shape) -> Any:
    count = len(shape.denoiser)
    return diffusers.UNet2DConditionModel(
        sample_size=shape.latents,
        in_channels=4,
        out_channels=4,
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
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocabulary,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=_bytes_of_words(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    plain.train_from_iterator(captions, trainer)
    model = json.loads(plain.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ", 1)) for m in model["merges"]]
    vocabulary = dict(model["vocab"])
    for byte in _bytes_of_words():  # a letter that ends a word, and no caption has ended with
        vocabulary.setdefault(f"{byte}</w>", len(vocabulary))
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
