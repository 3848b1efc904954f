"""`GET /v1/models`: what may be asked."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from lamina.flows.hosting import Model
from lamina.web.desk import Desk, caller_of
from lamina.web.schema import REFUSALS


class ModelCard(BaseModel):
    """A stack or a base."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["lamina"] = "lamina"
    stack: str
    """Digest of what the name means now."""
    base: str
    """Identity of its base."""


class ModelList(BaseModel):
    """All that may be asked."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def router(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/v1/models", summary="List stacks and bases", responses=REFUSALS)
    async def listing(request: Request) -> ModelList:
        found = await run_in_threadpool(desk.host.models, caller_of(request).stacks)
        return ModelList(data=[_card(model) for model in found])

    @routes.get("/v1/models/{model}", summary="One stack or base", responses=REFUSALS)
    async def one(model: str, request: Request) -> ModelCard:
        allowed = caller_of(request).stacks
        return _card(await run_in_threadpool(desk.host.model, model, allowed))

    return routes


def _card(model: Model) -> ModelCard:
    return ModelCard(id=model.id, created=model.created, stack=model.stack, base=model.base)
