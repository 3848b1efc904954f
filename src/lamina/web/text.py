"""`POST /v1/completions`."""

from collections.abc import AsyncGenerator

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from lamina.serve.request import Token
from lamina.web.answers import Answers, End
from lamina.web.asking import Job, text_job
from lamina.web.delivery import Identity, deliver, event
from lamina.web.desk import Desk, caller_of
from lamina.web.logprobs import of_text
from lamina.web.schema import REFUSALS
from lamina.web.text_schema import TextChoice, TextCompletion, TextLogprobs, TextRequest


def router(desk: Desk) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post(
        "/v1/completions",
        summary="Continue a text",
        responses={200: {"model": TextCompletion}, **REFUSALS},
    )
    async def complete(asked: TextRequest, request: Request) -> Response:
        allowed = caller_of(request).stacks
        job = await run_in_threadpool(text_job, desk.host, asked, allowed)
        if desk.settings.log_contents:
            request.state.record["prompts"] = asked.prompts
        answers = Answers(job.served, job.requests, job.stops, desk.settings.timeout_seconds)
        texts = _Texts(asked, job, answers)
        done = desk.open(request, job.stack, answers, texts.contents)
        stream = texts.stream() if asked.stream else None
        return await deliver(request, answers, done, stream, texts.whole)

    return routes


class _Choice:
    """One answer as it grows."""

    def __init__(self) -> None:
        self.text = ""
        self.offset = 0
        self.tokens: list[Token] = []
        self.by_length = False


class _Texts:
    """The answers of one request, told whole or in chunks."""

    def __init__(self, asked: TextRequest, job: Job, answers: Answers) -> None:
        self._asked, self._answers, self._served = asked, answers, job.served
        self._who = Identity.new("cmpl", asked.model, job.stack.digest)
        self._choices = [_Choice() for _ in job.requests]

    def contents(self) -> list[str]:
        """What was said so far."""
        return [choice.text for choice in self._choices]

    async def whole(self) -> str:
        """All answers, as one document."""
        async for piece in self._answers.pieces():
            choice = self._choices[piece.index]
            if isinstance(piece, End):
                choice.by_length = piece.by_length
            else:
                choice.text += piece.text
                choice.tokens += piece.tokens
        document = TextCompletion(
            object="text_completion",
            **self._who.fields(),
            choices=[
                self._told(index, choice.text, ended=True)
                for index, choice in enumerate(self._choices)
            ],
            usage=self._answers.usage(),
        )
        return document.model_dump_json(exclude_unset=True)

    async def stream(self) -> AsyncGenerator[str]:
        """Events: pieces of text, each answer's ending, maybe the usage."""
        async for piece in self._answers.pieces():
            choice = self._choices[piece.index]
            if isinstance(piece, End):
                choice.by_length = piece.by_length
                yield self._event([self._told(piece.index, "", ended=True)])
            else:
                choice.text += piece.text
                choice.tokens += piece.tokens
                yield self._event([self._told(piece.index, piece.text, ended=False)])
        if self._asked.tells_usage:
            yield self._event([], usage=True)

    def _told(self, index: int, text: str, *, ended: bool) -> TextChoice:
        choice = self._choices[index]
        ending = "length" if choice.by_length else "stop"
        return TextChoice(
            index=index,
            text=text,
            logprobs=self._logprobs(choice),
            finish_reason=ending if ended else None,
        )

    def _logprobs(self, choice: _Choice) -> TextLogprobs | None:
        """Of the tokens that were not told yet."""
        tokens, choice.tokens = choice.tokens, []
        if self._asked.logprobs is None:
            return None
        found = of_text(self._served, tokens, choice.offset)
        choice.offset += sum(len(text) for text in found.tokens)
        return found

    def _event(self, choices: list[TextChoice], *, usage: bool = False) -> str:
        chunk = TextCompletion(object="text_completion", **self._who.fields(), choices=choices)
        if self._asked.tells_usage:
            chunk.usage = self._answers.usage() if usage else None
        return event(chunk)
