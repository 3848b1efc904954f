"""`POST /v1/images/generations`: OpenAI's way to ask for images, for stacks that draw."""

import base64
import secrets
import threading
import time
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from lamina.core.errors import UsageError
from lamina.core.seeds import derive
from lamina.flows.hosting import Host
from lamina.stack.resolve import ResolvedStack
from lamina.web.desk import Desk, caller_of
from lamina.web.schema import REFUSALS, Ignored

MOST_IMAGES = 8
MOST_STEPS = 200


class ImagesRequest(Ignored):
    """What is asked; OpenAI's parameters, and `seed`, `steps`, `guidance` and `negative_prompt`."""

    model: str
    """A stack over an image base."""
    prompt: Annotated[str, Field(min_length=1, max_length=4000)]
    n: Annotated[int, Field(ge=1, le=MOST_IMAGES)] | None = None
    """Images (1)."""
    size: str | None = None
    """`auto`, or the size that the base draws: no other can be had."""
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    """The same seed draws the same images (new ones each time)."""
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    guidance: Annotated[float, Field(ge=1, le=50)] | None = None
    negative_prompt: Annotated[str, Field(max_length=4000)] | None = None


class Image(BaseModel):
    """One image."""

    b64_json: str
    """A PNG file."""
    seed: int


class Images(BaseModel):
    """The answer."""

    created: int
    data: list[Image]
    size: str


def router(desk: Desk) -> APIRouter:
    """The route."""
    routes = APIRouter()
    studio = Studio(desk.host)

    @routes.post("/v1/images/generations", summary="Draw images", responses={**REFUSALS})
    async def generate(asked: ImagesRequest, request: Request) -> Images:
        allowed = caller_of(request).stacks
        stack = await run_in_threadpool(desk.host.resolve, asked.model, allowed)
        if desk.settings.log_contents:
            request.state.record["prompt"] = asked.prompt
        return await run_in_threadpool(studio.draw, stack, asked)

    return routes


class Studio:
    """One stack that draws is kept in memory; one request draws at a time."""

    def __init__(self, host: Host) -> None:
        self._host, self._lock = host, threading.Lock()
        self._kept: tuple[str, object] | None = None

    def draw(self, stack: ResolvedStack, asked: ImagesRequest) -> Images:
        """Raises UsageError for a stack that talks, and for a size that the base does not draw."""
        from lamina.bases.draw import Style  # torch
        from lamina.flows.draw import Painter

        if not stack.draws:
            raise UsageError(
                f"{asked.model} talks, it does not draw", hint="ask it at /v1/chat/completions"
            )
        plain = Style()
        style = Style(
            steps=asked.steps or plain.steps,
            guidance=asked.guidance or plain.guidance,
            negative=asked.negative_prompt or "",
        )
        first = secrets.randbits(53) if asked.seed is None else asked.seed
        count = asked.n or 1
        seeds = [first, *(derive(first, "image", n) for n in range(1, count))]
        with self._lock:
            if self._kept is None or self._kept[0] != stack.digest:
                self._kept = None  # before the next one is loaded
                self._kept = stack.digest, Painter(self._host.store, stack)
            hand = self._kept[1]
            assert isinstance(hand, Painter)
            size = f"{hand.side}x{hand.side}"
            if asked.size not in (None, "auto", size):
                raise UsageError(f"{asked.model} draws {size}, not {asked.size}", hint="size: auto")
            files = hand.draw([asked.prompt] * count, seeds, style)
        drawn = [
            Image(b64_json=base64.b64encode(file).decode(), seed=seed)
            for file, seed in zip(files, seeds, strict=True)
        ]
        return Images(created=int(time.time()), data=drawn, size=size)
