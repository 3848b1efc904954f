"""A small engine with no model: one thread, deterministic answers, the same manners as the real
one: refusals before anything is heard, tokens then one `Finished`, cancelling frees at once."""

import collections
import itertools
import threading

import numpy as np

from lamina.core.errors import BusyError, UsageError
from lamina.serve.request import Finished, Request, Stats, Token

VOCABULARY, CONTEXT = 400, 512


class Fake:
    """Answers with what `script` gives for a request (default: the prompt's ordinary tokens), a
    token per live request and step, `delay` seconds between steps."""

    def __init__(self, script=None, *, delay=0.0, most=64, context=CONTEXT, prefer=()):
        self.script = script or echo
        self.delay, self.most = delay, most
        self.context, self.vocabulary = context, VOCABULARY
        self.prefer = prefer
        self.requests = []
        self._live = collections.OrderedDict()
        self._numbers = itertools.count()
        self._wake = threading.Condition()
        self._ending, self._tokens, self._steps = None, [0, 0], 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, request: Request, listener):
        if not request.prompt or len(request.prompt) >= self.context:
            raise UsageError("no prompt, or one that is too long")
        with self._wake:
            if self._ending or len(self._live) >= self.most:
                raise BusyError("the queue is full")
            number = next(self._numbers)
            self.requests.append(request)
            self._live[number] = _Live(request, listener, iter(self.script(request)))
            self._tokens[0] += len(request.prompt)
            self._wake.notify_all()
        return _Ticket(self, number)

    def stats(self):
        with self._wake:
            return Stats(
                running=len(self._live),
                waiting=0,
                tokens_in=self._tokens[0],
                tokens_cached=0,
                tokens_out=self._tokens[1],
                steps=self._steps,
                blocks=64,
                blocks_free=64 - len(self._live),
                layers_loaded=0,
                layer_bytes=0,
                layers_evicted=0,
            )

    def drain(self, seconds):
        with self._wake:
            self._ending = True
            self._wake.notify_all()
            done = self._wake.wait_for(lambda: not self._live, seconds)
            for number in list(self._live):
                self._finish(number, "cancelled")
        self._thread.join()
        return done

    def cancel(self, number):
        with self._wake:
            if number in self._live:
                self._finish(number, "cancelled")

    def _run(self):
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._live or self._ending)
                if self._ending and not self._live:
                    return
                for number in list(self._live):
                    self._step(number)
                self._steps += 1
            threading.Event().wait(self.delay)

    def _step(self, number):
        live = self._live[number]
        if len(live.said) >= live.request.max_new_tokens:
            return self._finish(number, "length")
        token = next(live.script, None)
        if isinstance(token, Exception):
            return self._finish(number, "error", token)
        if live.request.constraint is not None:
            token = self._allowed(live.request, token)
            live.request.constraint.push(token)
        if token is None or token in live.request.stop_ids:
            return self._finish(number, "stop")
        live.said.append(token)
        self._tokens[1] += 1
        top = live.request.logprobs
        likely = tuple((token + n, -0.5 - n) for n in range(top or 0))
        live.listener(Token(token, None if top is None else -0.5, likely))
        if live.request.constraint is not None and live.request.constraint.ended:
            self._finish(number, "stop")
        return None

    def _allowed(self, request, token):
        mask = np.zeros((VOCABULARY + 31) // 32, dtype=np.int32)
        request.constraint.fill(mask)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        for wanted in (token, *request.stop_ids, *self.prefer):
            if wanted is not None and bits[wanted]:
                return wanted
        return int(np.flatnonzero(bits)[0])

    def _finish(self, number, reason, error=None):
        live = self._live.pop(number)
        live.listener(Finished(reason, len(live.request.prompt), 0, len(live.said), error))
        self._wake.notify_all()


class _Live:
    def __init__(self, request, listener, script):
        self.request, self.listener, self.script, self.said = request, listener, script, []


class _Ticket:
    def __init__(self, engine, number):
        self._engine, self._number = engine, number

    def cancel(self):
        self._engine.cancel(self._number)


def echo(request):
    """The prompt's ordinary tokens."""
    return [token for token in request.prompt if token > 4]


def forever(request):
    """Never ends by itself."""
    return itertools.cycle(echo(request))
