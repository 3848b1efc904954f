"""What all routes of one server share, and who is asking."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from lamina.flows.hosting import Host
from lamina.stack.resolve import ResolvedStack
from lamina.web.answers import Answers
from lamina.web.errors import Refusal
from lamina.web.keys import Key, Keys
from lamina.web.limits import Limits
from lamina.web.metrics import Metrics
from lamina.web.settings import Settings


@dataclass(frozen=True)
class Caller:
    """Who asks. Without any keys that is whoever reaches this machine's own address."""

    key: Key | None

    @property
    def admin(self) -> bool:
        """Whether metrics may be seen and things be changed."""
        return self.key is None or self.key.role == "admin"

    @property
    def stacks(self) -> tuple[str, ...] | None:
        """References that alone may be asked; None: all."""
        return (self.key.stacks or None) if self.key else None


def caller_of(request: Request) -> Caller:
    """Who sent this request, as the guard found."""
    found: Caller = request.state.caller
    return found


def needs_admin(request: Request) -> None:
    """A route's dependency: raises Refusal for whoever may only ask."""
    if not caller_of(request).admin:
        raise Refusal(403, "this needs a key with the role admin", "not_admin")


def needs_all_stacks(request: Request) -> None:
    """A route's dependency: raises Refusal for a key that may ask some stacks only."""
    if caller_of(request).stacks is not None:
        raise Refusal(403, "this key is for some stacks only, these pages show all", "some_stacks")


@dataclass(frozen=True, eq=False)
class Desk:
    """A running server's parts."""

    host: Host
    settings: Settings
    metrics: Metrics
    keys: Keys | None
    limits: Limits = field(default_factory=Limits)

    def open(
        self,
        request: Request,
        stack: ResolvedStack,
        answers: Answers,
        contents: Callable[[], Sequence[Any]],
    ) -> Callable[[], None]:
        """What to call when `answers` are over, however they ended: cancels what still runs and
        counts what was used. `contents` gives what was said, for logs that are to have it."""
        record: dict[str, Any] = request.state.record
        caller = caller_of(request)
        record |= {"model": stack.label, "stack": stack.digest}

        def done() -> None:
            answers.cancel()
            usage = answers.usage()
            record.update(
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.prompt_tokens_details.cached_tokens,
                completion_tokens=usage.completion_tokens,
            )
            if answers.first_seconds is not None:
                record["first_token_ms"] = round(1000 * answers.first_seconds, 1)
            if self.settings.log_contents:
                record["answers"] = list(contents())
            self.metrics.answered(usage, answers.first_seconds, answers.gaps)
            if caller.key is not None:
                self.limits.spend(caller.key, usage.total_tokens)

        return done
