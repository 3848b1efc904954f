"""The pages and the JSON that they read, as a router that the app includes.

`/` and `/ui/static/…` hold nothing of the store and need no key; `/ui/api/…` does, through
`dependencies`. No page loads anything from elsewhere, and the policy sent with it forbids it.
"""

import hashlib
import mimetypes
from collections.abc import Callable, Coroutine, Sequence
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.params import Depends
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from lamina.core.errors import (
    LaminaError,
    ReadOnlyStoreError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    UnknownNameError,
    UsageError,
)
from lamina.core.version import __version__
from lamina.flows import (
    cost_plot,
    cost_text,
    costs,
    graph,
    picture,
    progress,
    runs,
    scoreboard,
    spending,
    votes,
)
from lamina.store.layout import Store

POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'; img-src 'self' data:"
)
_SAFE = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
MOST_BYTES = 4 << 20
"""Longest body of a vote."""
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_STATUS: tuple[tuple[type[LaminaError], int], ...] = (
    (UnknownNameError, 404),
    (UsageError, 400),
    (StoreBusyError, 503),
    (StoreFullError, 507),
    (ReadOnlyStoreError, 403),
    (StoreError, 500),
)


class _Route(APIRoute):
    """Turns our errors into JSON that says what to do next; nothing of it is kept by browsers."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                response = await inner(request)
            except LaminaError as error:
                status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
                response = _refused(status, error)
            response.headers["Cache-Control"] = "no-store"
            response.headers["X-Content-Type-Options"] = "nosniff"
            return response

        return handler


def _refused(status: int, error: LaminaError) -> JSONResponse:
    said = {"message": error.message, "faults": list(error.faults), "hint": error.hint}
    return JSONResponse({"error": said}, status_code=status)


class _Kept:
    """An answer that is worked out again only after the store's index has changed."""

    def __init__(self, store: Store, work: Callable[[Store], Any]) -> None:
        self._store, self._work = store, work
        self._known: tuple[object, Any] | None = None

    def __call__(self) -> Any:
        index = self._store.entries()  # the same tuple while the index's bytes are the same
        known = self._known
        if known is None or known[0] is not index:
            known = (index, self._work(self._store))
            self._known = known
        return known[1]


def router(store: Store, *, dependencies: Sequence[Depends] = ()) -> APIRouter:
    """Pages over one store. `dependencies` guard all that tells or changes something of it."""
    found = APIRouter()
    found.include_router(_pages())
    found.include_router(api(store), prefix="/ui/api", dependencies=list(dependencies))
    return found


# -- pages -----------------------------------------------------------------------------------------


def _pages() -> APIRouter:
    pages = APIRouter()
    static = {item.name: _file(item.name, item.read_bytes()) for item in _static()}

    @pages.get("/", include_in_schema=False)
    def index(request: Request) -> Response:
        """The page; it loads what it shows."""
        return _serve(request, static["index.html"])

    @pages.get("/ui/static/{name}", include_in_schema=False)
    def file(request: Request, name: str) -> Response:
        """A style, module or icon."""
        known = static.get(name)
        return _serve(request, known) if known else Response("not found", 404, _SAFE)

    return pages


def _static() -> list[Any]:
    folder = files("lamina.web.ui").joinpath("static")
    return [item for item in folder.iterdir() if item.is_file()]


def _file(name: str, data: bytes) -> tuple[bytes, dict[str, str]]:
    suffix = name[name.rfind(".") :]
    kind = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    kind += "; charset=utf-8" if kind.startswith("text/") else ""
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    return data, _SAFE | {"Content-Type": kind, "ETag": tag, "Cache-Control": "no-cache"}


def _serve(request: Request, known: tuple[bytes, dict[str, str]]) -> Response:
    data, headers = known
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers)


# -- JSON ------------------------------------------------------------------------------------------


def api(store: Store) -> APIRouter:
    """What the pages read and write, without its prefix and unguarded: see `router`."""
    found = APIRouter(route_class=_Route, include_in_schema=False)
    gallery, lineage = _Kept(store, picture.gallery), _Kept(store, graph.graph)
    paid = _Kept(store, costs.costs)

    @found.get("/stacks")
    def stacks() -> Response:
        """Bases and the newest version of every name."""
        return JSONResponse({"version": __version__, "home": str(store.root), **gallery()})

    @found.get("/stacks/{reference}")
    def stack(reference: str) -> Response:
        """One stack's base and layers."""
        return JSONResponse(picture.picture(store, reference))

    @found.get("/stacks/{reference}/cost")
    def spent(reference: str) -> Response:
        """What one stack and all that led to it took, and a plot of it."""
        known = spending.spending(store, reference)
        return JSONResponse({**cost_text.to_json(known), "plot": cost_plot.plot(known)})

    @found.get("/exams/{name}")
    def exams(name: str) -> Response:
        """A name's versions and their results."""
        return JSONResponse(scoreboard.scoreboard(store, name))

    @found.get("/lineage")
    def whole(name: str | None = None) -> Response:
        """Every named version, or those that one name came from."""
        drawn = lineage() if name is None else graph.graph(store, name)
        return JSONResponse(drawn.to_json())

    @found.get("/cost")
    def cost() -> Response:
        """What each layer took."""
        return JSONResponse({"layers": paid()})

    @found.get("/runs")
    def all_runs() -> Response:
        """The newest training runs."""
        return JSONResponse({"runs": progress.progress(store)})

    @found.get("/runs/{run_id}")
    def run(run_id: str, offset: Annotated[int, Query(ge=0)] = 0) -> Response:
        """One run, and what it has said since `offset`."""
        known = runs.find(store, run_id)
        events, following = known.said(offset)
        told = {"run": progress.progress_of(known), "events": events, "offset": following}
        return JSONResponse(told)

    _votes(found, store)
    return found


def _votes(found: APIRouter, store: Store) -> None:
    def told() -> dict[str, Any]:
        cast = votes.votes(store)
        where = str(votes.path_of(store))
        return {"path": where, "count": len(cast), "tally": votes.tally(cast)}

    @found.get("/votes")
    def all_votes() -> Response:
        """How many votes there are, where they lie, and who won."""
        return JSONResponse(told())

    @found.post("/votes")
    async def vote(request: Request) -> Response:
        """Keep one."""
        ballot = votes.Ballot.parse(await _body(request), "the vote")
        kept = await run_in_threadpool(votes.cast, store, ballot)
        counted = await run_in_threadpool(told)
        return JSONResponse({**counted, "vote": kept.model_dump(mode="json")}, status_code=201)


async def _body(request: Request) -> bytes:
    """A JSON body from our own page: other sites' pages cannot send this type unasked."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UsageError("a vote is sent as application/json")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise UsageError("votes are cast on this server's own page")
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_BYTES:
            raise UsageError(f"a vote has at most {MOST_BYTES} bytes")
    return data
