"""`POST /v1/chat/completions`."""

import uuid
from collections.abc import AsyncGenerator

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from lamina.data.example import ToolCall
from lamina.serve.request import Token
from lamina.tokens.reading import AnswerReader
from lamina.web.answers import Answers, End
from lamina.web.asking import Job, chat_job
from lamina.web.chat_schema import (
    Call,
    Called,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    ChunkChoice,
    Ending,
    Logprobs,
    Said,
)
from lamina.web.delivery import Identity, deliver, event
from lamina.web.desk import Desk, caller_of
from lamina.web.logprobs import of_chat
from lamina.web.schema import REFUSALS, Usage


def router(desk: Desk) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post(
        "/v1/chat/completions",
        summary="Continue a conversation",
        responses={200: {"model": ChatCompletion}, **REFUSALS},
    )
    async def chat(asked: ChatRequest, request: Request) -> Response:
        allowed = caller_of(request).stacks
        job = await run_in_threadpool(chat_job, desk.host, asked, allowed)
        if desk.settings.log_contents:
            request.state.record["messages"] = [m.model_dump() for m in asked.messages]
        answers = Answers(job.served, job.requests, job.stops, desk.settings.timeout_seconds)
        talk = _Talk(asked, job, answers)
        done = desk.open(request, job.stack, answers, talk.contents)
        stream = talk.stream() if asked.stream else None
        return await deliver(request, answers, done, stream, talk.whole)

    return routes


class _Choice:
    """One answer as it grows."""

    def __init__(self, *, reads_calls: bool) -> None:
        self._reader = AnswerReader() if reads_calls else None
        self.content = ""
        self.calls: list[ToolCall] = []
        self.tokens: list[Token] = []
        self.ending: Ending | None = None

    def push(self, text: str) -> str:
        """More text -> more content."""
        more = text if self._reader is None else self._reader.push(text)
        self.content += more
        return more

    def end(self, *, by_length: bool, several: bool) -> str:
        """The answer is over -> the last of its content."""
        more = ""
        if self._reader is not None:
            rest = self._reader.end()
            more = rest.content
            self.calls = list(rest.calls if several else rest.calls[:1])
        self.content += more
        self.ending = "length" if by_length else "tool_calls" if self.calls else "stop"
        return more


class _Talk:
    """The answers of one request, told whole or in chunks."""

    def __init__(self, asked: ChatRequest, job: Job, answers: Answers) -> None:
        self._asked, self._answers, self._served = asked, answers, job.served
        self._who = Identity.new("chatcmpl", asked.model, job.stack.digest)
        self._several = asked.parallel_tool_calls is not False
        reads = bool(asked.shown_tools)
        self._choices = [_Choice(reads_calls=reads) for _ in job.requests]

    def contents(self) -> list[str]:
        """What was said so far."""
        return [choice.content for choice in self._choices]

    async def whole(self) -> str:
        """All answers, as one document."""
        async for piece in self._answers.pieces():
            choice = self._choices[piece.index]
            if isinstance(piece, End):
                choice.end(by_length=piece.by_length, several=self._several)
            else:
                choice.push(piece.text)
                choice.tokens += piece.tokens
        document = ChatCompletion(
            object="chat.completion",
            **self._who.fields(),
            choices=[self._message(index) for index in range(len(self._choices))],
            usage=self._answers.usage(),
        )
        return document.model_dump_json(exclude_unset=True)

    async def stream(self) -> AsyncGenerator[str]:
        """Events: the role, pieces of content, calls as a whole, the ending, maybe the usage."""
        for index in range(len(self._choices)):
            yield self._chunk(index, Said(role="assistant", content=""))
        async for piece in self._answers.pieces():
            choice = self._choices[piece.index]
            if isinstance(piece, End):
                more = choice.end(by_length=piece.by_length, several=self._several)
                if more or choice.tokens:
                    yield self._chunk(piece.index, Said(content=more), choice)
                if choice.calls:
                    yield self._chunk(piece.index, Said(tool_calls=_calls(choice, stream=True)))
                yield self._chunk(piece.index, Said(), ending=choice.ending)
            else:
                choice.tokens += piece.tokens if self._asked.logprobs else ()
                more = choice.push(piece.text)
                if more:
                    yield self._chunk(piece.index, Said(content=more), choice)
        if self._asked.tells_usage:
            yield self._event([], self._answers.usage())

    def _message(self, index: int) -> ChatChoice:
        choice = self._choices[index]
        said = Said(role="assistant", content=choice.content or None, refusal=None)
        if choice.calls:
            said.tool_calls = _calls(choice, stream=False)
        elif said.content is None:
            said.content = ""
        assert choice.ending is not None
        return ChatChoice(
            index=index,
            message=said,
            logprobs=self._logprobs(choice),
            finish_reason=choice.ending,
        )

    def _logprobs(self, choice: _Choice) -> Logprobs | None:
        return of_chat(self._served, choice.tokens) if self._asked.logprobs else None

    def _chunk(
        self,
        index: int,
        said: Said,
        choice: _Choice | None = None,
        *,
        ending: Ending | None = None,
    ) -> str:
        told = ChunkChoice(index=index, delta=said, finish_reason=ending, logprobs=None)
        if choice is not None:
            told.logprobs = self._logprobs(choice)
            choice.tokens = []
        return self._event([told])

    def _event(self, choices: list[ChunkChoice], usage: Usage | None = None) -> str:
        chunk = ChatChunk(object="chat.completion.chunk", **self._who.fields(), choices=choices)
        if self._asked.tells_usage:
            chunk.usage = usage
        return event(chunk)


def _calls(choice: _Choice, *, stream: bool) -> list[Call]:
    found = []
    for index, call in enumerate(choice.calls):
        made = Call(
            id=f"call_{uuid.uuid4().hex[:24]}",
            type="function",
            function=Called(name=call.name, arguments=call.arguments),
        )
        if stream:
            made.index = index
        found.append(made)
    return found
