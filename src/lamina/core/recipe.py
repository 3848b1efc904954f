"""The recipe: everything that decides what a layer becomes, besides its base, parents and data.

Every default of training lives here and nowhere else.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from lamina.core.values import Value

ALL_LINEAR = "all-linear"
AS_IT_FITS: dict[str, object] = {"pass_tokens": None, "checkpointing": False}
"""Keys that are about one machine's memory, opened again for another training."""

Scaling = Literal["lora", "rslora"]
Overlong = Literal["split", "truncate", "refuse"]
ScorerName = Literal[
    "loss", "exact", "numeric", "choice", "tool_call", "denoise", "retrieve", "colour"
]
Rank = Annotated[int, Field(ge=1, le=4096)]


class Diffusion(Value):
    """What of a recipe is about images alone."""

    min_snr: Annotated[float, Field(ge=0)] = 5.0
    """Errors at little noise count as if the signal were at most this many times the noise
    (arXiv:2303.09556); 0: all errors count the same."""
    dropped: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of captions left out, so that guidance goes on to work (arXiv:2207.12598)."""


class Recipe(Value):
    """How a layer is trained. `lamina train --recipe FILE` reads this from TOML or JSON."""

    rank: Rank = 16
    """Rank of every low-rank update, but for those of `ranks`."""
    ranks: dict[str, Rank] | None = None
    """Other ranks by module name or its suffix (whole dotted parts: 'q_proj', 'mlp.down_proj'); of
    several that fit, the longest. The scale stays that of `rank`, so only with scaling 'lora'."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Scale numerator; None means 2 x rank (Biderman et al., arXiv:2405.09673)."""
    scaling: Scaling = "lora"
    """'lora': alpha / rank (arXiv:2106.09685); 'rslora': alpha / sqrt(rank) (arXiv:2312.03732)."""
    targets: tuple[str, ...] = (ALL_LINEAR,)
    """Which linears: 'all-linear', or suffixes of module names such as 'q_proj'; of images
    'all-linear' is the denoiser's attention, 'conv' adds its blocks' convolutions, and
    'text_encoder' the text encoder's linears."""
    lr: Annotated[float, Field(gt=0, le=1)] = 5e-4
    """Peak learning rate of AdamW; about ten times that of full fine-tuning."""
    lr_ratio: Annotated[float, Field(ge=1, le=1000)] = 1.0
    """Learning rate of B as a multiple of A's, which is `lr` (LoRA+, arXiv:2402.12354)."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the training rows; ignored when `steps` is set."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimiser steps of the schedule; None derives them from `epochs`."""
    stop_after: Annotated[int, Field(ge=1)] | None = None
    """Stop at this step although the schedule is longer (a run cut short by its time limit)."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Use this many minutes of training, at most; resolved into `steps` when trained."""
    batch_tokens: Annotated[int, Field(ge=16)] = 2048
    """Tokens in one optimiser step, padding included."""
    pass_tokens: Annotated[int, Field(ge=16)] | None = None
    """Tokens that go through the model at once, where memory is short: a step's gradient is then
    the sum of several passes (a longer row is a pass of its own). None: the whole step's."""
    checkpointing: bool = False
    """Keep each decoder layer's input only and compute the layer again on the way back: the same
    gradients, less memory, more time (arXiv:1604.06174)."""
    max_length: Annotated[int, Field(ge=16)] = 1024
    """Longest sequence, in tokens."""
    overlong: Overlong = "split"
    """A longer row is split into windows, truncated at the end, or refused; always counted."""
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the steps in which the learning rate rises linearly; then cosine."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """The same in steps; wins over `warmup`. Set when a time limit resolved the steps."""
    schedule: Literal["cosine", "trapezoid"] | None = None
    """After the warm-up: a cosine down to `final_lr`; or constant, then linear down over the last
    `decay` share (arXiv:2405.18392), whose length may be decided while it runs. None: trapezoid
    with `max_minutes`, cosine otherwise."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of the steps in which a trapezoid comes down: long, as short runs gain most then."""
    final_lr: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Learning rate at the end, as a share of the peak."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest global norm of the gradient."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decay rates; 0.99 because runs are short."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the rows kept out by content hash for the exam."""
    held_out_max: Annotated[int, Field(ge=1)] = 200
    """Most held-out rows in the exam; the rest of the held-out share is left unused."""
    eval_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between two held-out losses; None: about ten times, at most a tenth of the work."""
    eval_rows: Annotated[int, Field(ge=1)] = 32
    """Held-out rows looked at during training."""
    patience: Annotated[int, Field(ge=0)] = 4
    """Stop after this many held-out losses in a row without a new best; 0 (or None) never stops
    early, nor do fewer than four held-out rows."""
    rehearsal: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the training tokens that comes from the rehearsal sets of the layers beneath."""
    rehearse: Literal["parent", "labels"] = "parent"
    """What old rows teach: what the stack said of them before training, or their own labels."""
    protect: Annotated[float, Field(ge=0, lt=1)] = 0.7
    """Keep the update off the inputs of old rows: off the directions that hold this share of them
    (arXiv:2103.09762). 0: anything may move; nearer to 1: less is forgotten, less is learned."""
    known: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """A row is known where each of its tokens had this probability at least when it was last
    learned, and is left out of the next passes (selective backprop, arXiv:1910.00762). What is
    left out, old rows too, is looked at from the third pass on, and learned again where it got
    lost. The run ends when all is known; its last factors count. 0: every pass takes all."""
    drift: Annotated[float, Field(ge=0)] = 0.0
    """Pull back to the factors that a warm start began with: each step takes the share
    learning rate x drift of the way (L2-SP, arXiv:1802.01483, decoupled as in AdamW)."""
    above: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Train only above this share of the decoder's layers: a warm start keeps its factors below as
    they are, a fresh layer has none there. The way back ends where training does, so that steps
    cost less. 0: all of them."""
    exams: tuple[ScorerName, ...] | None = None
    """Scorers of the layer's own exam; None picks them from the data."""
    diffusion: Diffusion | None = None
    """Over an image base; None: its defaults."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of the products; factors and optimiser state are always float32."""

    @field_validator("patience", mode="before")
    @classmethod
    def _none_is_never(cls, value: object) -> object:
        return 0 if value is None else value  # what is None is not written down

    @model_validator(mode="after")
    def _length_can_be_left_open(self) -> Self:
        if self.max_minutes is not None and (self.schedule == "cosine" or self.decay == 1):
            raise ValueError("max_minutes needs a trapezoid schedule with decay below 1")
        return self

    @model_validator(mode="after")
    def _one_scale(self) -> Self:
        if self.ranks and self.scaling == "rslora":
            raise ValueError("ranks need scaling 'lora': 'rslora' has another scale for each rank")
        return self

    @property
    def alpha_value(self) -> float:
        """alpha with its default filled in."""
        return float(2 * self.rank) if self.alpha is None else self.alpha

    @property
    def at_once(self) -> int:
        """Most tokens in one pass, padding included, longer rows aside."""
        return min(self.batch_tokens, self.pass_tokens or self.batch_tokens)

    @property
    def shape(self) -> Literal["cosine", "trapezoid"]:
        """The schedule with its default filled in."""
        return self.schedule or ("cosine" if self.max_minutes is None else "trapezoid")

    @property
    def scale(self) -> float:
        """The factor s in W + s B A."""
        divisor = self.rank if self.scaling == "lora" else self.rank**0.5
        return self.alpha_value / divisor
