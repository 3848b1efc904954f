"""What every request passes before any route: who it is for, who sends it, how large it is.

The outermost of our own layers: it also logs each request, counts it, and turns whatever is raised
into an answer in OpenAI's form.
"""

import asyncio
import time
import traceback
import uuid
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lamina.core.errors import LaminaError
from lamina.web.desk import Caller, Desk
from lamina.web.errors import Refusal, refusal
from lamina.web.settings import is_loopback
from lamina.web.waiting import ClientLeft

OPEN = frozenset({"/", "/healthz", "/openapi.json"})
PAGES, PAGES_API = "/ui/", "/ui/api/"
"""Pages hold nothing of anybody's; what they show comes through their API."""
BODY_SECONDS = 60.0
CLIENT_LEFT = 499
"""Status in logs and metrics of an answer that nobody waited for (nginx's)."""
BUG = Refusal(500, "a bug in lamina; its server's log has the traceback", "bug")
_SHOWN_PATH = 200


class Guard:
    """Lets requests through to `app`, or refuses them."""

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self._app, self._desk = app, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        record: dict[str, Any] = {
            "id": f"req_{uuid.uuid4().hex}",
            "method": scope["method"],
            "path": scope["path"][:_SHOWN_PATH],
        }
        scope.setdefault("state", {})["record"] = record
        more = {"x-request-id": record["id"]}
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(k.encode(), v.encode()) for k, v in more.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            try:
                self._admit(scope, more)
                await self._app(scope, await self._body(scope, receive), answer)
            except (LaminaError, Refusal) as error:
                found = error if isinstance(error, Refusal) else refusal(error)
                if not status:
                    await found.response()(scope, receive, answer)
            except ClientLeft:
                status = CLIENT_LEFT
            except Exception as error:
                record["bug"] = where_it_broke(error)
                if not status:
                    await BUG.response()(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "none")
            self._desk.metrics.requested(route, status, seconds)
            self._log(record, status, seconds)

    def _admit(self, scope: Scope, more: dict[str, str]) -> None:
        """Raises Refusal; else notes the caller, and headers for the answer in `more`."""
        headers, path = Headers(scope=scope), scope["path"]
        if self._desk.settings.loopback and not is_loopback(_host_name(headers.get("host", ""))):
            raise Refusal(403, "this server answers under localhost and 127.0.0.1 only", "bad_host")
        if scope["method"] in ("POST", "PUT", "PATCH"):
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise Refusal(415, "the body has to be application/json", "not_json")
        if path in OPEN or (path.startswith(PAGES) and not path.startswith(PAGES_API)):
            return
        caller = self._caller(headers.get("authorization", ""))
        scope["state"]["caller"] = caller
        if caller.key is None:
            return
        scope["state"]["record"]["key"] = caller.key.name
        if path.startswith("/v1/"):
            standing = self._desk.limits.ask(caller.key)
            more.update(standing.headers)
            if standing.refused is not None:
                retry = {"retry-after": str(standing.retry_after)}
                raise Refusal(429, standing.refused, "rate_limit_exceeded", None, retry)

    def _caller(self, authorization: str) -> Caller:
        keys = self._desk.keys
        if keys is None or (self._desk.settings.loopback and not keys.all()):
            return Caller(None)
        kind, _, secret = authorization.partition(" ")
        found = keys.find(secret.strip()) if kind.lower() == "bearer" else None
        if found is None:
            said = "this key is unknown" if authorization else "a key is needed"
            raise Refusal(
                401,
                f"{said}: Authorization: Bearer lamina-…; `lamina access add NAME` makes one",
                "invalid_api_key",
                None,
                {"www-authenticate": "Bearer"},
            )
        return Caller(found)

    async def _body(self, scope: Scope, receive: Receive) -> Receive:
        """The whole body, read before any route runs. Raises Refusal, ClientLeft."""
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return receive
        most = self._desk.settings.body_bytes
        too_large = Refusal(413, f"the body may have {most} bytes at most", "body_too_large")
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise Refusal(408, f"the body took over {BODY_SECONDS:g} seconds") from None
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again

    def _log(self, record: dict[str, Any], status: int, seconds: float) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._desk.settings.log(
            {
                "time": now,
                "event": "request",
                **record,
                "status": status,
                "ms": round(1000 * seconds, 1),
            }
        )


def where_it_broke(error: BaseException) -> str:
    """A traceback without the error's own words, which may quote what somebody sent."""
    return "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__


def _host_name(header: str) -> str:
    """The Host header without its port: `localhost`, `127.0.0.1`, `::1`."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]
