"""Answers to a client: whole as one document, or as events; over when it leaves."""

import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from lamina.core.digest import short
from lamina.core.errors import LaminaError
from lamina.web.answers import Answers
from lamina.web.errors import Refusal, refusal
from lamina.web.guard import BUG, where_it_broke
from lamina.web.waiting import EventStream, while_connected

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class Identity:
    """What every document and chunk of one answer says about it."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    @classmethod
    def new(cls, kind: str, model: str, stack: str) -> "Identity":
        """Of an answer by the stack with this digest, asked for as `model`."""
        return cls(f"{kind}-{uuid.uuid4().hex}", int(time.time()), model, short(stack))

    def fields(self) -> dict[str, Any]:
        """As keyword arguments."""
        return dict(vars(self))


def event(value: BaseModel) -> str:
    """One server-sent event."""
    return f"data: {value.model_dump_json(exclude_unset=True)}\n\n"


async def deliver(
    request: Request,
    answers: Answers,
    done: Callable[[], None],
    stream: AsyncGenerator[str] | None,
    whole: Callable[[], Awaitable[str]],
) -> Response:
    """Start the answers and tell them: by `stream` where there is one, else by `whole`.

    `done` is called once, whatever happens. Raises LaminaError, Refusal, ClientLeft.
    """
    try:
        await while_connected(request.receive, run_in_threadpool(answers.start))
        if stream is not None:
            return EventStream(_to_the_end(request, stream), done)
        text = await while_connected(request.receive, _in_time(whole))
    except BaseException:
        done()
        raise
    done()
    return Response(text, media_type="application/json")


async def _in_time(whole: Callable[[], Awaitable[str]]) -> str:
    try:
        return await whole()
    except TimeoutError:
        raise _LATE from None


async def _to_the_end(request: Request, events: AsyncGenerator[str]) -> AsyncGenerator[str]:
    """The events, then `[DONE]`; or, as the status is sent already, an event with what is wrong."""
    try:
        async with contextlib.aclosing(events):
            async for one in events:
                yield one
        yield DONE
    except TimeoutError:
        yield _told(request, _LATE)
    except Refusal as error:
        yield _told(request, error)
    except LaminaError as error:
        yield _told(request, refusal(error))
    except Exception as error:
        request.state.record["bug"] = where_it_broke(error)
        yield _told(request, BUG)


def _told(request: Request, wrong: Refusal) -> str:
    request.state.record["failed"] = wrong.code or wrong.status
    return f"data: {json.dumps(wrong.body())}\n\n"


_LATE = Refusal(504, "the answer took longer than this server lets one", "timeout")
