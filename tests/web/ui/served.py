"""The pages over a store, served for real, with a stand-in for the engine behind the chat API."""

import asyncio
import contextlib
import json
import threading
import time

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse

from lamina.web.ui.routes import router

PIECE_SECONDS = 0.01


def answer(model, messages):
    """A deterministic answer that tells who was asked what, after how many turns."""
    asked = messages[-1]["content"]
    return f"{model} heard {asked!r} as turn {len(messages)}."


def app(store, *, key=None, reply=answer):
    """Pages and a stand-in for `/v1/chat/completions`; with `key`, both want it."""

    def check(request: Request):
        if key is not None and request.headers.get("authorization") != f"Bearer {key}":
            raise HTTPException(401, "a key is needed")

    made = FastAPI()
    made.include_router(router(store, dependencies=[Depends(check)]))

    @made.post("/v1/chat/completions", dependencies=[Depends(check)])
    async def chat(request: Request):
        body = await request.json()
        assert body["stream"] is True
        if body["model"].startswith("broken"):
            said = {"message": "this stack cannot be loaded", "type": "server_error"}
            return JSONResponse({"error": said}, status_code=500)
        return StreamingResponse(stream(body, reply), media_type="text/event-stream")

    return made


async def stream(body, reply):
    text = reply(body["model"], body["messages"])
    pieces = text.split(" ")
    for index, word in enumerate(pieces):
        delta = {"content": word if index == 0 else f" {word}"}
        yield event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        await asyncio.sleep(PIECE_SECONDS)
    yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    yield event({"choices": [], "usage": {"completion_tokens": len(pieces)}})
    yield "data: [DONE]\n\n"


def event(value):
    return f"data: {json.dumps(value)}\n\n"


@contextlib.contextmanager
def served(made):
    """The address of an app that answers until the block ends."""
    config = uvicorn.Config(made, host="127.0.0.1", port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "the server died"
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"
