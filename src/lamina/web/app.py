"""The application: routes, the guard before them, errors in OpenAI's form."""

from collections.abc import Mapping
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from lamina.core.errors import LaminaError
from lamina.core.version import __version__
from lamina.flows.hosting import Host
from lamina.web import chat, images, models, text
from lamina.web.desk import Desk, needs_admin, needs_all_stacks
from lamina.web.errors import Refusal, invalid, refusal
from lamina.web.guard import CLIENT_LEFT, Guard
from lamina.web.keys import Keys
from lamina.web.metrics import CONTENT_TYPE, Metrics
from lamina.web.settings import Settings
from lamina.web.ui import routes as ui
from lamina.web.waiting import ClientLeft


def create_app(host: Host, settings: Settings) -> FastAPI:
    """The API over `host`, guarded."""
    keys = None if settings.keys_file is None else Keys(settings.keys_file)
    desk = Desk(host, settings, Metrics(host.stats), keys)
    app = FastAPI(
        title="lamina",
        summary="Stacks of low-rank layers behind the OpenAI API",
        version=__version__,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.desk = desk
    for part in (models, chat, text, images):
        app.include_router(part.router(desk))
    app.include_router(ui.router(host.store, dependencies=[Depends(needs_all_stacks)]))
    _add_health(app, desk)
    _add_errors(app)
    app.add_middleware(Guard, desk=desk)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    return app


def _add_health(app: FastAPI, desk: Desk) -> None:
    @app.get("/healthz", summary="Whether the server answers")
    async def healthz() -> Mapping[str, str]:
        return {"status": "ok", "version": __version__}

    @app.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=PlainTextResponse,
        dependencies=[Depends(needs_admin)],
    )
    def metrics() -> Response:
        return Response(desk.metrics.text(), media_type=CONTENT_TYPE)


def _add_errors(app: FastAPI) -> None:
    """Each kind of error as an answer."""

    async def ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, LaminaError)
        return refusal(error).response()

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return error.response()

    async def unreadable(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return invalid(error.errors()).response()

    async def other(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        texts = {
            404: f"nothing is at {request.url.path}; the API is under /v1, as OpenAI's is",
            405: f"{request.method} is not for {request.url.path}",
        }
        return Refusal(
            error.status_code,
            texts.get(error.status_code, str(error.detail)),
            headers=error.headers or {},
        ).response()

    async def left(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_LEFT)

    handlers: dict[Any, Any] = {
        LaminaError: ours,
        Refusal: refused,
        RequestValidationError: unreadable,
        HTTPException: other,
        ClientLeft: left,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
