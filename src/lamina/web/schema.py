"""What requests have in common: strict bodies, and how tokens are drawn.

Parameters are OpenAI's, and a few more that local servers share (`top_k`, `min_p`,
`repetition_penalty`). A parameter that this server would not obey is refused, not ignored; those
that may be ignored without changing an answer are listed in `Ignored`.
"""

import secrets
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from lamina.bases.sampling import Sampling
from lamina.core.seeds import derive

MOST_CHOICES = 16
MOST_STOPS = 4

Penalty = Annotated[float, Field(ge=-2, le=2)]
StopText = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Body(BaseModel):
    """A request or a part of one: unknown keys, wrong types, NaN and infinities are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Body):
    """What a stream tells beside the answer."""

    include_usage: bool | None = None
    """End with a chunk that has the usage."""
    include_obfuscation: bool | None = None
    """Ignored: nothing is padded."""


class Ignored(Body):
    """Accepted and ignored, as OpenAI's clients send them: they change no answer."""

    user: str | None = None
    store: bool | None = None
    """Nothing is ever stored."""
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    """The cache of prompts finds what is shared by itself."""
    prompt_cache_retention: str | None = None
    service_tier: str | None = None


class Drawing(Ignored):
    """How tokens are drawn and when an answer ends."""

    model: str
    """A stack: a name, `name:v3`, a base's name, or `@` and a digest."""
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    """Answers to the same prompt (1)."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 is greedy (1)."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    """The same seed draws the same answer (a new one each time)."""
    stop: StopText | Annotated[list[StopText], Field(max_length=MOST_STOPS)] | None = None
    """Texts that end the answer; they are not told."""
    max_tokens: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    """Only empty: not supported."""

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return 1 if self.n is None else self.n

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def samplings(self) -> list[Sampling]:
        """One for each choice, seeds apart from one another."""
        plain = Sampling(temperature=1.0)
        given = {
            name: value
            for name in (
                "temperature",
                "top_p",
                "top_k",
                "min_p",
                "presence_penalty",
                "frequency_penalty",
                "repetition_penalty",
            )
            if (value := getattr(self, name)) is not None
        }
        seed = secrets.randbits(63) if self.seed is None else self.seed
        shared = {"temperature": plain.temperature} | given
        return [
            Sampling(**shared, seed=derive(seed, "choice", index)) for index in range(self.choices)
        ]


class CachedTokens(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int
    """Spared by the prefix cache."""


class Usage(BaseModel):
    """What was read and said."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class ErrorDetail(BaseModel):
    """What is wrong, and what to do."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """A refusal."""

    error: ErrorDetail


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in (
        (400, "The request cannot be answered as it is"),
        (401, "No key, or an unknown one"),
        (403, "Not for this key, or not from this origin"),
        (404, "No such model"),
        (413, "The body is too large"),
        (415, "The body is not application/json"),
        (429, "Too much for this key, or too much at once"),
        (500, "A bug"),
        (501, "An optional library is missing on the server"),
        (503, "The store cannot be read, or the server is shutting down"),
        (504, "The answer took too long"),
    )
}
