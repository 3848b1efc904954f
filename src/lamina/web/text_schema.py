"""`/v1/completions`: what is asked and what is answered."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from lamina.web.schema import MOST_CHOICES, Drawing, Usage

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
LONGEST = 16
"""Tokens of an answer where nothing is said, as OpenAI has it."""


class TextRequest(Drawing):
    """Continue texts, or token ids. Control tokens in a text are read as ordinary text."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=MOST_CHOICES)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_CHOICES)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """How many likely tokens to tell beside each one."""
    echo: Literal[False] | None = None
    """Not supported: the prompt is never repeated."""
    best_of: Annotated[int, Field(ge=1)] | None = None
    """Only as many as `n`: not supported."""
    suffix: None = None
    """Not supported."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.best_of is not None and self.best_of != self.choices:
            raise ValueError("best_of is not supported: leave it out, or give what n is")
        if len(self.prompts) * self.choices > MOST_CHOICES:
            raise ValueError(f"prompts times n may be {MOST_CHOICES} at most")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or ids."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        ids = [item for item in given if isinstance(item, int)]
        if ids:
            return [ids]
        return [item for item in given if not isinstance(item, int)]


class TextLogprobs(BaseModel):
    """Of each token, in order."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]
    """Characters of the answer before each token."""


class TextChoice(BaseModel):
    """One answer, or a piece of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class TextCompletion(BaseModel):
    """Answers, or an event of a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage | None = None
